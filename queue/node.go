package queue

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// How long a connection that was lost, or not made, is waited for, at first and at most.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 30 * time.Second
)

// steady is how long a connection has to last for the pauses to begin anew.
const steady = 5 * time.Second

const (
	dialTimeout  = 10 * time.Second // for a connection to be made
	closeTimeout = 2 * time.Second  // for a broker to say goodbye
)

// A node is one connection to a broker, kept by a goroutine of its own.
type node struct {
	// Set when made.
	number int // as configured, from 1
	url    string
	shown  string // url without what may be a secret

	// Guarded by Queues.mu.
	link   *link // nil: it is not connected
	failed bool  // it is not, and that was said
	reason string
	since  time.Time // when it was connected, or was no longer
}

// A link is one life of a node's connection.
type link struct {
	conn *amqp.Connection
	room int // how many channels it may have

	taken int // guarded by Queues.mu
}

func newNode(number int, address string) *node {
	n := &node{number: number, url: address, since: time.Now()}
	if u, err := url.Parse(address); err == nil {
		n.shown = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
	}
	return n
}

// keep connects a node again and again until ctx ends.
func (q *Queues) keep(ctx context.Context, n *node) {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		conn, err := n.dial(ctx)
		if err == nil {
			since := time.Now()
			if err = q.hear(ctx, n, conn); time.Since(since) >= steady {
				pause = firstPause
			}
		}
		if ctx.Err() != nil {
			return
		}
		q.away(n, err)
		if !sleep(ctx, pause/2+rand.N(pause)) {
			return
		}
	}
}

// dial makes the connection, within dialTimeout or what the URL says.
func (n *node) dial(ctx context.Context) (*amqp.Connection, error) {
	uri, err := amqp.ParseURI(n.url)
	if err != nil {
		return nil, errors.New("its URL can't be read")
	}
	timeout := dialTimeout
	if uri.ConnectionTimeout > 0 {
		timeout = time.Duration(uri.ConnectionTimeout) * time.Millisecond
	}
	named := amqp.NewConnectionProperties()
	named.SetClientConnectionName("eventsource")
	stop := func() bool { return true }
	conn, err := amqp.DialConfig(n.url, amqp.Config{
		Properties: named,
		Dial: func(network, address string) (net.Conn, error) {
			d := net.Dialer{Timeout: timeout}
			c, err := d.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			stop = context.AfterFunc(ctx, func() { c.Close() }) // a handshake knows of no context
			return c, c.SetDeadline(time.Now().Add(timeout))
		},
	})
	if !stop() && err == nil {
		conn.Close()
		err = context.Cause(ctx)
	}
	return conn, err
}

// hear lets consumers have a connection until it is lost, or ctx ends.
func (q *Queues) hear(ctx context.Context, n *node, conn *amqp.Connection) error {
	lost := conn.NotifyClose(make(chan *amqp.Error, 1))
	q.mu.Lock()
	n.link = &link{conn: conn, room: int(conn.Config.ChannelMax)}
	n.failed, n.reason, n.since = false, "", time.Now()
	q.mu.Unlock()
	q.log.Info("a broker of queues is connected", "node", n.number, "url", n.shown)
	defer func() {
		q.mu.Lock()
		n.link, n.since = nil, time.Now()
		q.mu.Unlock()
	}()
	select {
	case err, ok := <-lost:
		if !ok || err == nil {
			return errors.New("the connection was closed")
		}
		return err
	case <-ctx.Done():
		conn.CloseDeadline(time.Now().Add(closeTimeout)) // what can't be said is nobody's loss
		return nil
	}
}

// away notes that a node is not connected. What goes on for the same reason is logged
// once.
func (q *Queues) away(n *node, err error) {
	q.mu.Lock()
	level := slog.LevelDebug
	if !n.failed || n.reason != err.Error() {
		level = slog.LevelError
	}
	n.failed, n.reason = true, err.Error()
	q.mu.Unlock()
	q.log.Log(context.Background(), level, "a broker of queues is not connected", "node", n.number, "url", n.shown, "error", err)
}

// pick returns a connection that has room, each in its turn, and counts a consumer more
// on it.
func (q *Queues) pick() (*link, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	connected := false
	for range q.nodes {
		l := q.nodes[q.next].link
		q.next = (q.next + 1) % len(q.nodes)
		if l == nil || l.conn.IsClosed() {
			continue
		}
		if connected = true; l.taken < l.room {
			l.taken++
			return l, nil
		}
	}
	if connected {
		return nil, errFull
	}
	return nil, errAway
}

// release counts a consumer less.
func (q *Queues) release(l *link) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l.taken--
}
