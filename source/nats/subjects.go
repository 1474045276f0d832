package nats

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
)

// What waits at most, on all subjects together, while events are refused. What comes
// then is lost: NATS keeps none of it.
const (
	waitingMessages = 64 << 10
	waitingBytes    = 64 << 20
)

// most is how many messages are published at once, and taken from a stream.
const most = 256

// A come is a message that came on one of the subjects.
type come struct {
	pattern string
	*nats.Msg
}

// follow publishes what comes on the subjects.
func (s *Source) follow(ctx, live context.Context, fail context.CancelCauseFunc, feed *eventsource.Feed) error {
	after, stop := outlast(ctx, live, afterwards)
	defer stop()
	lost := &losses{feed: feed, counted: map[*nats.Subscription]int{}}
	nc, err := s.connect(live, fail, lost.count)
	if err != nil {
		return err
	}
	defer func() {
		fail(errEnded)
		nc.Close()
	}()
	flow := s.intake.Flow(after, feed)
	defer flow.Close()

	came := make(chan come, most)
	if err := s.subscribe(live, nc, came); err != nil {
		return err
	}
	feed.Connected()
	var arrivals []intake.Arrival
	for {
		select {
		case c := <-came:
			arrivals = append(arrivals[:0], c.arrival())
		case <-live.Done():
			return context.Cause(live)
		}
		for more := true; more && len(arrivals) < most; {
			select {
			case c := <-came:
				arrivals = append(arrivals, c.arrival())
			default:
				more = false
			}
		}
		if err := flow.Take(arrivals...); err != nil {
			return err
		}
		lost.countAgain()
		clear(arrivals)
	}
}

// subscribe has what comes on the subjects come to came, and returns when the server
// has confirmed it.
func (s *Source) subscribe(live context.Context, nc *nats.Conn, came chan<- come) error {
	for _, pattern := range s.config.Subjects {
		sub, err := nc.QueueSubscribe(pattern, s.config.QueueGroup, func(m *nats.Msg) {
			select {
			case came <- come{pattern, m}:
			case <-live.Done():
			}
		})
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", pattern, err)
		}
		n := len(s.config.Subjects)
		if err := sub.SetPendingLimits(max(waitingMessages/n, 1), max(waitingBytes/n, 1)); err != nil {
			return fmt.Errorf("subscribe to %s: %w", pattern, err)
		}
	}
	ctx, cancel := context.WithTimeout(live, patience)
	defer cancel()
	if err := nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	if err := nc.LastError(); err != nil { // it came before the answer to Flush
		return fmt.Errorf("subscribe: %w", err)
	}
	return nil
}

// arrival is the message as the intake takes it.
func (c come) arrival() intake.Arrival {
	return intake.Arrival{Data: c.Data, Value: c.value}
}

func (c come) value(variable string) string {
	return value(variable, c.Subject, c.pattern, c.Header)
}

// value returns what stands for a variable that every message has.
func value(variable, subject, pattern string, header nats.Header) string {
	if variable == "name" {
		return subject
	}
	if name, ok := strings.CutPrefix(variable, "header:"); ok {
		return header.Get(name)
	}
	n, err := strconv.Atoi(variable)
	if err != nil {
		return ""
	}
	found, _ := intake.Wildcards(pattern, subject, ".", "*", ">")
	if n > len(found) {
		return ""
	}
	return found[n-1]
}

// losses count what the library dropped since too much waited.
type losses struct {
	feed *eventsource.Feed

	mu      sync.Mutex
	counted map[*nats.Subscription]int
}

// errLost is why something was lost.
var errLost = errors.New("it came faster than events are published, and core NATS holds nothing back: a JetStream stream does")

// count counts what a subscription has lost by now.
func (l *losses) count(sub *nats.Subscription) {
	n, err := sub.Dropped()
	if err != nil {
		return
	}
	l.mu.Lock()
	more := n - l.counted[sub]
	l.counted[sub] = n
	l.mu.Unlock()
	for range more {
		l.feed.Refuse(&eventsource.RefusedError{Reason: eventsource.RefusedSlow, Err: errLost})
	}
}

// countAgain counts what was lost on subjects of which it is known that they lose some.
func (l *losses) countAgain() {
	l.mu.Lock()
	subs := make([]*nats.Subscription, 0, len(l.counted))
	for sub := range l.counted {
		subs = append(subs, sub)
	}
	l.mu.Unlock()
	for _, sub := range subs {
		l.count(sub)
	}
}

// checkPatterns reports what is wrong with subjects that may have wildcards.
func checkPatterns(name string, patterns []string) error {
	for i, p := range patterns {
		if err := checkPattern(p); err != nil {
			return fmt.Errorf("%s[%d]: %w", name, i, err)
		}
		for _, q := range patterns[:i] {
			if overlap(p, q) {
				return fmt.Errorf("%s[%d]: %q and %q have subjects in common, which would come twice", name, i, q, p)
			}
		}
	}
	return nil
}

// checkPattern reports why p is no subject, with wildcards or without.
func checkPattern(p string) error {
	tokens := strings.Split(p, ".")
	for i, t := range tokens {
		switch {
		case t == "" || strings.ContainsFunc(t, unprintable):
			return fmt.Errorf("%q is no subject: it is tokens joined by dots, without spaces", p)
		case t == ">" && i < len(tokens)-1:
			return fmt.Errorf("%q has > before its end; * stands for one token", p)
		case t != "*" && t != ">" && strings.ContainsAny(t, "*>"):
			return fmt.Errorf("%q has a wildcard within a token; * and > stand for whole ones", p)
		}
	}
	return nil
}

// overlap reports whether some subject matches both patterns.
func overlap(p, q string) bool {
	a, b := strings.Split(p, "."), strings.Split(q, ".")
	for i := 0; ; i++ {
		switch {
		case i == len(a) || i == len(b):
			return len(a) == len(b)
		case a[i] == ">" || b[i] == ">":
			return true
		case a[i] != b[i] && a[i] != "*" && b[i] != "*":
			return false
		}
	}
}

// matching returns the first of the patterns that a subject matches; "" if none does.
func matching(patterns []string, subject string) string {
	for _, p := range patterns {
		if _, ok := intake.Wildcards(p, subject, ".", "*", ">"); ok {
			return p
		}
	}
	return ""
}

// wildcards is how many of a pattern's tokens are wildcards.
func wildcards(pattern string) (n int) {
	for t := range strings.SplitSeq(pattern, ".") {
		if t == "*" || t == ">" {
			n++
		}
	}
	return n
}

// isName reports whether a stream or a consumer can have a name.
func isName(name string) bool {
	return !strings.ContainsAny(name, `.*>/\`) && !strings.ContainsFunc(name, unprintable)
}

func unprintable(r rune) bool { return r <= ' ' || r == 0x7f }
