package eventsource_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
)

// A shelf is a file whose reads a test counts, and can have fail or wait.
type shelf struct {
	*sqlite.Backend
	reads  atomic.Int64
	failed atomic.Bool

	// Called before each read, and after each.
	before, after atomic.Pointer[func(q eventsource.Query)]
}

// call calls what is set.
func call(hook *atomic.Pointer[func(q eventsource.Query)], q eventsource.Query) {
	if f := hook.Load(); f != nil {
		(*f)(q)
	}
}

func (b *shelf) Read(ctx context.Context, q eventsource.Query) (eventsource.Page, error) {
	b.reads.Add(1)
	call(&b.before, q)
	if b.failed.Load() {
		return eventsource.Page{}, fmt.Errorf("%w: out for lunch", eventsource.ErrUnavailable)
	}
	page, err := b.Backend.Read(ctx, q)
	call(&b.after, q)
	return page, err
}

// file returns the backend of a file of the test's own.
func file(t testing.TB, name string) *shelf {
	t.Helper()
	b, err := sqlite.New(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &shelf{Backend: b}
}

// newFile returns the name of a file that does not exist yet.
func newFile(t testing.TB) string { return filepath.Join(t.TempDir(), "events.db") }

// numbers publishes so many events, with their numbers as data, and returns their ids.
func numbers(t testing.TB, s *eventsource.Server, channel string, from, to int) []string {
	t.Helper()
	var ids []string
	for i := from; i < to; i++ {
		r, err := s.Publish(t.Context(), channel, eventsource.Event{Data: fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.IDs...)
	}
	return ids
}

// expectNumbers reads events that count from one number up to another.
func (s *stream) expectNumbers(t testing.TB, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if b := s.event(); b.data != fmt.Sprint(i) || b.event != "" {
			t.Fatalf("got %q %q, not %d", b.event, b.data, i)
		}
	}
}

func TestWhoComesBackAfterARestartMissesNothing(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		name := newFile(t)
		n := path.node(t, &eventsource.Settings{Backend: file(t, name)})
		ids := numbers(t, n.Server, "a.x", 0, 20)
		own, err := n.Publish(t.Context(), "a.y", eventsource.Event{ID: "mine", Data: "20"})
		if err != nil || own.IDs[0] != "mine" {
			t.Fatal(own, err)
		}
		numbers(t, n.Server, "all", 21, 22)
		if err := n.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		n = path.node(t, &eventsource.Settings{Backend: file(t, name)})
		for _, tc := range []struct {
			channels, id string
			next         int
		}{
			{"a.x,a.y", ids[4], 5},
			{"a.*", ids[4], 5},
			{"*", ids[0], 1},
			{"a.y,a.x", "mine", 21},
			{"a.*", ids[19], 20},
		} {
			s := n.follow(t, "/"+tc.channels, "Last-Event-ID", tc.id)
			s.expectNumbers(t, tc.next, 22)
			defer s.close()
		}
		if st := n.Stats(); st.Gaps != 0 {
			t.Errorf("%d gaps were told of", st.Gaps)
		}
		s := n.follow(t, "/a.x?history=3")
		s.expectNumbers(t, 18, 20)
		s.expectNumbers(t, 21, 22)
		numbers(t, n.Server, "a.x", 22, 30)
		s.expectNumbers(t, 22, 30)
	})
}

// Only a few events stand in the log: the others come from the file, in pages, while
// more is published.
func TestWhoComesFromBelowTheLogsGetsPagesAndThenThem(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		b := file(t, newFile(t))
		n := path.node(t, &eventsource.Settings{Backend: b, History: eventsource.History{Events: 8}})
		const before, after = 2000, 300
		events := make([]eventsource.Event, before)
		for i := range events {
			events[i].Data = fmt.Sprint(i)
		}
		r, err := n.Publish(t.Context(), "news", events...)
		if err != nil {
			t.Fatal(err)
		}
		var followers sync.WaitGroup
		for _, from := range []int{0, 7, before / 2, before - 20, before - 3} {
			s := n.follow(t, "/news,other", "Last-Event-ID", r.IDs[from])
			followers.Go(func() {
				defer s.close()
				s.expectNumbers(t, from+1, before+after)
			})
		}
		numbers(t, n.Server, "news", before, before+after)
		followers.Wait()
		st := n.Stats()
		if st.Gaps != 0 || st.Recalled < before {
			t.Errorf("%d gaps, %d events recalled", st.Gaps, st.Recalled)
		}
	})
}

func TestSubscribeComesFromBelowTheLogsToo(t *testing.T) {
	s := openWith(t, &eventsource.Settings{Backend: file(t, newFile(t)), History: eventsource.History{Events: 8}})
	ids := numbers(t, s, "news", 0, 700)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	next := 1
	for e, err := range s.Subscribe(ctx, "news", &eventsource.Subscription{LastEventID: ids[0]}) {
		if err != nil || e.Data != fmt.Sprint(next) || e.Channel != "news" {
			t.Fatal(e, err)
		}
		if next++; next == 700 {
			numbers(t, s, "news", 700, 702)
		}
		if next == 702 {
			break
		}
	}
}

// After a restart nothing is in the logs. What was there is read once, however many
// come back.
func TestTheTailOfAChannelIsReadOnceForAllWhoComeBack(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		name := newFile(t)
		n := path.node(t, &eventsource.Settings{Backend: file(t, name)})
		ids := numbers(t, n.Server, "news", 0, 100)
		if err := n.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := file(t, name)
		n = path.node(t, &eventsource.Settings{Backend: b})
		const many = 200
		var followers sync.WaitGroup
		for i := range many {
			followers.Go(func() {
				s := n.follow(t, "/news", "Last-Event-ID", ids[i%100])
				defer s.close()
				s.expectNumbers(t, i%100+1, 100)
			})
		}
		followers.Wait()
		if reads := b.reads.Load(); reads != 2 { // of news and of all
			t.Errorf("%d reads for %d consumers", reads, many)
		}
	})
}

// What is in the logs is not asked for again.
func TestTheLatestEventsAreReadOnceForAllWhoAskForThem(t *testing.T) {
	name := newFile(t)
	n := newNode(t, &eventsource.Settings{Backend: file(t, name)})
	numbers(t, n.Server, "few", 0, 3)
	numbers(t, n.Server, "many", 0, 300)
	if err := n.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := file(t, name)
	n = newNode(t, &eventsource.Settings{Backend: b})
	for range 20 {
		n.follow(t, "/few?history=3").expectNumbers(t, 0, 3)
		n.follow(t, "/many?history=5").expectNumbers(t, 295, 300)
	}
	if reads := b.reads.Load(); reads != 3 { // of both, and of all
		t.Errorf("%d reads", reads)
	}
	numbers(t, n.Server, "few", 3, 4)
	n.follow(t, "/few?history=9").expectNumbers(t, 0, 4)
	if reads := b.reads.Load(); reads != 3 {
		t.Errorf("%d reads with one event more", reads)
	}
}

func TestAStormOverAFileIsWholeThoughTheLogsAreShort(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		st := path.storm(t, &eventsource.Settings{Backend: file(t, newFile(t)),
			Timeout: 30 * time.Second, History: eventsource.History{Events: 4}})
		to := []string{"w.a", "w.b", "w.b.c", "w.d.e.f", "all", "w.a,w.b", "w.b.c,w.d.e.f"}
		st.checkWhole(st.blow(plan{
			publishers: 32, each: 20, followers: 100, cuts: 300,
			paths:    []string{"w.*", "*", "w.a,w.*", "w.a,w.b,w.b.*,w.d.*"},
			channels: func(p, n int) string { return to[(p+n)%len(to)] },
		}))
		if n := st.Stats().Recalled; n == 0 {
			t.Error("nobody came from below the logs")
		}
	})
}

func TestBeyondTheRetentionAGapIsTold(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Backend: file(t, newFile(t)),
			History: eventsource.History{Events: 4}, Retention: eventsource.Retention{Events: 20}})
		ids := numbers(t, n.Server, "news", 0, 200)
		eventually(t, "the oldest are gone", func() bool {
			c, err := n.Count(t.Context(), eventsource.Query{Channel: "news"})
			return err == nil && c == 20
		})
		s := n.follow(t, "/news", "Last-Event-ID", ids[178])
		s.gap(ids[178], ids[180])
		s.expectNumbers(t, 196, 200) // as many as history has
		s = n.follow(t, "/news", "Last-Event-ID", ids[179])
		s.expectNumbers(t, 180, 200)
		n.follow(t, "/news", "Last-Event-ID", "never heard of").gap("never heard of", ids[180])
	})
}

func TestWhatComesFromBelowTheLogsIsFilteredAndWrappedToo(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		name := newFile(t)
		n := path.node(t, &eventsource.Settings{Backend: file(t, name), History: eventsource.History{Events: 2}})
		first := publish(t, n.Server, "a,b", eventsource.Event{Data: "first"})[0]
		live := n.follow(t, "/b,a?envelope=1&event=wanted", "Last-Event-ID", first)
		for i := range 50 {
			publish(t, n.Server, "a", eventsource.Event{Type: "unwanted", Data: "no"})
			publish(t, n.Server, "a,b", eventsource.Event{Type: "wanted", Data: fmt.Sprintf("%d\r\nline", i), Retry: time.Second})
		}
		again := n.follow(t, "/b,a?envelope=1&event=wanted", "Last-Event-ID", first)
		for range 50 {
			if l, a := live.event(), again.event(); l != a || !strings.Contains(a.data, `"channel":"b"`) {
				t.Fatalf("live %+v\nnow  %+v", l, a)
			}
		}
	})
}

// What a backend can't tell for the moment is no gap: the consumer comes back.
func TestWhileTheFileCantBeReadWhoComesBackIsToldToTryAgain(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		name := newFile(t)
		b := file(t, name)
		n := path.node(t, &eventsource.Settings{Backend: b, History: eventsource.History{Events: 2}})
		ids := numbers(t, n.Server, "news", 0, 1000)
		b.failed.Store(true)
		n.do(t, "GET", "/news", nil, "Last-Event-ID", ids[0]).refused(t, 503, "out for lunch")
		n.passing(t, "/news?last_event_id="+ids[0], "out for lunch")
		n.follow(t, "/news").close() // who asks for nothing is served
		n.follow(t, "/news", "Last-Event-ID", ids[998]).expectNumbers(t, 999, 1000)
		b.failed.Store(false)

		// In the middle of it, too: the stream ends, and nothing was skipped.
		var reads atomic.Int64
		b.before.Store(new(func(q eventsource.Query) {
			if q.After > 0 && reads.Add(1) > 3 {
				b.failed.Store(true)
			}
		}))
		s := n.follow(t, "/news", "Last-Event-ID", ids[0])
		next := 1
		for {
			got, ok := s.nextOrEnd()
			if !ok {
				break
			}
			if got.data == "" {
				continue
			}
			if got.data != fmt.Sprint(next) {
				t.Fatalf("got %q, not %d", got.data, next)
			}
			next++
		}
		if next == 1 || next == 1000 {
			t.Errorf("it ended at %d", next)
		}
		b.before.Store(nil)
		b.failed.Store(false)
		n.follow(t, "/news", "Last-Event-ID", ids[next-1]).expectNumbers(t, next, 1000)
	})
}

// A copy of a file that was taken earlier knows less than the ids that consumers have.
func TestAFileThatWasRestoredIsAGapToWhoHasSeenMore(t *testing.T) {
	name, copied := newFile(t), newFile(t)
	n := newNode(t, &eventsource.Settings{Backend: file(t, name)})
	ids := numbers(t, n.Server, "news", 0, 10)
	if err := sqlite.Backup(t.Context(), name, copied); err != nil {
		t.Fatal(err)
	}
	later := numbers(t, n.Server, "news", 10, 20)
	if err := n.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	n = newNode(t, &eventsource.Settings{Backend: file(t, copied)})
	numbers(t, n.Server, "news", 10, 30) // with the same Seqs
	n.follow(t, "/news", "Last-Event-ID", ids[5]).expectNumbers(t, 6, 30)
	n.follow(t, "/news", "Last-Event-ID", later[4]).gap(later[4], ids[0])
}

// Each page with nothing that the filter wants once took one of the places for those who
// catch up away for good, until nobody could any more.
func TestPagesOfWhatIsNotWantedKeepNobodyFromCatchingUp(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Backend: file(t, newFile(t)), History: eventsource.History{Events: 2}})
		first := publish(t, n.Server, "news", eventsource.Event{Data: "first"})[0]
		unwanted := make([]eventsource.Event, 1000)
		for i := range unwanted {
			unwanted[i] = eventsource.Event{Type: "unwanted", Data: "no"}
		}
		for range 8 {
			publish(t, n.Server, "news", unwanted...)
		}
		numbers(t, n.Server, "news", 0, 1)
		for range 9 { // 31 such pages each, and 256 places
			s := n.follow(t, "/news?event=message", "Last-Event-ID", first)
			s.expectNumbers(t, 0, 1)
			s.close()
		}
	})
}

// What a consumer does not want is passed over page by page. It is told how far, so that
// it need not be once more, and who has left is not looked at further.
func TestPagesOfWhatIsNotWantedTellHowFarTheyCame(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		b := file(t, newFile(t))
		n := path.node(t, &eventsource.Settings{Backend: b, History: eventsource.History{Events: 2}})
		ids := numbers(t, n.Server, "news", 0, 2000)
		s := n.follow(t, "/news?event=none", "Last-Event-ID", ids[0])
		eventually(t, "its last id has moved", func() bool {
			b, ok := s.nextOrEnd()
			return ok && b.hasID && seqOf(b.id) > 1000
		})
		s.close()

		leaves := n.follow(t, "/news?event=none", "Last-Event-ID", ids[0])
		wait := make(chan struct{})
		b.before.Store(new(func(q eventsource.Query) { <-wait }))
		leaves.close()
		close(wait)
		eventually(t, "it has left", func() bool { st := n.Stats(); return st.Replays+st.Consumers == 0 })
	})
}

// Nobody gets what came before, and nobody is told of a gap where nothing did.
func TestWithoutHistoryARestartIsNoGapToWhoMissedNothing(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		name := newFile(t)
		settings := func() *eventsource.Settings {
			return &eventsource.Settings{Backend: file(t, name), History: eventsource.History{Events: -1}}
		}
		n := path.node(t, settings())
		ids := numbers(t, n.Server, "news", 0, 3)
		numbers(t, n.Server, "other", 0, 3)
		if err := n.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		n = path.node(t, settings())
		s := n.follow(t, "/news", "Last-Event-ID", ids[2])
		numbers(t, n.Server, "news", 3, 4)
		s.expectNumbers(t, 3, 4)
		n.follow(t, "/news", "Last-Event-ID", ids[1]).gap(ids[1], ids[2])
	})
}

// A log that was made to be filled once stayed for good, and counted, when another could
// not be read.
func TestWhoCouldNotBeToldWhereItStandsLeavesNoChannel(t *testing.T) {
	name := newFile(t)
	n := newNode(t, &eventsource.Settings{Backend: file(t, name)})
	ids := numbers(t, n.Server, "news", 0, 2)
	if err := n.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := file(t, name)
	b.before.Store(new(func(q eventsource.Query) { b.failed.Store(q.Channel == "all") }))
	n = newNode(t, &eventsource.Settings{Backend: b, Limits: eventsource.Limits{Channels: 3}})
	for i := range 5 {
		n.do(t, "GET", fmt.Sprintf("/none%d", i), nil, "Last-Event-ID", ids[0]).refused(t, 503, "out for lunch")
		for _, err := range n.Server.Subscribe(t.Context(), fmt.Sprintf("nor%d", i), &eventsource.Subscription{LastEventID: ids[0]}) {
			if err == nil {
				t.Error("nothing was wrong")
			}
		}
	}
	n.follow(t, "/other").close()
}

// What a log was filled with was once kept there beyond its own time.
func TestWhatALogIsFilledWithExpiresThereToo(t *testing.T) {
	name := newFile(t)
	n := newNode(t, &eventsource.Settings{Backend: file(t, name)})
	first := numbers(t, n.Server, "news", 0, 1)[0]
	short := publish(t, n.Server, "news", eventsource.Event{Data: "1", TTL: 1500 * time.Millisecond})[0]
	last := numbers(t, n.Server, "news", 2, 3)[0]
	if err := n.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	n = newNode(t, &eventsource.Settings{Backend: file(t, name)})
	n.follow(t, "/news", "Last-Event-ID", first).expectNumbers(t, 1, 3)
	eventually(t, "its time is over", func() bool {
		c, err := n.Count(t.Context(), eventsource.Query{Channel: "news"})
		return err == nil && c == 2
	})
	// The log counts from when it was filled, to the millisecond.
	eventually(t, "it is in the log no longer", func() bool {
		s := n.follow(t, "/news", "Last-Event-ID", first)
		defer s.close()
		b := s.event()
		return b.event == "eventsource.gap" || b.data != "1"
	})
	n.follow(t, "/news", "Last-Event-ID", short).expectNumbers(t, 2, 3)
	s := n.follow(t, "/news", "Last-Event-ID", first)
	s.gap(first, last)
	s.expectNumbers(t, 2, 3)
}

func TestWhoComesFromBelowTheLogsIsEndedWithItsToken(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		b := file(t, newFile(t))
		settings := eventsource.Settings{Backend: b, AuthToken: "root", Public: []string{},
			Keys: []eventsource.Key{{Token: "one", Subscribe: []string{"news"}}}, History: eventsource.History{Events: 2}}
		n := path.node(t, &settings)
		ids := numbers(t, n.Server, "news", 0, 1000)
		once := sync.OnceFunc(func() {
			without := settings
			without.Keys = nil
			if err := n.Reload(&without); err != nil {
				t.Error(err)
			}
		})
		b.before.Store(new(func(q eventsource.Query) {
			if q.After > 2 {
				once()
			}
		}))
		s := n.follow(t, "/news?access_token=one", "Last-Event-ID", ids[0])
		for {
			got, ok := s.nextOrEnd()
			if !ok {
				t.Fatal("it ended without a word")
			}
			if got.event == "eventsource.end" {
				if got.data != `{"reason":"revoked"}` {
					t.Error(got.data)
				}
				return
			}
			if got.data == "999" {
				t.Fatal("it got everything")
			}
		}
	})
}

func TestWhoMayNotSeePersonsDoesNotGetThemFromTheFile(t *testing.T) {
	name := newFile(t)
	settings := func() *eventsource.Settings {
		return &eventsource.Settings{Backend: file(t, name), AuthToken: "root", History: eventsource.History{Events: 2},
			Keys: []eventsource.Key{{Token: "admin", Admin: true}}}
	}
	n := newNode(t, settings())
	publish(t, n.Server, "users.ann", eventsource.Event{ID: "secret", Data: "secret"})
	first := publish(t, n.Server, "a", eventsource.Event{Data: "first"})[0]
	for i := range 20 {
		publish(t, n.Server, "users.ann", eventsource.Event{Data: "secret"})
		publish(t, n.Server, "a", eventsource.Event{Data: fmt.Sprint(i)})
	}
	for range 2 {
		s := n.follow(t, "/*", "Auth-Token", "admin", "Last-Event-ID", first)
		s.expectNumbers(t, 0, 20)
		n.follow(t, "/*", "Auth-Token", "admin", "Last-Event-ID", "secret").gap("secret", first)
		s.close()
		if err := n.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		n = newNode(t, settings())
	}
}

func TestWhatIsInTheFileExists(t *testing.T) {
	name := newFile(t)
	n := newNode(t, &eventsource.Settings{Backend: file(t, name)})
	numbers(t, n.Server, "a.b", 0, 3)
	numbers(t, n.Server, "c", 0, 3)
	if err := n.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	n = newNode(t, &eventsource.Settings{Backend: file(t, name)})
	head := n.do(t, http.MethodHead, "/a.b", nil).header
	if head.Get("X-Channel-Exists") != "true" {
		t.Error("a.b does not exist")
	}
	list := n.do(t, http.MethodHead, "/all", nil).header
	if list.Get("X-Available-Channels") != "[a.b,c]" || list.Get("X-Channel-Count") != "2" {
		t.Error(list)
	}
	if names := n.Channels(); fmt.Sprint(names) != "[a.b c]" || !n.ChannelExists("c") || n.ChannelExists("d") {
		t.Error(names)
	}
	if a := n.do(t, http.MethodDelete, "/c", nil); !strings.Contains(a.body, `["c"]`) {
		t.Error(a.body)
	}
	if a := n.do(t, http.MethodDelete, "/all", nil); !strings.Contains(a.body, `["a.b"]`) {
		t.Error(a.body)
	}
	if names := n.Channels(); len(names) != 0 {
		t.Error(names)
	}
}

func TestReadMarksReachThePersonsOtherConnections(t *testing.T) {
	for name, backend := range map[string]func(t *testing.T) eventsource.Backend{
		"memory": func(*testing.T) eventsource.Backend { return nil },
		"sqlite": func(t *testing.T) eventsource.Backend { return file(t, newFile(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, &eventsource.Settings{Backend: backend(t), History: eventsource.History{Events: 5}})
			ids := numbers(t, n.Server, "users.ann", 0, 5)
			s, other := n.follow(t, "/users.ann?event=none"), n.follow(t, "/users.joe")
			seqs := make([]uint64, len(ids))
			for i, id := range ids {
				var known bool
				var err error
				if seqs[i], known, err = n.Place(t.Context(), "users.ann", id); err != nil || !known {
					t.Fatal(i, known, err)
				}
			}
			mark := func(m eventsource.Marks, unread int, told string) {
				t.Helper()
				got, err := n.Mark(t.Context(), "users.ann", m)
				if err != nil || got != unread {
					t.Errorf("%d are unread, not %d: %v", got, unread, err)
				}
				if b := s.event(); b.event != "eventsource.read" || b.data != told || b.hasID {
					t.Errorf("told %+v, not %s", b, told)
				}
				count, err := n.Count(t.Context(), eventsource.Query{Channel: "users.ann", Status: eventsource.Unread})
				if err != nil || count != unread {
					t.Errorf("%d are counted, not %d: %v", count, unread, err)
				}
			}
			mark(eventsource.Marks{Seqs: seqs[3:4], IDs: ids[3:4]}, 4, `{"channel":"users.ann","ids":["`+ids[3]+`"],"read":true,"unread":4}`)
			mark(eventsource.Marks{UpTo: seqs[1], UpToID: ids[1]}, 2, `{"channel":"users.ann","up_to":"`+ids[1]+`","read":true,"unread":2}`)
			mark(eventsource.Marks{Seqs: seqs[:1], IDs: ids[:1], Unread: true}, 3, `{"channel":"users.ann","ids":["`+ids[0]+`"],"read":false,"unread":3}`)
			page, err := n.Read(t.Context(), eventsource.Query{Channel: "users.ann", Status: eventsource.Unread, Descending: true})
			if err != nil || len(page.Events) != 3 || page.Events[0].ID != ids[4] || page.Events[2].ID != ids[0] {
				t.Error(page, err)
			}

			// Marks take no place in the history, and are no gap to who was away.
			for range 20 {
				mark(eventsource.Marks{UpTo: seqs[4], UpToID: ids[4]}, 0, `{"channel":"users.ann","up_to":"`+ids[4]+`","read":true,"unread":0}`)
			}
			back := n.follow(t, "/users.ann", "Last-Event-ID", ids[0])
			back.expectNumbers(t, 1, 5)
			numbers(t, n.Server, "users.joe", 5, 6)
			other.expectNumbers(t, 5, 6) // and nothing of the marks
			if _, err := n.Mark(t.Context(), "news", eventsource.Marks{UpTo: 1}); err == nil {
				t.Error("news has marks")
			}
		})
	}
}

// What was read of the file just before a DELETE once came into the log after it.
func TestWhatIsDeletedWhileALogIsFilledDoesNotComeBack(t *testing.T) {
	for _, deleted := range []string{"a.b", "all"} {
		for _, followed := range []string{"a.b", "a.*", "*"} {
			name := newFile(t)
			n := newNode(t, &eventsource.Settings{Backend: file(t, name)})
			first := publish(t, n.Server, "c", eventsource.Event{Data: "first"})[0]
			numbers(t, n.Server, "a.b", 0, 10)
			if err := n.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			b := file(t, name)
			n = newNode(t, &eventsource.Settings{Backend: b})
			b.after.Store(new(func(q eventsource.Query) {
				if q.Channel == followed {
					b.after.Store(nil)
					n.Close(deleted)
				}
			}))
			n.follow(t, "/"+followed, "Last-Event-ID", first).gap(first, "")
			s := n.follow(t, "/"+followed+"?history=10")
			numbers(t, n.Server, "a.b", 10, 12)
			if b := s.event(); b.data != "10" && b.data != "first" {
				t.Errorf("of %s, deleted as %s, %q came back", followed, deleted, b.data)
			}
		}
	}
}

func TestSettingsOfSomeChannels(t *testing.T) {
	n := newNode(t, &eventsource.Settings{
		Retention: eventsource.Retention{Events: 50}, Backend: file(t, newFile(t)),
		Channels: []eventsource.ChannelSettings{
			{Match: "short.*", Retention: &eventsource.Retention{Events: 3}, History: &eventsource.History{Events: 2}},
			{Match: "none", History: &eventsource.History{Events: -1}},
			{Match: "alone.*", Consumers: 1},
		},
	})
	ids := numbers(t, n.Server, "short.a", 0, 10)
	numbers(t, n.Server, "long", 0, 10)
	quiet := numbers(t, n.Server, "none", 0, 10)
	for name, want := range map[string]int{"short.a": 3, "long": 10, "none": 10} {
		eventually(t, name+" is trimmed", func() bool {
			got, err := n.Count(t.Context(), eventsource.Query{Channel: name})
			return err == nil && got == want
		})
	}
	n.follow(t, "/short.a?history=10").expectNumbers(t, 8, 10)
	n.follow(t, "/short.a", "Last-Event-ID", ids[6]).expectNumbers(t, 7, 10)
	s := n.follow(t, "/none", "Last-Event-ID", quiet[3])
	s.gap(quiet[3], quiet[4])
	first := n.follow(t, "/alone.a")
	n.do(t, "GET", "/alone.a", nil).refused(t, 503, "no more than 1 consumers may follow alone.a")
	first.close()
}

func TestABackendIsNotAskedByAPublishThatIsRefused(t *testing.T) {
	s := openWith(t, &eventsource.Settings{Backend: file(t, newFile(t))})
	_, err := s.Publish(t.Context(), "news", eventsource.Event{ID: " x"})
	var p *eventsource.Problem
	if !errors.As(err, &p) || p.Status != 400 || s.Stats().Mark != 0 {
		t.Error(err, s.Stats().Mark)
	}
}
