// Package queue serves AMQP queues over Server-Sent Events, one queue to each consumer:
// point to point, where a channel goes to everybody who follows it.
//
// A request names its queue by a pattern. The queue is declared where it is missing, and
// has one consumer at a time. What is in it is sent in order, and acknowledged one by one
// when the consumer's connection has taken it: at least once, as long as the queue exists.
//
// Lock order: Queues.mu alone; no call leaves the package under it.
package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
)

// What counts where Config leaves it out.
const (
	DefaultPattern = "${query:id}"
	DefaultExpires = 30 * time.Minute
)

// maxExpires is the most that RabbitMQ's timers hold.
const maxExpires = (1<<32 - 1) * time.Millisecond

// patience is how long a consumer waits for the one before it to leave its queue, so
// that a browser that reconnects is not refused because of itself.
const patience = time.Second

// How long to wait before a queue is tried again, at first.
const firstTry = 20 * time.Millisecond

// The ends of streams, as Stats counts them.
const (
	EndGone    = "gone"    // the consumer left
	EndSlow    = "slow"    // it read nothing for Settings.Timeout
	EndLost    = "lost"    // the broker's connection was lost
	EndDeleted = "deleted" // the broker ended it: the queue was deleted
	EndServer  = "server"  // the server ended it: shutdown, or the token's end
)

// Config says where the queues are, and whose is which.
type Config struct {
	// Nodes are the brokers' URLs, amqp://… or amqps://…. Each is one connection, which
	// holds as many consumers as the broker gives it channels (2047, unless RabbitMQ's
	// channel_max says otherwise): one that stands several times is as many connections.
	Nodes []string
	// Pattern names the queue of a request: text with ${query:NAME} and ${cookie:NAME}
	// in it. Empty is DefaultPattern.
	Pattern string
	// Expires is how long a queue that this package declares stays without a consumer,
	// in whole milliseconds. 0 is DefaultExpires, -1 is for ever.
	Expires time.Duration
	// Header is what responses have besides the server's headers of a stream, over which
	// it wins.
	Header http.Header
	// Event is the type of the events: text with {type}, {routing_key}, {app_id} and
	// {header:NAME} in it, which stand for what a delivery has. Empty: they have none.
	Event string
	// Logger is told when a broker comes and goes, and what is refused. Nil is silent.
	Logger *slog.Logger
}

// Queues serve AMQP queues. They are a Relay for Server.HandleRelay, and safe for
// concurrent use.
type Queues struct {
	// Set when made.
	pattern   pattern
	event     intake.Template
	header    http.Header
	arguments amqp.Table // of the queues that are declared
	nodes     []*node
	log       *slog.Logger
	counts    *counts
	stop      context.CancelFunc // ends the connections
	running   sync.WaitGroup     // what Close waits for

	mu     sync.Mutex
	closed bool
	next   int                      // whose turn it is among nodes
	held   map[string]chan struct{} // by the names of queues: closed when the consumer here has left
}

var _ eventsource.Relay = (*Queues)(nil)

// Open begins to connect to the brokers, and returns at once: one that is away is tried
// again for as long as it takes. Its error, of one or several joined, says what in the
// configuration can't be used and what would be right. End it with Close.
func Open(c Config) (*Queues, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	pattern, _ := parsePattern(c.pattern())
	event, _ := parseType(c.Event)
	q := &Queues{pattern: pattern, event: event, header: c.Header.Clone(), arguments: c.arguments(),
		log: c.Logger, counts: newCounts(), held: map[string]chan struct{}{}}
	if q.log == nil {
		q.log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	q.stop = stop
	for i, url := range c.Nodes {
		n := newNode(i+1, url)
		q.nodes = append(q.nodes, n)
		q.running.Go(func() { q.keep(ctx, n) })
	}
	return q, nil
}

// arguments returns what queues are declared with.
func (c *Config) arguments() amqp.Table {
	switch {
	case c.Expires < 0:
		return nil
	case c.Expires == 0:
		return amqp.Table{"x-expires": DefaultExpires.Milliseconds()}
	}
	return amqp.Table{"x-expires": c.Expires.Milliseconds()}
}

// Close ends every stream and connection, and waits until nothing of them is left. What
// was not acknowledged stays in its queue.
func (q *Queues) Close() error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.stop()
	q.running.Wait()
	return nil
}

// begin runs f beside the caller; false when Close has been called.
func (q *Queues) begin(f func()) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.running.Go(f)
	return true
}

// Admit returns the channel that grants speak of for a request's queue: "queue." and the
// queue's name, or where that makes no channel's name the wildcard "queue.*", so that only
// who may have all of them may have it. A request that names no queue is refused with 400.
func (q *Queues) Admit(r *http.Request) (channel string, err error) {
	name, p := q.pattern.name(r)
	if p != nil {
		q.counts.refuseRequest(TurnedName)
		return "", p
	}
	channel = "queue." + name
	if eventsource.CheckName(channel) != nil {
		return "queue.*", nil
	}
	return channel, nil
}

// Relay sends what is in a request's queue, and acknowledges it.
func (q *Queues) Relay(ctx context.Context, r *http.Request, out *eventsource.Stream) error {
	name, p := q.pattern.name(r)
	if p != nil {
		return p
	}
	l, err := q.take(ctx, name)
	if ctx.Err() != nil {
		return ctx.Err() // who went is nobody to tell
	}
	if err != nil {
		return q.turnAway(err)
	}
	defer l.leave()
	for k, v := range q.header {
		out.Header()[k] = append([]string(nil), v...)
	}
	end, err := q.serve(ctx, r, l, out)
	q.counts.end(end)
	return err
}

// take has a consumer take a queue, when who has it leaves it soon.
func (q *Queues) take(ctx context.Context, name string) (*lease, error) {
	until := time.Now().Add(patience)
	free, ok := q.hold(ctx, name, until)
	if !ok {
		return nil, errBusy
	}
	for pause := firstTry; ; pause *= 2 {
		l, err := q.lease(ctx, name)
		if err == nil {
			l.free = free
			return l, nil
		}
		if !errors.Is(err, errBusy) || time.Now().Add(pause).After(until) || !sleep(ctx, pause) {
			free()
			return nil, err
		}
	}
}

// hold makes a queue its consumer's on this node. RabbitMQ keeps others away as well, but
// not from quorum queues and streams.
func (q *Queues) hold(ctx context.Context, name string, until time.Time) (free func(), ok bool) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for {
		q.mu.Lock()
		left := q.held[name]
		if left == nil {
			q.held[name] = make(chan struct{})
			q.mu.Unlock()
			return func() { q.free(name) }, true
		}
		q.mu.Unlock()
		select {
		case <-left:
		case <-timer.C:
			return nil, false
		case <-ctx.Done():
			return nil, false
		}
	}
}

func (q *Queues) free(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	close(q.held[name])
	delete(q.held, name)
}

// serve sends what comes until one side ends it, and returns why it ended.
func (q *Queues) serve(ctx context.Context, r *http.Request, l *lease, out *eventsource.Stream) (end string, err error) {
	if err := out.Begin(); err != nil {
		return sendEnd(err), err
	}
	for {
		select {
		case <-ctx.Done():
			if r.Context().Err() == nil {
				return EndServer, nil
			}
			return EndGone, nil
		case <-out.Idle():
			if err := out.Beat(); err != nil {
				return sendEnd(err), err
			}
		case d, ok := <-l.deliveries:
			if !ok {
				return l.end(), &eventsource.EndError{Reason: "closed"}
			}
			if end, err := q.deliver(ctx, r, &d, out); end != "" {
				return end, err
			}
		}
	}
}

// deliver sends one delivery. It is the broker's again, to be sent to who comes next,
// unless all of it was taken.
func (q *Queues) deliver(ctx context.Context, r *http.Request, d *amqp.Delivery, out *eventsource.Stream) (end string, err error) {
	if ctx.Err() != nil {
		return EndGone, nil
	}
	if d.Redelivered {
		q.counts.redelivered.Add(1)
	}
	e, refused := q.eventOf(d, out.Limits().Body)
	if refused == nil {
		err := out.Send(e)
		if p, ok := errors.AsType[*eventsource.Problem](err); ok {
			refused = &eventsource.RefusedError{Reason: eventsource.RefusedInvalid, Err: p}
		} else if err != nil {
			return sendEnd(err), err
		}
	}
	if refused != nil {
		q.refuse(refused)
		err = d.Nack(false, false)
	} else {
		if r.Context().Err() != nil {
			return EndGone, nil // it may have gone before this was written
		}
		if err = d.Ack(false); err == nil {
			q.counts.events.Add(1)
			q.counts.bytes.Add(uint64(len(d.Body)))
		}
	}
	if err != nil {
		return EndLost, &eventsource.EndError{Reason: "closed"}
	}
	return "", nil
}

// sendEnd returns the end that an error of a Stream is.
func sendEnd(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return EndSlow
	}
	return EndGone
}

// refuse counts a payload that makes no event, and logs why, once a minute for each
// reason.
func (q *Queues) refuse(refused *eventsource.RefusedError) {
	if n, ok := q.counts.refusePayload(refused.Reason); ok {
		q.log.Warn("payloads of queues are not sent", "reason", refused.Reason, "refused", n, "last", refused.Err.Error())
	}
}

// sleep waits; it reports false when ctx has ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// problem returns a refusal.
func problem(status int, format string, args ...any) *eventsource.Problem {
	return &eventsource.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}
