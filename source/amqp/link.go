package amqp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// How long connecting may take unless the URL says otherwise, and closing.
	connecting = 10 * time.Second
	closing    = 500 * time.Millisecond

	// finishing is how long what is written may take when the source ends: what a
	// roll-up still publishes is acknowledged.
	finishing = 3 * time.Second
)

// A link is one connection to the broker. Its methods are called by one goroutine.
type link struct {
	// Set when connected.
	address string
	timeout time.Duration // for what the broker answers before anything comes in
	raw     net.Conn
	conn    *amqp.Connection
	cut     func() bool // has the end of the context no longer cut the connection

	// Set when it was asked.
	asked    bool
	isStream bool

	// Set by consume.
	queue   string
	channel *amqp.Channel
	closed  chan *amqp.Error
	gone    chan string // the consumption was ended by the broker
	in      *inbox
}

// connect tries the nodes of the broker in turn, beginning with the one that was
// connected last. Until settled the end of ctx cuts the connection.
func (s *Source) connect(ctx context.Context) (*link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for range s.uris {
		l, err := dial(ctx, s.config.URLs[s.uri], &s.uris[s.uri])
		if err == nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		errs = append(errs, err)
		s.uri = (s.uri + 1) % len(s.uris)
	}
	return nil, errors.Join(errs...)
}

// dial connects to one node.
func dial(ctx context.Context, url string, uri *amqp.URI) (*link, error) {
	l := &link{address: net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)), cut: func() bool { return true }}
	l.timeout = connecting
	if uri.ConnectionTimeout > 0 {
		l.timeout = time.Duration(uri.ConnectionTimeout) * time.Millisecond
	}
	conn, err := amqp.DialConfig(url, amqp.Config{
		Properties: amqp.Table{"product": "eventsource", "platform": "Go", "connection_name": "eventsource"},
		Dial: func(network, address string) (net.Conn, error) {
			raw, err := (&net.Dialer{Timeout: l.timeout}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			l.raw = raw
			l.cut = context.AfterFunc(ctx, func() { raw.Close() })
			// The library takes it away once the connection is open.
			return raw, raw.SetDeadline(time.Now().Add(l.timeout))
		},
	})
	if err != nil {
		l.cut()
		if l.raw != nil {
			l.raw.Close() // the library leaves it open
		}
		return nil, fmt.Errorf("can't connect to %s: %w", l.address, plain(err))
	}
	l.conn = conn
	return l, nil
}

// plain returns an error in the broker's words alone.
func plain(err error) error {
	if e, ok := errors.AsType[*amqp.Error](err); ok {
		return errors.New(e.Reason)
	}
	return err
}

// settled has the end of ctx no longer cut the connection, but give it time to finish. It
// reports false when ctx has ended.
func (l *link) settled(ctx context.Context) bool {
	if !l.cut() {
		return false
	}
	l.cut = context.AfterFunc(ctx, func() { l.raw.SetWriteDeadline(time.Now().Add(finishing)) })
	return true
}

// begin is consume for as long as the broker may take: a queue whose node is away, or that
// has no leader yet, does not answer.
func (l *link) begin(s *Source, tag string) (*inbox, error) {
	cut := time.AfterFunc(l.timeout, func() { l.raw.Close() })
	in, err := l.consume(s, tag)
	if !cut.Stop() {
		return nil, fmt.Errorf("%s did not answer within %v", l.address, l.timeout)
	}
	return in, err
}

// consume declares what is missing, and has the queue's deliveries come in.
func (l *link) consume(s *Source, tag string) (*inbox, error) {
	c := &s.config
	err := l.open()
	if err == nil {
		err = l.findExchange(c)
	}
	if err == nil {
		err = l.findQueue(s)
	}
	if err == nil {
		err = l.bind(c)
	}
	if err != nil {
		return nil, err
	}
	if err := l.channel.Qos(c.Prefetch, 0, false); err != nil {
		return nil, fmt.Errorf("prefetch %d: %w", c.Prefetch, plain(err))
	}
	l.closed = l.channel.NotifyClose(make(chan *amqp.Error, 1))
	l.gone = l.channel.NotifyCancel(make(chan string, 1))
	var args amqp.Table
	if c.QueueType == Stream || s.place.expected() >= 0 {
		args = amqp.Table{"x-stream-offset": s.place.begin(s.offset)}
	}
	deliveries, err := l.channel.Consume(l.queue, tag, false, false, false, false, args)
	if err != nil {
		if code(err) == amqp.PreconditionFailed && c.QueueType != Stream {
			s.place.forget() // what was a stream is none any more
		}
		return nil, fmt.Errorf("can't consume the queue %q: %w", l.queue, plain(err))
	}
	l.in = newInbox(deliveries)
	return l.in, nil
}

// open opens a channel: the broker closes it with each refusal.
func (l *link) open() (err error) {
	if l.channel, err = l.conn.Channel(); err != nil {
		return fmt.Errorf("can't open a channel: %w", plain(err))
	}
	return nil
}

// findExchange refuses to go on without the exchange: whoever publishes to it knows of
// which type it must be.
func (l *link) findExchange(c *Config) error {
	if c.Exchange == "" {
		return nil
	}
	err := l.channel.ExchangeDeclarePassive(c.Exchange, "topic", true, false, false, false, nil)
	switch {
	case code(err) == amqp.NotFound:
		return fmt.Errorf("there is no exchange %q: declare it, or name another", c.Exchange)
	case err != nil:
		return fmt.Errorf("can't look for the exchange %q: %w", c.Exchange, plain(err))
	}
	return nil
}

// findQueue takes the queue as it is, or declares it.
func (l *link) findQueue(s *Source) error {
	c := &s.config
	if l.queue = c.Queue; l.queue == "" {
		q, err := l.channel.QueueDeclare("", false, true, true, false, c.arguments())
		if err != nil {
			return fmt.Errorf("can't declare a queue: %w", plain(err))
		}
		l.queue = q.Name
		return nil
	}
	_, err := l.channel.QueueDeclarePassive(c.Queue, !c.Transient, false, false, false, nil)
	if code(err) != amqp.NotFound {
		if err != nil {
			return fmt.Errorf("can't look for the queue %q: %w", c.Queue, plain(err))
		}
		return nil
	}
	if err := l.open(); err != nil {
		return err
	}
	if _, err := l.channel.QueueDeclare(c.Queue, !c.Transient, false, false, false, c.arguments()); err != nil {
		return fmt.Errorf("can't declare the queue %q: %w", c.Queue, plain(err))
	}
	if s.place.expected() >= 0 {
		s.place.forget() // another stream than before
	}
	return nil
}

// arguments are those that a queue is declared with.
func (c *Config) arguments() amqp.Table {
	args := amqp.Table{}
	if c.QueueType != "" {
		args["x-queue-type"] = c.QueueType
	}
	if c.DeadLetterExchange != "" {
		args["x-dead-letter-exchange"] = c.DeadLetterExchange
	}
	return args
}

func (l *link) bind(c *Config) error {
	for _, key := range c.Bindings {
		if err := l.channel.QueueBind(l.queue, key, c.Exchange, false, nil); err != nil {
			return fmt.Errorf("can't bind the queue %q to the exchange %q: %w", l.queue, c.Exchange, plain(err))
		}
	}
	return nil
}

// streams reports whether the queue is a stream, and its deliveries' headers say their
// offsets: in those of other queues that is what whoever published them wrote. The broker is
// asked with the first that says one.
func (l *link) streams(ctx context.Context, c *Config) (bool, error) {
	switch {
	case c.QueueType == Stream:
		return true, nil
	case c.Queue == "" || l.asked:
		return l.isStream, nil
	}
	answer := make(chan error, 1)
	go func() { answer <- l.askOffset() }() // it ends with the connection
	timeout := time.NewTimer(l.timeout)
	defer timeout.Stop()
	var err error
	select {
	case err = <-answer:
	case <-ctx.Done():
		return false, ctx.Err()
	case <-timeout.C:
		return false, fmt.Errorf("%s did not answer within %v", l.address, l.timeout)
	}
	if err != nil && code(err) != amqp.PreconditionFailed {
		return false, fmt.Errorf("whether the queue %q is a stream is not known: %w", l.queue, plain(err))
	}
	l.asked, l.isStream = true, err == nil
	return l.isStream, nil
}

// askOffset asks for the queue's deliveries from an offset, which the broker refuses where
// there are none.
func (l *link) askOffset() error {
	channel, err := l.conn.Channel()
	if err != nil {
		return err
	}
	defer channel.Close()
	if err := channel.Qos(1, 0, false); err != nil {
		return err
	}
	_, err = channel.Consume(l.queue, "kind", false, false, false, false, amqp.Table{"x-stream-offset": "next"})
	return err
}

// last returns the last offset of a stream; -1: none is seen. The broker brings nothing to
// who asks for an offset that a stream has not come to.
func (l *link) last(ctx context.Context) (int64, error) {
	channel, err := l.conn.Channel()
	if err != nil {
		return -1, err
	}
	defer channel.Close()
	if err := channel.Qos(mostPrefetch, 0, false); err != nil {
		return -1, err
	}
	deliveries, err := channel.Consume(l.queue, "last", false, false, false, false, amqp.Table{"x-stream-offset": "last"})
	if err != nil {
		return -1, err
	}
	end := time.NewTimer(glance)
	defer end.Stop()
	for last := int64(-1); ; {
		select {
		case <-ctx.Done():
			return -1, ctx.Err()
		case <-end.C:
			return last, nil
		case d, ok := <-deliveries:
			if !ok {
				return -1, amqp.ErrClosed
			}
			if n, ok := d.Headers["x-stream-offset"].(int64); ok {
				last = max(last, n)
			}
		}
	}
}

// code returns what the broker refused something with; 0: it did not.
func code(err error) int {
	if e, ok := errors.AsType[*amqp.Error](err); ok {
		return e.Code
	}
	return 0
}

// lost says why nothing comes any more.
func (l *link) lost() error {
	select {
	case <-l.gone:
		return fmt.Errorf("the broker delivers nothing from the queue %q any more: it was deleted, or the node that had it is gone", l.queue)
	default:
	}
	select {
	case err := <-l.closed:
		if err != nil && err.Server && err.Code == amqp.PreconditionFailed {
			return fmt.Errorf("the broker closed the channel: %w", plain(err))
		}
		if err != nil {
			return fmt.Errorf("the connection to %s was lost: %w", l.address, plain(err))
		}
	default:
	}
	return fmt.Errorf("the connection to %s was lost", l.address)
}

// close ends the connection. Whatever was not acknowledged the broker has again.
func (l *link) close() {
	defer l.cut()
	cut := time.AfterFunc(closing, func() { l.raw.Close() })
	defer cut.Stop()
	l.conn.Close()
	l.raw.Close()
	if l.in != nil {
		<-l.in.ended
	}
}
