// Package amqp is a source that is fed by a broker of AMQP 0-9-1, such as RabbitMQ: by a
// queue, by what an exchange routes to one, or by a stream.
//
// What comes from a queue or a stream is published at least once, and acknowledged when
// it has been. What comes from an exchange without a named queue is published at most
// once over a reconnect: the broker keeps nothing for who is away.
package amqp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
)

// The types of queues that one may be declared as.
const (
	Classic = "classic"
	Quorum  = "quorum"
	Stream  = "stream"
)

// How many deliveries the broker sends ahead unless Config says otherwise. A roll-up
// holds those of a whole period.
const (
	defaultPrefetch = 256
	mostPrefetch    = 65535 // basic.qos has 16 bits for it
)

// longest is how many bytes a name or a routing key has at most: it is a short string
// (AMQP 0-9-1, 4.2.5.3).
const longest = 255

// DefaultURL is where the broker is unless Config says otherwise: it takes "guest" from
// its own machine.
const DefaultURL = "amqp://localhost:5672"

// Config says what is fed in, and how it is published.
type Config struct {
	// URLs are where the broker is, such as amqps://user:password@host:5671/vhost: the
	// nodes of a cluster, each tried in turn. What they say of a user and a password is
	// in no error and no log. Nil is DefaultURL.
	URLs []string
	// Queue is consumed as it is, or is declared where it is missing. Several nodes with
	// the same one share what it has. Empty: one of this connection alone, which goes
	// with it.
	Queue string
	// QueueType is Classic, Quorum or Stream. Empty is what the broker makes of it. Only
	// a Stream must be named to be read from an Offset.
	QueueType string
	// Exchange is one that exists, and that the queue is bound to. Empty: it is bound to
	// none.
	Exchange string
	// Bindings are the routing keys that it is bound by. Nil is "#": everything of an
	// exchange of the types topic and fanout.
	Bindings []string
	// Transient declares a queue that does not outlive the broker.
	Transient bool
	// DeadLetterExchange is where a queue that is declared has what is never published
	// go. Empty: nowhere.
	DeadLetterExchange string
	// Offset is where a Stream is read from at first: "first", "last", "next", a number
	// or a time (RFC 3339). Empty is "next".
	Offset string
	// Prefetch is how many deliveries may be under way. 0 is 256, or with Rollup 65535,
	// the most there can be.
	Prefetch int

	// Channel is the template of the channel that events go to, or of several joined by
	// commas. It and the next two may use {name} (the routing key), {1} and so on (what
	// the wildcards of the first binding that matches stand for), {exchange}, {queue},
	// {type}, {message_id}, {app_id}, {header:NAME} and, of a Stream, {offset}.
	Channel string
	// Event is the template of their type. Empty: they have none.
	Event string
	// ID is the template of their id. Empty, or where it comes out empty: the server
	// gives one.
	ID string
	// JSON refuses payloads that are no JSON document.
	JSON bool
	// Rollup is a period in which equal payloads are counted, and published as one JSON
	// object {"payload": n}. 0: each payload is an event.
	Rollup time.Duration
}

// A Source publishes what comes in. It is safe for concurrent use.
type Source struct {
	// Set when made.
	config   Config
	uris     []amqp.URI
	bindings []binding
	offset   any // what Offset is to the broker
	intake   *intake.Intake

	place place // of a Stream

	mu  sync.Mutex
	uri int // of uris, the one that was connected last
}

var _ eventsource.Source = (*Source)(nil)

// New returns a source. Its error says what in the configuration can't be used, and
// what would be right.
func New(c Config) (*Source, error) {
	if len(c.URLs) == 0 {
		c.URLs = []string{DefaultURL}
	}
	if c.Prefetch == 0 {
		c.Prefetch = defaultPrefetch
		if c.Rollup > 0 {
			c.Prefetch = mostPrefetch
		}
	}
	if c.Bindings == nil && c.Exchange != "" {
		c.Bindings = []string{everything}
	}
	s := &Source{config: c}
	wildcards := 0
	for _, b := range c.Bindings {
		s.bindings = append(s.bindings, parseBinding(b))
		wildcards = max(wildcards, s.bindings[len(s.bindings)-1].wildcards)
	}
	var errs []error
	add := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	add(s.readURLs())
	add(c.checkQueue())
	add(c.checkExchange())
	var err error
	s.offset, err = c.readOffset()
	add(err)
	if c.Prefetch < 0 || c.Prefetch > mostPrefetch {
		add(fmt.Errorf("prefetch: %d is not between 1 and %d", c.Prefetch, mostPrefetch))
	}
	s.intake, err = intake.New(intake.Config{Channel: c.Channel, Event: c.Event, ID: c.ID, JSON: c.JSON, Rollup: c.Rollup},
		variables(wildcards, c.QueueType == Stream))
	add(err)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// readURLs reads where the broker is. No URL is repeated in an error: it may hold a
// password.
func (s *Source) readURLs() error {
	const example = "give one such as amqp://user:password@localhost:5672/vhost"
	for i, text := range s.config.URLs {
		where := "url"
		if len(s.config.URLs) > 1 {
			where = fmt.Sprintf("url[%d]", i)
		}
		uri, err := amqp.ParseURI(text)
		if err != nil {
			return errors.New(where + ": is no URL of AMQP, or a value in it is none; " + example + ", with %-escapes for what is special in a URL")
		}
		for _, m := range uri.AuthMechanism {
			if !slices.Contains([]string{"PLAIN", "AMQPLAIN", "EXTERNAL"}, strings.ToUpper(m)) {
				return errors.New(where + ": its auth_mechanism is none of plain, amqplain, external")
			}
		}
		s.uris = append(s.uris, uri)
	}
	return nil
}

// checkQueue refuses a queue that can't be.
func (c *Config) checkQueue() error {
	switch {
	case c.Queue == "" && c.Exchange == "":
		return errors.New("queue: none is given, and no exchange; name a queue, an exchange, or both")
	case len(c.Queue) > longest:
		return fmt.Errorf("queue: it is longer than %d bytes", longest)
	case !slices.Contains([]string{"", Classic, Quorum, Stream}, c.QueueType):
		return fmt.Errorf("queue_type: %q is none of %s, %s, %s", c.QueueType, Classic, Quorum, Stream)
	case c.Queue == "" && c.QueueType != "" && c.QueueType != Classic:
		return fmt.Errorf("queue_type: a %s needs a name; give one in queue", c.QueueType)
	case c.Transient && (c.QueueType == Quorum || c.QueueType == Stream):
		return fmt.Errorf("durable: a %s always is; leave it out", c.QueueType)
	case c.DeadLetterExchange != "" && c.QueueType == Stream:
		return errors.New("dead_letter_exchange: a stream has no dead letters; leave it out")
	case len(c.DeadLetterExchange) > longest:
		return fmt.Errorf("dead_letter_exchange: it is longer than %d bytes", longest)
	}
	return nil
}

// checkExchange refuses bindings that can't be.
func (c *Config) checkExchange() error {
	switch {
	case len(c.Exchange) > longest:
		return fmt.Errorf("exchange: it is longer than %d bytes", longest)
	case c.Exchange == "" && c.Bindings != nil:
		return errors.New("bindings: there is no exchange to bind to; name it in exchange")
	case c.Exchange != "" && len(c.Bindings) == 0:
		return errors.New(`bindings: the list is empty; name routing keys, or leave it out for "#"`)
	}
	for _, b := range c.Bindings {
		if len(b) > longest {
			return fmt.Errorf("bindings: one is longer than %d bytes", longest)
		}
	}
	return nil
}

// readOffset returns what Offset is to the broker.
func (c *Config) readOffset() (any, error) {
	switch {
	case c.Offset != "" && c.QueueType != Stream:
		return nil, errors.New("offset: only a stream has one; say queue_type: stream, or leave it out")
	case c.Offset == "":
		return "next", nil
	case c.Offset == "first" || c.Offset == "last" || c.Offset == "next":
		return c.Offset, nil
	}
	if n, err := strconv.ParseInt(c.Offset, 10, 64); err == nil && n >= 0 {
		return n, nil
	}
	if t, err := time.Parse(time.RFC3339, c.Offset); err == nil {
		return t, nil
	}
	return nil, fmt.Errorf("offset: %q is none of first, last, next, no number, and no time such as 2026-01-31T12:00:00Z", c.Offset)
}

// Run publishes what comes in until ctx ends or the connection is lost.
func (s *Source) Run(ctx context.Context, feed *eventsource.Feed) error {
	l, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	if err := s.resume(ctx, feed); err != nil {
		return err
	}
	in, err := l.begin(s, feed.Name())
	if err != nil {
		return err
	}
	if !l.settled(ctx) {
		return ctx.Err()
	}
	feed.Connected()
	return s.publish(ctx, feed, l, in)
}

// publish publishes what a connection brings.
func (s *Source) publish(ctx context.Context, feed *eventsource.Feed, l *link, in *inbox) error {
	acks := newAcks(l.channel, &s.place)
	defer acks.send() // of what Close has published, before the connection is closed
	flow := s.intake.Flow(ctx, feed)
	defer flow.Close()
	asked := s.place.expected()
	silence := time.NewTicker(patience)
	defer silence.Stop()
	// While some are published the broker sends others: it has the acknowledgement of a
	// part before the rest runs out.
	most := max(1, s.config.Prefetch/4)
	var batch []delivery
	var arrivals []intake.Arrival
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-in.ended:
			return l.lost()
		case <-silence.C:
			if asked < 0 {
				silence.Stop()
			} else if last, err := l.last(ctx); err == nil && last >= 0 && last < asked {
				s.place.forget()
				return fmt.Errorf("the stream %q was made anew: it ends at %d, and had been read up to %d", l.queue, last, asked)
			}
			continue
		case <-acks.ready:
			if acks.send() != nil {
				<-in.ended
				return l.lost()
			}
			continue
		case <-in.ready:
		}
		batch = in.take(batch[:0], most)
		if in.over() { // it all comes again
			continue
		}
		arrivals = arrivals[:0]
		for i := range batch {
			d := &batch[i]
			d.source, d.queue, d.acks = s, l.queue, acks
			if err := d.readOffset(ctx, l); err != nil {
				return err
			}
			if d.streamed {
				d.repeated = s.place.meet(d.offset)
				asked = -1
			}
			acks.add(d.DeliveryTag, d.offset, d.streamed)
			if d.repeated {
				acks.settle(d.DeliveryTag, false)
				continue
			}
			arrivals = append(arrivals, d.arrival())
		}
		err := flow.Take(arrivals...)
		clear(arrivals)
		if err != nil {
			return err
		}
		if acks.send() != nil {
			<-in.ended
			return l.lost()
		}
	}
}
