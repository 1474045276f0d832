// Package intake is what the sources of brokers share: the way from something that
// comes in to an event that is published, once.
package intake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/railsmechanic/eventsource"
)

const (
	// remembered is how many of the last keys a source knows again, at least. A broker
	// brings again what was not acknowledged, or whose acknowledgement it lost: no more
	// than a source has under way, and what the broker had not yet written down.
	remembered = 1 << 15

	// What is published at once at most.
	mostEvents = 256
	mostBytes  = 256 << 10

	// closing is how long the end of a flow may take.
	closing = 2 * time.Second
)

// Config says what becomes of what comes in.
type Config struct {
	// Channel is the template of the channel, or of several joined by commas.
	Channel string
	// Event is the template of the event's type. Empty: it has none.
	Event string
	// ID is the template of the event's id. Empty, or where it comes out empty: the
	// server gives one.
	ID string
	// JSON refuses payloads that are no JSON document (RFC 8259).
	JSON bool
	// Rollup is a period: equal payloads in it are counted, and published as one JSON
	// object {"payload": n}, for each channel and type. 0: every payload is an event.
	Rollup time.Duration
}

// An Intake is what a source does with what comes in. It outlives the connections to
// the broker. It is safe for concurrent use.
type Intake struct {
	// Set when made.
	channel, event, id Template
	json               bool
	rollup             time.Duration
	commas             int  // of channel's text
	global             bool // it names "all"

	mu   sync.Mutex
	seen window
}

// New returns an intake whose templates may have the variables. Its error names the
// member of Config, in lower case, and what would be right.
func New(c Config, known Variables) (*Intake, error) {
	in := &Intake{json: c.JSON, rollup: c.Rollup, seen: newWindow(remembered)}
	if c.Channel == "" {
		return nil, errors.New("channel: none is given; name the one that events go to")
	}
	var errs []error
	for _, t := range []struct {
		name, text string
		to         *Template
	}{{"channel", c.Channel, &in.channel}, {"event", c.Event, &in.event}, {"id", c.ID, &in.id}} {
		var err error
		if *t.to, err = Parse(t.text, known); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
		}
	}
	if len(errs) == 0 {
		errs = in.try()
	}
	switch {
	case c.Rollup < 0 || c.Rollup > 0 && c.Rollup < time.Millisecond:
		errs = append(errs, fmt.Errorf("rollup: %v is below 1ms", c.Rollup))
	case c.Rollup > 0 && c.ID != "":
		errs = append(errs, errors.New("id: a roll-up is of many payloads; leave the id to the server"))
	}
	return in, errors.Join(errs...)
}

// try looks at what the templates make of a text that any name may hold.
func (in *Intake) try() (errs []error) {
	any := func(string) string { return "x" }
	channel := in.channel.Text(any)
	if err := eventsource.CheckChannel(channel); err != nil {
		errs = append(errs, fmt.Errorf("channel: %w", err))
	}
	if err := eventsource.CheckType(in.event.Text(any)); err != nil {
		errs = append(errs, err)
	}
	in.commas, in.global = strings.Count(channel, ","), namesAll(channel)
	return errs
}

// namesAll reports whether "all" is among names joined by commas.
func namesAll(names string) bool {
	for name := range strings.SplitSeq(names, ",") {
		if name == "all" {
			return true
		}
	}
	return false
}

// Event returns the event that a payload makes, and the channel, or several, that it goes
// to. What stands for a variable is part of one name: it makes no two of them, nor "all".
func (in *Intake) Event(data []byte, value func(variable string) string) (channel string, e eventsource.Event, refused *eventsource.RefusedError) {
	if channel, refused = in.place(value); refused != nil {
		return "", eventsource.Event{}, refused
	}
	return channel, eventsource.Event{ID: in.id.Text(value), Type: in.event.Text(value), Data: string(data)}, nil
}

// Varies reports whether the channel is another for each that comes in.
func (in *Intake) Varies() bool {
	_, fixed := in.channel.fixed()
	return !fixed
}

func (in *Intake) place(value func(variable string) string) (string, *eventsource.RefusedError) {
	if text, ok := in.channel.fixed(); ok {
		return text, nil
	}
	channel := in.channel.Text(value)
	var err error
	switch {
	case strings.Count(channel, ",") != in.commas:
		err = fmt.Errorf("%q: a comma may stand in the configuration only", channel)
	case !in.global && namesAll(channel):
		err = fmt.Errorf("%q: \"all\" may stand in the configuration only", channel)
	default:
		return channel, nil
	}
	return "", &eventsource.RefusedError{Reason: eventsource.RefusedName, Err: err}
}

// An Arrival is something that came in.
type Arrival struct {
	Data []byte
	// Value returns what stands for a variable in templates.
	Value func(variable string) string
	// Key is what the broker knows it by: it is published once. Empty: it can't come
	// twice, or can't be told.
	Key string
	// Again says that the broker may have brought it before.
	Again bool
	// Done, if there is one, is called once: with nil when it needs not come again, or
	// with *eventsource.RefusedError when it is never published. It is not called
	// where the flow ends first.
	Done func(err error)
}

func (a *Arrival) done(err error) {
	if a.Done != nil {
		a.Done(err)
	}
}

// A Flow is what comes in over one connection. Its methods but for Close are called by
// one goroutine.
type Flow struct {
	// Set when made.
	*Intake
	ctx  context.Context // Run's: the flow is no longer than that
	feed *eventsource.Feed
	roll *rollup // nil: nothing is counted

	// Owned by who calls Take: what is to be published together.
	group  []Arrival
	keys   map[string]struct{} // of group
	events []eventsource.Event
	to     string
	bytes  int
}

// Flow begins one that lasts until Close, or until ctx ends.
func (in *Intake) Flow(ctx context.Context, feed *eventsource.Feed) *Flow {
	f := &Flow{Intake: in, ctx: ctx, feed: feed, keys: map[string]struct{}{}}
	if in.rollup > 0 {
		f.roll = newRollup(ctx, in, feed)
	}
	return f
}

// Take publishes what came in, in order, or counts it; it waits while events are
// refused for a reason that passes. Its error is ctx's.
func (f *Flow) Take(arrivals ...Arrival) error {
	for i := range arrivals {
		if err := f.take(&arrivals[i]); err != nil {
			return err
		}
	}
	return f.flush()
}

// take adds an arrival to what is to be published.
func (f *Flow) take(a *Arrival) error {
	if f.roll != nil && f.roll.holds(a) { // asked before known: what is published is first known, then not held
		f.feed.Repeated()
		return nil
	}
	if f.known(a.Key) {
		f.feed.Repeated()
		a.done(nil)
		return nil
	}
	if err := f.check(a.Data); err != nil {
		f.refuse(a, err)
		return nil
	}
	channel, e, err := f.Event(a.Data, a.Value)
	if err != nil {
		f.refuse(a, err)
		return nil
	}
	if f.roll != nil {
		return f.roll.count(counted{channel, e.Type}, a)
	}
	if len(f.group) > 0 && (channel != f.to || len(f.group) == mostEvents || f.bytes+len(e.Data) > mostBytes || f.grouped(a, &e)) {
		if err := f.flush(); err != nil {
			return err
		}
		if f.known(a.Key) {
			return f.take(a)
		}
	}
	if a.Again && f.feed.Kept(f.ctx, channel, e.ID) {
		f.feed.Repeated()
		a.done(nil)
		return nil
	}
	if a.Again && f.ctx.Err() != nil { // whether it is kept was not told
		return f.ctx.Err()
	}
	f.to = channel
	if a.Key != "" {
		f.keys[a.Key] = struct{}{}
	}
	f.group, f.events = append(f.group, *a), append(f.events, e)
	f.bytes += len(e.Data)
	return nil
}

// grouped reports whether an arrival is among those about to be published, by its key, or
// where it comes again by its id.
func (f *Flow) grouped(a *Arrival, e *eventsource.Event) bool {
	if _, ok := f.keys[a.Key]; ok {
		return true
	}
	return a.Again && e.ID != "" && slices.ContainsFunc(f.events, func(other eventsource.Event) bool { return other.ID == e.ID })
}

// flush publishes the group: together, or one by one where that is refused.
func (f *Flow) flush() error {
	if len(f.group) == 0 {
		return nil
	}
	defer func() {
		clear(f.group)
		clear(f.events)
		clear(f.keys)
		f.group, f.events, f.bytes = f.group[:0], f.events[:0], 0
	}()
	err := f.feed.Publish(f.ctx, f.to, f.events...)
	refused, isRefused := errors.AsType[*eventsource.RefusedError](err)
	switch {
	case isRefused && len(f.group) > 1:
		for i := range f.group {
			if err := f.publish(&f.group[i], f.events[i]); err != nil {
				return err
			}
		}
		return nil
	case isRefused:
		f.refuse(&f.group[0], refused)
		return nil
	case err != nil:
		return err
	}
	for i := range f.group {
		f.remember(f.group[i].Key)
		f.group[i].done(nil)
	}
	return nil
}

// publish publishes one event.
func (f *Flow) publish(a *Arrival, e eventsource.Event) error {
	err := f.feed.Publish(f.ctx, f.to, e)
	if refused, ok := errors.AsType[*eventsource.RefusedError](err); ok {
		f.refuse(a, refused)
		return nil
	}
	if err != nil {
		return err
	}
	f.remember(a.Key)
	a.done(nil)
	return nil
}

// refuse counts what is never published.
func (f *Flow) refuse(a *Arrival, err *eventsource.RefusedError) {
	f.feed.Refuse(err)
	a.done(err)
}

// check refuses a payload that no event can have.
func (f *Flow) check(data []byte) *eventsource.RefusedError {
	switch limit := f.feed.Limits().Body; {
	case len(data) == 0:
		return &eventsource.RefusedError{Reason: eventsource.RefusedEmpty, Err: errors.New("there is no payload")}
	case int64(len(data)) > limit:
		return &eventsource.RefusedError{Reason: eventsource.RefusedTooLarge, Err: fmt.Errorf("%d bytes are above limits.body, which is %d", len(data), limit)}
	case !utf8.Valid(data):
		return &eventsource.RefusedError{Reason: eventsource.RefusedNotUTF8, Err: errors.New("the payload is not valid UTF-8")}
	case f.json && !json.Valid(data):
		return &eventsource.RefusedError{Reason: eventsource.RefusedNotJSON, Err: errors.New("the payload is no JSON document")}
	}
	return nil
}

// Close publishes what is counted, and ends the flow. While that is refused for a reason
// that passes it waits, until ctx has ended; then it takes no longer than two seconds. What
// it could not publish is not done.
func (f *Flow) Close() {
	if f.roll != nil {
		f.roll.close()
	}
}

// known reports whether what has a key has been published.
func (in *Intake) known(key string) bool {
	if key == "" {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.seen.has(key)
}

func (in *Intake) remember(key string) {
	if key == "" {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.seen.add(key)
}

// A window is a set of the keys that came last: at least so many, and at most twice as
// many.
type window struct {
	most           int
	latest, before map[string]struct{}
}

func newWindow(most int) window { return window{most: most, latest: map[string]struct{}{}} }

func (w *window) has(key string) bool {
	_, ok := w.latest[key]
	if !ok {
		_, ok = w.before[key]
	}
	return ok
}

func (w *window) add(key string) {
	if len(w.latest) >= w.most {
		w.before, w.latest = w.latest, make(map[string]struct{}, w.most)
	}
	w.latest[key] = struct{}{}
}
