package nats

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
)

// mostBytes is how many bytes are asked of a stream at once, unless one message can be
// larger.
const mostBytes = 4 << 20

// A reading is of a stream, over one connection.
type reading struct {
	// Set when made.
	source   *Source
	nc       *nats.Conn
	consumer jetstream.Consumer
	patterns []string // what the consumer has of the stream
	reasons  bool     // the server takes a reason with a Term
	hand     *hand
}

// read publishes what the stream brings.
func (s *Source) read(ctx, live context.Context, fail context.CancelCauseFunc, feed *eventsource.Feed) error {
	after, stop := outlast(ctx, live, afterwards)
	defer stop()
	nc, err := s.connect(live, fail, nil)
	if err != nil {
		return err
	}
	defer func() {
		fail(errEnded)
		nc.Close()
	}()
	r, err := s.open(live, nc)
	if err != nil {
		return err
	}
	defer r.hand.giveBack(nc)
	flow := s.intake.Flow(after, feed)
	defer flow.Close()

	pulling, cancel := context.WithCancel(live)
	pulled := make(chan error, 1)
	go func() { pulled <- r.pull(pulling) }()
	stopKeeping := r.hand.keep(r.consumer.CachedInfo().Config.AckWait)
	defer func() {
		cancel()
		<-pulled
		stopKeeping()
	}()
	feed.Connected()
	return r.publish(ctx, flow, pulled)
}

// publish publishes what is pulled, up to the last of it when pulling has failed.
func (r *reading) publish(ctx context.Context, flow *intake.Flow, pulled chan error) error {
	var arrivals []intake.Arrival
	var failed error
	for {
		messages := r.hand.take(most)
		switch {
		case len(messages) > 0:
		case failed != nil:
			return failed
		default:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-r.hand.arrived:
			case failed = <-pulled:
				pulled <- failed // for who waits for the end
			}
			continue
		}
		arrivals = arrivals[:0]
		for _, m := range messages {
			arrivals = append(arrivals, r.arrival(m))
		}
		if err := flow.Take(arrivals...); err != nil {
			return err
		}
		clear(arrivals)
	}
}

// open finds the stream and its consumer, or makes the consumer.
func (s *Source) open(live context.Context, nc *nats.Conn) (*reading, error) {
	c := &s.config
	ctx, cancel := context.WithTimeout(live, patience)
	defer cancel()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, c.Stream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", c.Stream, err)
	}
	consumer, err := s.consumer(ctx, nc, stream)
	if err != nil {
		return nil, fmt.Errorf("consumer %s of the stream %s: %w", c.Consumer, c.Stream, err)
	}
	patterns := filters(consumer)
	if len(patterns) == 0 {
		patterns = stream.CachedInfo().Config.Subjects
	}
	if err := s.checkDeadLetter(ctx, js, patterns); err != nil {
		return nil, fmt.Errorf("dead_letter %s: %w", c.DeadLetter, err)
	}
	return &reading{source: s, nc: nc, consumer: consumer, patterns: patterns,
		reasons: atLeast(nc.ConnectedServerVersion(), 2, 10, 4), hand: newHand()}, nil
}

// consumer returns the stream's consumer.
func (s *Source) consumer(ctx context.Context, nc *nats.Conn, stream jetstream.Stream) (jetstream.Consumer, error) {
	consumer, err := stream.Consumer(ctx, s.config.Consumer)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		if len(s.config.Filter) > 1 && !atLeast(nc.ConnectedServerVersion(), 2, 10) {
			return nil, fmt.Errorf("several subjects in filter need nats-server 2.10, and this is %s", nc.ConnectedServerVersion())
		}
		consumer, err = stream.CreateConsumer(ctx, s.create)
	}
	if err != nil {
		return nil, err
	}
	switch has := filters(consumer); {
	case consumer.CachedInfo().Config.AckPolicy != jetstream.AckExplicitPolicy:
		return nil, errors.New("its messages are not acknowledged one by one: delete it and it is created, or name one with an explicit ack policy")
	case len(s.config.Filter) > 0 && !equal(has, s.config.Filter):
		return nil, fmt.Errorf("it exists and has the subjects %q, not %q: delete it and it is created, or leave filter out", has, s.config.Filter)
	}
	return consumer, nil
}

// filters are the subjects that a consumer has of the stream; none: all.
func filters(c jetstream.Consumer) []string {
	config := &c.CachedInfo().Config
	if config.FilterSubject != "" {
		return []string{config.FilterSubject}
	}
	return config.FilterSubjects
}

// equal reports whether a and b are the same in whichever order.
func equal(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// checkDeadLetter reports why nothing may be published to the subject for what is
// refused: it would be lost, or come in again.
func (s *Source) checkDeadLetter(ctx context.Context, js jetstream.JetStream, patterns []string) error {
	if s.config.DeadLetter == "" {
		return nil
	}
	if matching(patterns, s.config.DeadLetter) != "" {
		return errors.New("what is published there would come in again: name a subject of another stream")
	}
	if _, err := js.StreamNameBySubject(ctx, s.config.DeadLetter); err != nil {
		return fmt.Errorf("no stream has the subject: %w", err)
	}
	return nil
}

// pull asks the stream for more while there is room, and returns when that fails.
func (r *reading) pull(ctx context.Context) error {
	config := &r.consumer.CachedInfo().Config
	batch := most
	if config.MaxRequestBatch > 0 {
		batch = min(batch, config.MaxRequestBatch)
	}
	bytes := max(mostBytes, 2*int(r.nc.MaxPayload()))
	if config.MaxRequestMaxBytes > 0 {
		bytes = min(bytes, config.MaxRequestMaxBytes)
	}
	wait := jetstream.DefaultExpires
	if config.MaxRequestExpires > 0 {
		wait = min(wait, config.MaxRequestExpires)
	}
	for r.hand.room(ctx) {
		err := r.fetch(ctx, batch, bytes, wait)
		if ctx.Err() == nil && err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, jetstream.ErrConsumerLeadershipChanged) {
			return fmt.Errorf("read the stream %s: %w", r.source.config.Stream, err)
		}
	}
	return context.Cause(ctx)
}

// fetch takes in hand what the stream has, and so long what it gets.
func (r *reading) fetch(ctx context.Context, batch, bytes int, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	fetched, err := r.consumer.Fetch(batch, jetstream.FetchContext(ctx), jetstream.FetchMaxBytes(bytes))
	if err != nil {
		return err
	}
	for m := range fetched.Messages() {
		r.hand.add(m)
	}
	return fetched.Error()
}

// arrival is a message as the intake takes it.
func (r *reading) arrival(m held) intake.Arrival {
	return intake.Arrival{Data: m.Data(), Key: m.key(), Again: m.about.NumDelivered > 1,
		Value: func(variable string) string { return r.value(variable, m) },
		Done:  func(err error) { r.done(m, err) }}
}

// value returns what stands for a variable in templates.
func (r *reading) value(variable string, m held) string {
	switch variable {
	case "stream":
		return m.about.Stream
	case "sequence":
		return strconv.FormatUint(m.about.Sequence.Stream, 10)
	}
	return value(variable, m.Subject(), matching(r.patterns, m.Subject()), m.Headers())
}

// done acknowledges what was published, and has the stream bring no more what never is.
// What does not reach the server comes again, and is not published again.
func (r *reading) done(m held, err error) {
	r.hand.drop(m)
	refused, isRefused := errors.AsType[*eventsource.RefusedError](err)
	switch {
	case !isRefused:
		m.Ack()
	case r.source.config.DeadLetter != "" && r.bury(m, refused) != nil: // it comes again
	case r.reasons:
		m.TermWithReason(refused.Error())
	default:
		m.Term()
	}
}

// The headers of a dead letter say what it was, and why it is one.
const (
	headerReason   = "Eventsource-Reason"
	headerDetail   = "Eventsource-Detail"
	headerSubject  = "Eventsource-Subject"
	headerStream   = "Eventsource-Stream"
	headerSequence = "Eventsource-Sequence"
)

// bury sends a message to the subject for what is refused. It goes before the Term on
// the same connection, so that the Term does not arrive without it.
func (r *reading) bury(m held, refused *eventsource.RefusedError) error {
	letter := &nats.Msg{Subject: r.source.config.DeadLetter, Header: nats.Header{}}
	letter.Header.Set(jetstream.MsgIDHeader, m.about.Stream+"."+m.key()) // so that it is kept once
	letter.Header.Set(headerReason, refused.Reason)
	letter.Header.Set(headerDetail, inLine(refused.Err.Error()))
	letter.Header.Set(headerSubject, m.Subject())
	letter.Header.Set(headerStream, m.about.Stream)
	letter.Header.Set(headerSequence, strconv.FormatUint(m.about.Sequence.Stream, 10))
	full := &nats.Msg{Subject: letter.Subject, Data: m.Data(), Header: maps.Clone(letter.Header)}
	for name, values := range m.Headers() {
		if !strings.HasPrefix(strings.ToLower(name), "nats-") { // those tell a stream what to do
			full.Header[name] = values
		}
	}
	err := r.nc.PublishMsg(full)
	if errors.Is(err, nats.ErrMaxPayload) { // with what is said of it, it is too large
		err = r.nc.PublishMsg(letter)
	}
	return err
}

// inLine is text as a header can have it.
func inLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

// A held is a message that is on its way.
type held struct {
	jetstream.Msg
	about *jetstream.MsgMetadata
}

// key is what the stream knows a message by, also where it was deleted and made again,
// and numbers from 1.
func (h held) key() string {
	key := strconv.AppendUint(make([]byte, 0, 32), h.about.Sequence.Stream, 36)
	return string(strconv.AppendInt(append(key, '.'), h.about.Timestamp.UnixNano(), 36))
}
