package eventsource_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/railsmechanic/eventsource"
)

// A spring is a source that does what a test has it do.
type spring func(ctx context.Context, feed *eventsource.Feed) error

func (run spring) Run(ctx context.Context, feed *eventsource.Feed) error { return run(ctx, feed) }

// A logbook keeps what is logged.
type logbook struct {
	mu    sync.Mutex
	lines []string
}

func (b *logbook) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, string(line))
	return len(line), nil
}

// with counts the lines that hold all of the words.
func (b *logbook) with(words ...string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, line := range b.lines {
		holds := true
		for _, w := range words {
			holds = holds && strings.Contains(line, w)
		}
		if holds {
			n++
		}
	}
	return n
}

func (b *logbook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// What fails runs again after pauses that grow, and the log says once why.
func TestASourceRunsAgainAfterEachReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logbook{}
		began := time.Now()
		var runs []time.Duration
		fails := errors.New("nobody listens there")
		s := openWith(t, &eventsource.Settings{Logger: log.logger(), Sources: []eventsource.Source{
			spring(func(ctx context.Context, feed *eventsource.Feed) error {
				if len(runs) == 8 {
					feed.Connected()
					<-ctx.Done()
					return nil
				}
				runs = append(runs, time.Since(began))
				return fails
			}),
		}})
		if state := s.Health().Sources["eventsource_test-1"]; state != "connecting" && state != "failing" {
			t.Errorf("at first it is %q: %v", state, s.Health().Sources)
		}
		time.Sleep(time.Second)
		if st := s.Stats().Sources[0]; st.State != "failing" || st.Reason != fails.Error() {
			t.Errorf("it is %+v", st)
		}
		time.Sleep(time.Minute)
		st := s.Stats().Sources[0]
		if st.State != "ok" || st.Reason != "" || st.Connects != 1 || s.Health().Sources["eventsource_test-1"] != "ok" {
			t.Errorf("at last it is %+v", st)
		}
		pause := 100 * time.Millisecond
		for i := 1; i < len(runs); i++ {
			if waited := runs[i] - runs[i-1]; waited < pause/2 || waited > pause*3/2 {
				t.Errorf("run %d came %v after the one before, not about %v", i+1, waited, pause)
			}
			pause *= 2
		}
		if n := log.with("level=ERROR", "a source is not connected", "source=eventsource_test-1", "nobody listens there"); n != 1 {
			t.Errorf("the reason was logged %d times", n)
		}
		if n := log.with("level=INFO", "a source is connected"); n != 1 {
			t.Errorf("its return was logged %d times", n)
		}
	})
}

func TestASourceWaitsWhileItsEventsAreRefusedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &faulty{err: eventsource.ErrUnavailable}
		took := make(chan time.Duration, 1)
		s := openWith(t, &eventsource.Settings{Backend: backend, Sources: []eventsource.Source{
			spring(func(ctx context.Context, feed *eventsource.Feed) error {
				began := time.Now()
				if err := feed.Publish(ctx, "news", eventsource.Event{Data: "1"}, eventsource.Event{Data: "2"}); err != nil {
					t.Error(err)
				}
				took <- time.Since(began)
				<-ctx.Done()
				return nil
			}),
		}})
		time.Sleep(time.Minute)
		backend.fail(nil)
		if waited := <-took; waited < time.Minute || waited > 2*time.Minute {
			t.Errorf("it waited %v", waited)
		}
		if st := s.Stats(); st.Published != 2 || st.Sources[0].Published != 2 {
			t.Errorf("published %d, by the source %d", st.Published, st.Sources[0].Published)
		}
	})
}

// What a backend does not answer for may have been kept: what can be told apart by its
// id is not published twice.
func TestWhatABackendDidNotAnswerForIsNotPublishedTwice(t *testing.T) {
	backend := &forgetful{}
	done := make(chan error, 1)
	s := openWith(t, &eventsource.Settings{Backend: backend, Sources: []eventsource.Source{
		spring(func(ctx context.Context, feed *eventsource.Feed) error {
			done <- feed.Publish(ctx, "news", eventsource.Event{ID: "a", Data: "1"}, eventsource.Event{ID: "b", Data: "2"})
			<-ctx.Done()
			return nil
		}),
	}})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	page, err := s.Read(t.Context(), eventsource.Query{Channel: "news", Limit: 10})
	if err != nil || len(page.Events) != 2 {
		t.Errorf("%d events are kept, %v", len(page.Events), err)
	}
}

// A forgetful backend keeps the first record and does not answer.
type forgetful struct {
	faulty
	answers bool
}

func (b *forgetful) Publish(ctx context.Context, r *eventsource.Record) (eventsource.Kept, error) {
	kept, err := b.faulty.Publish(ctx, r)
	if !b.answers {
		b.answers = true
		return eventsource.Kept{}, eventsource.ErrUnknown
	}
	return kept, err
}

// A backend that has not answered is often away for a while: as long as it did not say what
// it has kept, that was published a second time. And what went to several channels, or to
// one whose name had a slash, was looked for in none.
func TestWhatABackendKeptIsLookedForUntilItAnswers(t *testing.T) {
	for _, channel := range []string{"news", "news/sport", "news,sport", "news,all"} {
		t.Run(channel, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := &absent{}
				done := make(chan error, 1)
				s := openWith(t, &eventsource.Settings{Backend: backend, Sources: []eventsource.Source{
					spring(func(ctx context.Context, feed *eventsource.Feed) error {
						done <- feed.Publish(ctx, channel, eventsource.Event{ID: "a", Data: "1"}, eventsource.Event{ID: "b", Data: "2"})
						<-ctx.Done()
						return nil
					}),
				}})
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if len(backend.records) != 1 {
					t.Errorf("%d records are kept", len(backend.records))
				}
				if n := s.Stats().Sources[0].Published; n != 2 {
					t.Errorf("the source published %d", n)
				}
			})
		})
	}
}

// An absent backend keeps the first record, does not answer, and can't be read for a
// minute.
type absent struct {
	forgetful
	records []eventsource.Record
	since   time.Time
}

func (b *absent) Publish(ctx context.Context, r *eventsource.Record) (eventsource.Kept, error) {
	kept, err := b.forgetful.Publish(ctx, r)
	b.records = append(b.records, eventsource.Record{Channels: slices.Clone(r.Channels), Events: slices.Clone(r.Events)})
	b.since = time.Now()
	return kept, err
}

func (b *absent) Read(_ context.Context, q eventsource.Query) (page eventsource.Page, err error) {
	if time.Since(b.since) < time.Minute {
		return page, eventsource.ErrUnavailable
	}
	for _, r := range b.records {
		for _, e := range r.Events {
			if e.ID == q.ID && slices.Contains(r.Channels, q.Channel) {
				page.Events = append(page.Events, eventsource.Stored{Event: e})
			}
		}
	}
	return page, nil
}

func (b *absent) Count(context.Context, eventsource.Query) (int, error) { return 0, nil }

func (b *absent) Channels(context.Context, string, string, int) ([]string, error) { return nil, nil }

// A source that does not end is named.
func TestASourceThatDoesNotEndIsNamed(t *testing.T) {
	release := make(chan struct{})
	s, err := eventsource.Open(&eventsource.Settings{Sources: []eventsource.Source{
		spring(func(context.Context, *eventsource.Feed) error { <-release; return nil }),
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err == nil || !strings.Contains(err.Error(), "the source eventsource_test-1 did not end") {
		t.Errorf("it ends with %v", err)
	}
	close(release)
}

// What is connected for a moment only is not connected again and again at once.
func TestASourceThatIsConnectedForAMomentWaitsLongerEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		openWith(t, &eventsource.Settings{Sources: []eventsource.Source{
			spring(func(_ context.Context, feed *eventsource.Feed) error {
				runs.Add(1)
				feed.Connected()
				return errors.New("cut off")
			}),
		}})
		time.Sleep(time.Minute)
		if n := runs.Load(); n < 5 || n > 15 {
			t.Errorf("it ran %d times in a minute", n)
		}
	})
}

func TestWhatCanNeverBePublishedIsRefusedWithItsReason(t *testing.T) {
	backend := &faulty{}
	cases := []struct {
		channel, reason string
		event           eventsource.Event
		fails           error
	}{
		{"no such name", eventsource.RefusedName, eventsource.Event{Data: "x"}, nil},
		{"", eventsource.RefusedName, eventsource.Event{Data: "x"}, nil},
		{"news.*", eventsource.RefusedName, eventsource.Event{Data: "x"}, nil},
		{"admin.x", eventsource.RefusedName, eventsource.Event{Data: "x"}, nil},
		{"news", eventsource.RefusedInvalid, eventsource.Event{ID: "a\nb", Data: "x"}, nil},
		{"news", eventsource.RefusedInvalid, eventsource.Event{Type: "eventsource.gap", Data: "x"}, nil},
		{"news", eventsource.RefusedTooLarge, eventsource.Event{Data: strings.Repeat("x", 1001)}, nil},
		{"news", eventsource.RefusedTooLarge, eventsource.Event{Data: "x"}, eventsource.ErrTooLarge},
	}
	got := make(chan error, len(cases))
	s := openWith(t, &eventsource.Settings{Backend: backend, Limits: eventsource.Limits{Body: 1000}, Sources: []eventsource.Source{
		spring(func(ctx context.Context, feed *eventsource.Feed) error {
			for _, c := range cases {
				backend.fail(c.fails)
				got <- feed.Publish(ctx, c.channel, c.event)
			}
			<-ctx.Done()
			return nil
		}),
	}})
	for _, c := range cases {
		err := <-got
		if refused, ok := errors.AsType[*eventsource.RefusedError](err); !ok || refused.Reason != c.reason {
			t.Errorf("%q, %.40v: %v", c.channel, c.event, err)
		}
	}
	if n := s.Stats().Sources[0].Published; n != 0 {
		t.Errorf("%d were published", n)
	}
}

func TestRefusalsAreCountedAndLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logbook{}
		s := openWith(t, &eventsource.Settings{Logger: log.logger(), Sources: []eventsource.Source{
			spring(func(ctx context.Context, feed *eventsource.Feed) error {
				for range 90 {
					feed.Refuse(&eventsource.RefusedError{Reason: eventsource.RefusedEmpty, Err: errors.New("nothing")})
					time.Sleep(time.Second)
				}
				feed.Refuse(&eventsource.RefusedError{Reason: eventsource.RefusedNotUTF8, Err: errors.New("bytes")})
				<-ctx.Done()
				return nil
			}),
		}})
		time.Sleep(2 * time.Minute)
		if n := log.with("level=WARN", "payloads are not published", "reason=empty", "last=nothing"); n != 2 {
			t.Errorf("90 in 90 seconds were logged %d times", n)
		}
		if log.with("reason=empty", "refused=60") != 1 || log.with("reason=not_utf8", "refused=1") != 1 {
			t.Errorf("logged were %q", log.lines)
		}
		if got := fmt.Sprint(s.Stats().Sources[0].Refusals); got != "map[empty:90 invalid:0 name:0 not_json:0 not_utf8:1 slow:0 too_large:0]" {
			t.Errorf("counted were %s", got)
		}
	})
}

// What a source has under way when the server shuts down reaches who is connected.
func TestASourceMayPublishItsLastWhileTheServerShutsDown(t *testing.T) {
	last := make(chan error, 1)
	s := openWith(t, &eventsource.Settings{Sources: []eventsource.Source{
		spring(func(ctx context.Context, feed *eventsource.Feed) error {
			feed.Connected()
			<-ctx.Done()
			time.Sleep(200 * time.Millisecond) // it takes its time
			last <- feed.Publish(context.WithoutCancel(ctx), "news", eventsource.Event{Data: "the last"})
			return nil
		}),
	}})
	got := []string{}
	next := s.Subscribe(t.Context(), "news", nil)
	go s.Shutdown(t.Context())
	for e, err := range next {
		if err == nil {
			got = append(got, e.Data)
		}
	}
	if err := <-last; err != nil || len(got) != 1 || got[0] != "the last" {
		t.Errorf("came %q, %v", got, err)
	}
}
