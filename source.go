package eventsource

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Source feeds events in from elsewhere.
type Source interface {
	// Run publishes what comes in until ctx ends, and acknowledges upstream only
	// what has been published. It returns when it can't connect or has lost its
	// connection: that is logged, and Run is called again after a while, which
	// grows from return to return and is drawn at random.
	Run(ctx context.Context, feed *Feed) error
}

// An Endpoint is a Source that is fed by HTTP requests to the server itself.
// The server serves POST on its path from the time it is opened, with the body
// limited, and asks for a grant as Channel says.
type Endpoint interface {
	Source
	http.Handler
	// Path is where it is served, such as "/api/events".
	Path() string
	// Channel names what a request must be granted to publish to, once a token
	// is configured; "" when the source looks for a secret of its own.
	Channel() string
}

// How long a source that returned waits before it runs again, at first and at most, and
// an event before it is published again: that asks nobody but the backend.
const (
	sourcePause     = 100 * time.Millisecond
	maxSourcePause  = 30 * time.Second
	maxPublishPause = time.Second
)

// steady is how long a source has to have been connected for its pauses to begin anew.
const steady = 5 * time.Second

// refusalsLogged is how often it is logged why a source's payloads were refused.
const refusalsLogged = time.Minute

// What a source is doing, as Health and Stats say it.
const (
	sourceConnecting = "connecting" // for the first time
	sourceOK         = "ok"
	sourceFailing    = "failing" // not connected, after it was or could not be
)

// The reasons for which what comes in is not published.
const (
	RefusedEmpty    = "empty"     // there is no payload
	RefusedTooLarge = "too_large" // the payload is beyond limits.body, or the record beyond what the backend holds
	RefusedNotUTF8  = "not_utf8"
	RefusedNotJSON  = "not_json" // where JSON is wanted
	RefusedName     = "name"     // it makes no name of a channel
	RefusedInvalid  = "invalid"  // it makes no event
	RefusedSlow     = "slow"     // it came faster than events are published, from where nothing can be held back
)

var refusedReasons = []string{RefusedEmpty, RefusedTooLarge, RefusedNotUTF8, RefusedNotJSON, RefusedName, RefusedInvalid, RefusedSlow}

// A RefusedError is why something that came in is never published, however often it
// comes.
type RefusedError struct {
	Reason string // one of the Refused constants
	Err    error  // more of it
}

// Error says the reason, and more.
func (e *RefusedError) Error() string { return e.Reason + ": " + e.Err.Error() }

// Unwrap returns more of the reason.
func (e *RefusedError) Unwrap() error { return e.Err }

// A Feed is how a source publishes, and says how it is. It is safe for concurrent use.
type Feed struct {
	// Set when made.
	server *Server
	source Source
	name   string // its kind and number
	done   chan struct{}

	published  atomic.Uint64 // events
	duplicates atomic.Uint64
	connects   atomic.Uint64

	mu       sync.Mutex
	state    string
	since    time.Time // when state began
	reason   string    // of the last failure
	refusals map[string]uint64
	logged   map[string]time.Time // when refusals were logged last, by reason
	unlogged map[string]uint64    // refusals since then
}

// runSource runs a source until ctx ends, again after each return.
func (s *Server) runSource(ctx context.Context, number int, src Source) *Feed {
	kind := strings.TrimPrefix(reflect.TypeOf(src).String(), "*")
	kind, _, _ = strings.Cut(kind, ".")
	f := &Feed{server: s, source: src, name: fmt.Sprintf("%s-%d", kind, number+1), done: make(chan struct{}),
		state: sourceConnecting, since: time.Now(), refusals: map[string]uint64{}, logged: map[string]time.Time{}, unlogged: map[string]uint64{}}
	for _, reason := range refusedReasons {
		f.refusals[reason] = 0
	}
	go f.run(ctx)
	return f
}

// run runs the source again after each return.
func (f *Feed) run(ctx context.Context) {
	defer close(f.done)
	pause := sourcePause
	for {
		err := f.source.Run(ctx, f)
		if ctx.Err() != nil {
			return
		}
		if f.failed(err) >= steady {
			pause = sourcePause
		}
		if !sleep(ctx, pause/2+rand.N(pause)) {
			return
		}
		pause = min(2*pause, maxSourcePause)
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

// failed notes a return, and returns for how long the source had been connected. What
// goes on failing for the same reason is logged once.
func (f *Feed) failed(err error) (was time.Duration) {
	if err == nil {
		err = errors.New("it returned")
	}
	f.mu.Lock()
	level, now := slog.LevelError, time.Now()
	switch f.state {
	case sourceOK:
		was = now.Sub(f.since)
	case sourceFailing:
		if f.reason == err.Error() {
			level = slog.LevelDebug
		}
	}
	if f.state != sourceFailing {
		f.state, f.since = sourceFailing, now
	}
	f.reason = err.Error()
	f.mu.Unlock()
	f.server.log.Log(context.Background(), level, "a source is not connected", "source", f.name, "error", err)
	return was
}

// Connected says that the source is connected upstream, and gets what comes in.
func (f *Feed) Connected() {
	f.connects.Add(1)
	f.mu.Lock()
	fresh := f.state != sourceOK
	if fresh {
		f.state, f.since, f.reason = sourceOK, time.Now(), ""
	}
	f.mu.Unlock()
	if fresh {
		f.server.log.Info("a source is connected", "source", f.name)
	}
}

// Name is the source's kind and number, such as "redis-1".
func (f *Feed) Name() string { return f.name }

// Limits returns the limits in force: no payload may be longer than Body.
func (f *Feed) Limits() Limits { return *f.server.limits() }

// Publish publishes events to a channel, or to several joined by commas, as
// Server.Publish does, and waits for as long as they are refused for a reason that
// passes: that holds the source back. It returns ctx's error when that has ended
// first, or *RefusedError: then Refuse counts and logs it.
//
// If a backend did not answer whether it has kept the events, those with an ID that it
// has kept are not published again.
func (f *Feed) Publish(ctx context.Context, channel string, events ...Event) error {
	for i := range events {
		if int64(len(events[i].Data)) > f.server.limits().Body {
			return &RefusedError{RefusedTooLarge, fmt.Errorf("%d bytes are above limits.body, which is %d", len(events[i].Data), f.server.limits().Body)}
		}
	}
	for pause := sourcePause; ; pause = min(2*pause, maxPublishPause) {
		_, p := f.server.publishEvents(ctx, channel, events, f.server.feed)
		switch {
		case p == nil:
			f.published.Add(uint64(len(events)))
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case p.Status == http.StatusRequestEntityTooLarge:
			return &RefusedError{RefusedTooLarge, p}
		case p.Status == http.StatusNotFound:
			return &RefusedError{RefusedName, p}
		case !p.passing():
			return &RefusedError{RefusedInvalid, p}
		}
		if !sleep(ctx, pause/2+rand.N(pause)) {
			return ctx.Err()
		}
		if p.Outcome != "" {
			missing := f.missing(ctx, channel, events)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			f.published.Add(uint64(len(events) - len(missing)))
			if events = missing; len(events) == 0 {
				return nil
			}
		}
	}
}

// Try publishes as Server.Publish does, and waits for nothing that Publish waits for: for
// a source that can tell its publisher to come back. Errors are *Problem.
func (f *Feed) Try(ctx context.Context, channel string, events ...Event) (Receipt, error) {
	receipt, err := f.server.Publish(ctx, channel, events...)
	if err == nil {
		f.published.Add(uint64(len(events)))
	}
	return receipt, err
}

// missing returns the events that are not known to be kept. Those without an ID are not.
func (f *Feed) missing(ctx context.Context, channel string, events []Event) []Event {
	var missing []Event
	for _, e := range events {
		if !f.Kept(ctx, channel, e.ID) {
			missing = append(missing, e)
		}
	}
	return missing
}

// Kept reports whether an event of the channel that bears an ID of its publisher's is
// kept. It waits for as long as the backend does not say so for a reason that passes; when
// ctx has ended first it reports false.
func (f *Feed) Kept(ctx context.Context, channel, id string) bool {
	if id == "" {
		return false
	}
	for pause := sourcePause; ; pause = min(2*pause, maxPublishPause) {
		page, err := f.server.Read(ctx, Query{Channel: firstName(channel), ID: id, Limit: 1})
		if p, ok := errors.AsType[*Problem](err); !ok || !p.passing() {
			return err == nil && len(page.Events) > 0
		}
		if !sleep(ctx, pause/2+rand.N(pause)) {
			return false
		}
	}
}

// firstName returns the channel that events to one, or to several joined by commas, are
// kept in.
func firstName(channel string) string {
	names, p := parseNames(channel, false, math.MaxInt)
	switch {
	case p != nil:
		return channel
	case slices.Contains(names, globalName): // and then in none besides
		return globalName
	}
	return names[0]
}

// Newest returns the newest events of a channel that are kept, newest first, and at most
// so many. Of several joined by commas it is the first. Errors are *Problem.
func (f *Feed) Newest(ctx context.Context, channel string, limit int) ([]Event, error) {
	page, err := f.server.Read(ctx, Query{Channel: firstName(channel), Limit: limit, Descending: true})
	if err != nil {
		return nil, err
	}
	events := make([]Event, len(page.Events))
	for i := range page.Events {
		events[i] = page.Events[i].Event
	}
	return events, nil
}

// Repeated counts something that came in again and is not published again.
func (f *Feed) Repeated() { f.duplicates.Add(1) }

// Refuse counts something that came in and is not published, and logs why, once a minute
// for each reason.
func (f *Feed) Refuse(err *RefusedError) {
	if n := f.refuse(err.Reason); n > 0 {
		f.server.log.Warn("a source's payloads are not published", "source", f.name, "reason", err.Reason,
			"refused", n, "last", clip(err.Err.Error()))
	}
}

// refuse counts a refusal, and returns how many are to be logged now.
func (f *Feed) refuse(reason string) (due uint64) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusals[reason]++
	f.unlogged[reason]++
	if last, ok := f.logged[reason]; ok && now.Sub(last) < refusalsLogged {
		return 0
	}
	due = f.unlogged[reason]
	f.logged[reason], f.unlogged[reason] = now, 0
	return due
}

// SourceStats are what a source has done, and how it is.
type SourceStats struct {
	Name       string            `json:"name"`       // its kind and number
	State      string            `json:"state"`      // "connecting", "ok" or "failing"
	Since      time.Time         `json:"since"`      // when that began
	Reason     string            `json:"reason"`     // why it is failing
	Published  uint64            `json:"published"`  // events
	Duplicates uint64            `json:"duplicates"` // what came in again and was not published again
	Connects   uint64            `json:"connects"`   // how often it was connected
	Refusals   map[string]uint64 `json:"refusals"`   // what was not published, by reason
}

func (f *Feed) stats() SourceStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return SourceStats{Name: f.name, State: f.state, Since: f.since, Reason: f.reason, Published: f.published.Load(),
		Duplicates: f.duplicates.Load(), Connects: f.connects.Load(), Refusals: maps.Clone(f.refusals)}
}
