// Package nats is a source that is fed from NATS: by subjects that it follows, or by a
// JetStream stream, of which a durable consumer remembers what has been published.
//
// Who follows subjects gets each of their messages at most once: NATS keeps none. From a
// stream each comes at least once, and what comes again is known by its sequence and is
// not published again.
package nats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
)

// DefaultURL is where the server is unless Config says otherwise.
const DefaultURL = "nats://localhost:4222"

// Config says what is fed in, and how it is published. Either Subjects are given, or
// Stream and Consumer.
type Config struct {
	// URLs are where the server is, such as "nats://localhost:4222", or where those of a
	// cluster are, of which one is used. What stands before an @ is a user and a
	// password, or a token; it is in no error and no log. Nil is DefaultURL.
	URLs []string

	// Subjects are followed: "*" stands for a token, ">" at the end for all that are
	// left. No two may have a subject in common.
	Subjects []string
	// QueueGroup shares what comes on Subjects with whoever names the same group.
	QueueGroup string

	// Stream is the JetStream stream that is read.
	Stream string
	// Consumer is the durable pull consumer of the stream that remembers what has been
	// published. It is used as it is where it exists, and created where it does not.
	Consumer string
	// Filter are the subjects of the stream that the consumer has; empty: all. A
	// consumer that exists with others is not used. Several need nats-server 2.10.
	Filter []string
	// Deliver is where a consumer that is created begins: "all" (or empty), "new",
	// "last", a sequence of the stream, or a time (RFC 3339).
	Deliver string
	// AckWait is after how long a consumer that is created brings again what is not
	// acknowledged, unless the source says that it still has it. 0: 10s.
	AckWait time.Duration
	// MaxAckPending is how many messages a consumer that is created has on their way at
	// most. 0: the server's default, 1000.
	MaxAckPending int
	// DeadLetter is the subject, of another stream, to which goes what is never
	// published, with headers that say why. Empty: it goes nowhere.
	DeadLetter string

	// Credentials is the file of a user's JWT and seed.
	Credentials string
	// NKey is the file of a user's seed.
	NKey string
	// CA is the file of the certificates that the server's is checked with. Empty: the
	// system's.
	CA string
	// Cert and Key are the files of the certificate, and its key, that the server is
	// shown. Empty: none is.
	Cert, Key string

	// Channel is the template of the channel that events go to, or of several joined by
	// commas. Templates may have {name}, the subject; {1}, {2} and so on for what the
	// wildcards of the subject matched, in order; {header:NAME}; and of a stream
	// {stream} and {sequence}.
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
	config Config
	intake *intake.Intake
	create jetstream.ConsumerConfig // of the consumer, where it does not exist
}

var _ eventsource.Source = (*Source)(nil)

// New returns a source. Its error says what in the configuration can't be used, and
// what would be right.
func New(c Config) (*Source, error) {
	if len(c.URLs) == 0 {
		c.URLs = []string{DefaultURL}
	}
	s := &Source{config: c}
	in, err := intake.New(intake.Config{Channel: c.Channel, Event: c.Event, ID: c.ID, JSON: c.JSON, Rollup: c.Rollup}, s.variables())
	s.intake = in
	err = errors.Join(checkURLs(c.URLs), s.check(), checkFiles(&c), err)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// check reports what of the ways in can't be used, and prepares them.
func (s *Source) check() error {
	c := &s.config
	switch {
	case len(c.Subjects) == 0 && c.Stream == "":
		return errors.New("subjects: none are given; give some such as [orders.*], or a stream and a consumer")
	case len(c.Subjects) > 0 && c.Stream != "":
		return errors.New("stream: there are subjects, too; give one of them")
	case c.Stream == "":
		return s.checkSubjects()
	}
	return s.checkStream()
}

func (s *Source) checkSubjects() error {
	c := &s.config
	for _, m := range []struct {
		name  string
		given bool
	}{
		{"consumer", c.Consumer != ""}, {"filter", len(c.Filter) > 0}, {"deliver", c.Deliver != ""}, {"ack_wait", c.AckWait != 0},
		{"max_ack_pending", c.MaxAckPending != 0}, {"dead_letter", c.DeadLetter != ""},
	} {
		if m.given {
			return fmt.Errorf("%s: it is for a stream; name the stream, or leave it out", m.name)
		}
	}
	if strings.ContainsFunc(c.QueueGroup, unprintable) {
		return fmt.Errorf("queue_group: %q has a space or a control character", c.QueueGroup)
	}
	return checkPatterns("subjects", c.Subjects)
}

func (s *Source) checkStream() error {
	c := &s.config
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.QueueGroup != "" {
		fail("queue_group: it is for subjects; who names the same consumer shares a stream")
	}
	if !isName(c.Stream) {
		fail(`stream: %q is no name of a stream: it has a space, or one of . * > / \`, c.Stream)
	}
	switch {
	case c.Consumer == "":
		fail("consumer: none is given; name the durable consumer of the stream that remembers what has been published")
	case !isName(c.Consumer):
		fail(`consumer: %q is no name of a consumer: it has a space, or one of . * > / \`, c.Consumer)
	}
	if err := checkPatterns("filter", c.Filter); err != nil {
		errs = append(errs, err)
	}
	if c.AckWait < 0 || c.AckWait > 0 && c.AckWait < time.Second {
		fail("ack_wait: %v is below 1s", c.AckWait)
	}
	if c.MaxAckPending < 0 {
		fail("max_ack_pending: %d is below 1", c.MaxAckPending)
	}
	if c.DeadLetter != "" {
		switch err := checkPattern(c.DeadLetter); {
		case err != nil:
			fail("dead_letter: %w", err)
		case wildcards(c.DeadLetter) > 0:
			fail("dead_letter: %q has wildcards; name one subject", c.DeadLetter)
		case matching(c.Filter, c.DeadLetter) != "":
			fail("dead_letter: %q is in filter, and would come in again; name a subject of another stream", c.DeadLetter)
		}
	}
	s.create = jetstream.ConsumerConfig{Durable: c.Consumer, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: cmp.Or(c.AckWait, ackWait), MaxAckPending: c.MaxAckPending}
	if len(c.Filter) == 1 {
		s.create.FilterSubject = c.Filter[0]
	} else {
		s.create.FilterSubjects = c.Filter
	}
	if err := beginAt(&s.create, c.Deliver); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ackWait is shorter than the server's own default: the source says in time that it still
// has a message, and what a lost connection had on its way comes again the sooner.
const ackWait = 10 * time.Second

// beginAt has a consumer begin where deliver says.
func beginAt(c *jetstream.ConsumerConfig, deliver string) error {
	switch deliver {
	case "", "all":
		c.DeliverPolicy = jetstream.DeliverAllPolicy
		return nil
	case "new":
		c.DeliverPolicy = jetstream.DeliverNewPolicy
		return nil
	case "last":
		c.DeliverPolicy = jetstream.DeliverLastPolicy
		return nil
	}
	if seq, err := strconv.ParseUint(deliver, 10, 64); err == nil && seq > 0 {
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, seq
		return nil
	}
	if at, err := time.Parse(time.RFC3339, deliver); err == nil {
		c.DeliverPolicy, c.OptStartTime = jetstream.DeliverByStartTimePolicy, &at
		return nil
	}
	return fmt.Errorf("deliver: %q is none of all, new and last, no sequence such as 1, and no time such as 2006-01-02T15:04:05Z", deliver)
}

// variables are those of templates: of the wildcards as many as every subject has. Where
// no filter is configured the consumer has one, or the stream has subjects.
func (s *Source) variables() intake.Variables {
	v := intake.Variables{Names: []string{"name", "header:"}, Wildcards: -1}
	patterns := s.config.Subjects
	if s.config.Stream != "" {
		v.Names = append(v.Names, "stream", "sequence")
		patterns = s.config.Filter
	}
	for i, p := range patterns {
		if n := wildcards(p); i == 0 || n < v.Wildcards {
			v.Wildcards = n
		}
	}
	return v
}

// Run publishes what comes in until ctx ends or the connection is lost.
func (s *Source) Run(ctx context.Context, feed *eventsource.Feed) error {
	live, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	way := s.follow
	if s.config.Stream != "" {
		way = s.read
	}
	err := way(ctx, live, fail, feed)
	if ctx.Err() != nil {
		return nil
	}
	if cause := context.Cause(live); cause != nil && cause != errEnded { // whatever else failed, it failed for that
		err = cause
	}
	return err
}

// errEnded is why a connection is closed that is not lost.
var errEnded = errors.New("the source ended")

// afterwards is how long what has come in is still published once the connection is
// lost: the broker brings it again, and behind what is newer.
const afterwards = time.Second

// outlast returns a context that ends with ctx, or so long after live has ended.
func outlast(ctx, live context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	after, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(live, func() {
		timer := time.NewTimer(by)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-after.Done():
		}
	})
	return after, func() {
		stop()
		cancel()
	}
}
