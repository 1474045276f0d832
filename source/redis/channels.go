package redis

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
)

const (
	// What is received and not yet published, at most: then no more is read, and Redis
	// holds what comes, up to its client-output-buffer-limit.
	mostReceived = 1024
	mostBytes    = 1 << 20

	// pingAfter is the silence after which Redis is asked whether it is there. It has
	// as long to answer.
	pingAfter = 10 * time.Second
)

// runChannels publishes what comes in on channels.
func (s *Source) runChannels(ctx context.Context, feed *eventsource.Feed) error {
	line, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer line.close()
	sub := line.Subscribe(ctx)
	defer sub.Close()
	stop := context.AfterFunc(ctx, func() { line.conn.Close() })
	defer stop()
	if err := s.subscribe(ctx, sub); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}

	box := newInbox()
	var reader sync.WaitGroup
	reader.Go(func() { box.end(s.receive(ctx, feed, sub, box)) })
	reader.Go(func() { s.watch(line, sub, box.ended) })
	defer reader.Wait()
	defer box.close()
	defer line.conn.Close() // then the reader ends

	flow := s.intake.Flow(ctx, feed)
	defer flow.Close()
	for { // also when ctx has ended, for what has been received
		arrivals, err := box.take()
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := flow.Take(arrivals...); err != nil {
			return nil // ctx has ended
		}
	}
}

// subscribe asks for what is to come in.
func (s *Source) subscribe(ctx context.Context, sub *redis.PubSub) error {
	if names := s.config.Subscribe; len(names) > 0 {
		if err := sub.Subscribe(ctx, names...); err != nil {
			return err
		}
	}
	if patterns := s.config.Psubscribe; len(patterns) > 0 {
		return sub.PSubscribe(ctx, patterns...)
	}
	return nil
}

// receive puts what comes in into the box, until the connection is lost. It says that the
// source is connected when Redis has confirmed every name and pattern.
func (s *Source) receive(ctx context.Context, feed *eventsource.Feed, sub *redis.PubSub, box *inbox) error {
	left := len(s.config.Subscribe) + len(s.config.Psubscribe)
	for {
		received, err := sub.Receive(ctx)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		switch received := received.(type) {
		case *redis.Subscription:
			if left--; left == 0 {
				feed.Connected()
			}
		case *redis.Message:
			if !box.put(s.heard(received)) {
				return errClosed
			}
		}
	}
}

// heard is what came in on a channel. Redis knows it by nothing, and brings it once.
func (s *Source) heard(m *redis.Message) intake.Arrival {
	return intake.Arrival{Data: []byte(m.Payload), Value: func(variable string) string {
		if variable == "name" {
			return m.Channel
		}
		pattern := s.patterns[m.Pattern]
		found, _ := pattern.match(m.Channel)
		if n := int(variable[0] - '1'); n < len(found) {
			return found[n]
		}
		return ""
	}}
}

// watch asks for a sign of life after a silence, and closes the connection when none
// comes.
func (s *Source) watch(line *line, sub *redis.PubSub, ended <-chan struct{}) {
	tick := time.NewTicker(s.pingAfter / 2)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		switch silence := line.conn.silence(); {
		case silence >= 2*s.pingAfter:
			line.conn.Close()
		case silence >= s.pingAfter:
			sub.Ping(context.Background()) // what becomes of it the reader sees
		}
	}
}

// errClosed ends a reader whose box nobody takes from any more.
var errClosed = errors.New("closed")

// An inbox is what is received and not yet taken, in order.
type inbox struct {
	filled chan struct{} // has a value when something is there
	room   chan struct{} // has a value when something was taken
	gone   chan struct{} // closed when nobody takes any more
	ended  chan struct{} // closed when nothing comes any more

	mu       sync.Mutex
	arrivals []intake.Arrival
	bytes    int
	spare    []intake.Arrival // what was taken last, to be used again
	err      error            // why nothing comes any more; set before ended is closed
}

func newInbox() *inbox {
	return &inbox{filled: make(chan struct{}, 1), room: make(chan struct{}, 1), gone: make(chan struct{}), ended: make(chan struct{})}
}

// put adds an arrival, and waits for room before. It reports whether somebody takes.
func (b *inbox) put(a intake.Arrival) bool {
	for {
		b.mu.Lock()
		if len(b.arrivals) < mostReceived && b.bytes < mostBytes {
			b.arrivals = append(b.arrivals, a)
			b.bytes += len(a.Data)
			b.mu.Unlock()
			signal(b.filled)
			return true
		}
		b.mu.Unlock()
		select {
		case <-b.room:
		case <-b.gone:
			return false
		}
	}
}

// take waits for arrivals, and returns all that are there; or why there are no more. They
// belong to the caller until it takes again.
func (b *inbox) take() ([]intake.Arrival, error) {
	for {
		b.mu.Lock()
		if len(b.arrivals) > 0 {
			taken := b.arrivals
			clear(b.spare)
			b.arrivals, b.spare, b.bytes = b.spare[:0], taken, 0
			b.mu.Unlock()
			signal(b.room)
			return taken, nil
		}
		b.mu.Unlock()
		select {
		case <-b.filled:
			continue
		default:
		}
		select {
		case <-b.filled:
		case <-b.ended:
			b.mu.Lock()
			left := len(b.arrivals)
			b.mu.Unlock()
			if left == 0 {
				return nil, b.err
			}
		}
	}
}

// end says that nothing comes any more.
func (b *inbox) end(err error) {
	b.err = err
	close(b.ended)
}

// close says that nobody takes any more.
func (b *inbox) close() { close(b.gone) }

// signal leaves a value, if none is there.
func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}
