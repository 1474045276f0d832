package intake_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
	"github.com/railsmechanic/eventsource/internal/sourcetest"
)

// sums adds up the counts of documents.
func sums(t testing.TB, documents []string) map[string]uint64 {
	t.Helper()
	sum := map[string]uint64{}
	for _, d := range documents {
		var counts map[string]uint64
		if err := json.Unmarshal([]byte(d), &counts); err != nil {
			t.Fatalf("%.100s: %v", d, err)
		}
		if len(counts) == 0 {
			t.Error("a roll-up of nothing was published")
		}
		for payload, n := range counts {
			sum[payload] += n
		}
	}
	return sum
}

func total(counts map[string]uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// summed waits until the sums are these.
func summed(t testing.TB, got *sourcetest.Heard, want map[string]uint64) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		sum := sums(t, got.Data(t, 0))
		if maps.Equal(sum, want) {
			return
		}
		if total(sum) > total(want) || time.Now().After(deadline) {
			t.Fatalf("%d were counted, of %d", total(sum), total(want))
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestARollUpIsOneSortedObjectAPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, srv := open(t, &eventsource.Settings{}, intake.Config{Channel: "{name}", Event: "{type}", Rollup: 17 * time.Millisecond})
		got := follow(t, srv, "eps")
		other := follow(t, srv, "other")
		begin := time.Now()
		arrival := func(data string) intake.Arrival {
			return intake.Arrival{Data: []byte(data), Value: values("name", "eps", "type", "score")}
		}
		h.take(t, arrival("2665"), arrival("1F4C2"), arrival("2665"), arrival("2665"),
			intake.Arrival{Data: []byte("x"), Value: values("name", "other")})
		time.Sleep(16 * time.Millisecond)
		h.take(t, arrival("1F4C2"))
		synctest.Wait()
		if n := len(got.All()); n > 0 {
			t.Fatalf("%d events before the period's end", n)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		time.Sleep(5 * time.Millisecond) // the next period has begun with the end of this one
		h.take(t, arrival("é\"\\\n<&>\u2028"))
		time.Sleep(17 * time.Millisecond)
		synctest.Wait()
		events := got.All()
		if len(events) != 2 {
			t.Fatalf("got %+v", events)
		}
		if e := events[0]; e.Data != `{"1F4C2":2,"2665":3}` || e.Type != "score" || !e.Time.Equal(begin.Add(17*time.Millisecond)) {
			t.Errorf("got %+v", e)
		}
		if e := events[1]; e.Data != `{"é\"\\\n<&>\u2028":1}` || !e.Time.Equal(begin.Add(34*time.Millisecond)) {
			t.Errorf("got %+v after %v", e, e.Time.Sub(begin))
		}
		if data := other.Data(t, 1); !slices.Equal(data, []string{`{"x":1}`}) {
			t.Errorf("the other channel got %q", data)
		}
		// Nothing came: nothing is published, and who comes after a pause waits a period.
		time.Sleep(time.Minute)
		began := time.Now()
		h.take(t, arrival("late"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if events := got.All(); len(events) != 3 || !events[2].Time.Equal(began.Add(17*time.Millisecond)) {
			t.Errorf("got %+v", events)
		}
		shutdown(t, srv)
	})
}

// scheduled is how often goroutines of this process were scheduled, about.
func scheduled() (n uint64) {
	sample := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(sample)
	for _, count := range sample[0].Value.Float64Histogram().Counts {
		n += count
	}
	return n
}

func TestARollUpSleepsWhileNothingComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, srv := open(t, &eventsource.Settings{}, intake.Config{Channel: "a", Rollup: time.Millisecond})
		got := follow(t, srv, "a")
		h.take(t, intake.Arrival{Data: []byte("x")})
		time.Sleep(time.Second)
		before := scheduled()
		time.Sleep(24 * time.Hour) // 86,400,000 periods
		if n := scheduled() - before; n > 50_000 {
			t.Errorf("%d wake-ups in a quiet day", n)
		}
		if data := got.Data(t, 1); len(data) != 1 {
			t.Errorf("got %q", data)
		}
		shutdown(t, srv)
	})
}

func TestSumsAreExactOverAStorm(t *testing.T) {
	for _, test := range []struct {
		name   string
		rate   int // a second
		length time.Duration
		period time.Duration
	}{
		{"250 a second", 250, time.Second, 17 * time.Millisecond},
		{"100,000 a second", 100_000, time.Second, 17 * time.Millisecond},
		{"periods of a millisecond", 20_000, 500 * time.Millisecond, time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h, srv := open(t, &eventsource.Settings{History: eventsource.History{Events: 100_000}},
				intake.Config{Channel: "eps.{1}", Rollup: test.period})
			got := follow(t, srv, "eps.*")
			want := map[string]uint64{}
			var done atomic.Int64
			count := 0
			begin := time.Now()
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			for elapsed := time.Duration(0); elapsed < test.length; elapsed = time.Since(begin) {
				var batch []intake.Arrival
				for ; count < int(float64(test.rate)*elapsed.Seconds()); count++ {
					payload := fmt.Sprintf("%04X", rand.IntN(1+rand.IntN(800)))
					want[payload]++
					batch = append(batch, intake.Arrival{Data: []byte(payload), Value: values("1", string(payload[3])),
						Done: func(error) { done.Add(1) }, Key: fmt.Sprint(count)})
				}
				h.take(t, batch...)
				<-tick.C
			}
			summed(t, got, want)
			eventually(t, "all are done", func() bool { return done.Load() == int64(count) })
			t.Logf("%d in %v: %d events", count, time.Since(begin).Round(time.Millisecond), len(got.All()))
		})
	}
}

// What is counted while an earlier count can't be published comes again, from a broker
// that waits no longer: once it was counted twice, and acknowledged before it was published.
func TestWhatIsCountedAndComesAgainIsCountedOnce(t *testing.T) {
	backend := &sourcetest.Backend{}
	h, srv := open(t, &eventsource.Settings{Backend: backend}, intake.Config{Channel: "a", Rollup: time.Millisecond})
	got := follow(t, srv, "a")
	backend.Refuse(eventsource.ErrUnavailable)
	var done atomic.Int64
	arrival := func() intake.Arrival {
		return intake.Arrival{Data: []byte("x"), Key: "k", Done: func(error) { done.Add(1) }}
	}
	h.take(t, arrival(), arrival())
	<-time.After(50 * time.Millisecond) // it is on its way now
	h.take(t, arrival())
	if n := done.Load(); n > 0 {
		t.Fatalf("%d are done before the count was published", n)
	}
	backend.Refuse(nil)
	eventually(t, "all three are done", func() bool { return done.Load() == 3 })
	h.take(t, arrival())
	eventually(t, "the fourth is done", func() bool { return done.Load() == 4 })
	if data := got.Data(t, 1); !slices.Equal(data, []string{`{"x":1}`}) {
		t.Errorf("got %q", data)
	}
	if d := srv.Stats().Sources[0].Duplicates; d != 3 {
		t.Errorf("%d duplicates", d)
	}
}

func TestCountsOfAPublishThatIsHeldBackAreNotLost(t *testing.T) {
	backend := &sourcetest.Backend{}
	h, srv := open(t, &eventsource.Settings{Backend: backend, Limits: eventsource.Limits{Body: 1000}},
		intake.Config{Channel: "a", Rollup: time.Millisecond})
	got := follow(t, srv, "a")
	want := map[string]uint64{}
	var held atomic.Bool
	moods := make(chan struct{})
	go func() {
		defer close(moods)
		for range 5 {
			backend.Refuse(eventsource.ErrUnavailable)
			held.Store(true)
			<-time.After(60 * time.Millisecond)
			backend.Refuse(nil)
			<-time.After(60 * time.Millisecond)
		}
	}()
	for n := range 20_000 {
		payload := fmt.Sprint(n % 500)
		want[payload]++
		h.take(t, intake.Arrival{Data: []byte(payload), Key: fmt.Sprint(n)})
	}
	<-moods
	summed(t, got, want)
	for _, d := range got.Data(t, 1) {
		if len(d) > 1000 {
			t.Errorf("an event of %d bytes", len(d))
		}
	}
}

func TestARollUpIsNoLongerThanLimitsAllow(t *testing.T) {
	h, srv := open(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 200}}, intake.Config{Channel: "a", Rollup: 50 * time.Millisecond})
	got := follow(t, srv, "a")
	want := map[string]uint64{}
	var refused, done atomic.Int64
	var batch []intake.Arrival
	for n := range 300 {
		payload := fmt.Sprint(n%90, " ", strings.Repeat("\x01", n%40)) // six bytes each as JSON
		a := intake.Arrival{Data: []byte(payload), Done: func(err error) {
			done.Add(1)
			if err != nil {
				refused.Add(1)
			}
		}}
		if quoted, _ := json.Marshal(payload); len(quoted) <= 200-24 {
			want[payload]++
		}
		batch = append(batch, a)
	}
	h.take(t, batch...)
	summed(t, got, want)
	for _, d := range got.Data(t, 1) {
		if len(d) > 200 {
			t.Errorf("an event of %d bytes", len(d))
		}
	}
	if n := srv.Stats().Sources[0].Refusals["too_large"]; n == 0 || n != 300-total(want) {
		t.Errorf("%d were refused, of %d", n, 300-total(want))
	}
	shutdown(t, srv)
	if done.Load() != 300 || refused.Load() != int64(300-total(want)) {
		t.Errorf("%d done, %d refused", done.Load(), refused.Load())
	}
}

// A backend may hold less than limits.body allows.
func TestARollUpThatABackendCantHoldIsPublishedInParts(t *testing.T) {
	backend := &sourcetest.Backend{Most: 100}
	h, srv := open(t, &eventsource.Settings{Backend: backend}, intake.Config{Channel: "a", Rollup: 10 * time.Millisecond})
	got := follow(t, srv, "a")
	want := map[string]uint64{}
	var batch []intake.Arrival
	var failed atomic.Int64
	for n := range 1000 {
		payload := fmt.Sprint(n % 100)
		want[payload]++
		batch = append(batch, intake.Arrival{Data: []byte(payload), Done: func(err error) {
			if err != nil {
				failed.Add(1)
			}
		}})
	}
	batch = append(batch, intake.Arrival{Data: []byte(strings.Repeat("x", 101)), Done: func(err error) {
		if refused, ok := errors.AsType[*eventsource.RefusedError](err); ok && refused.Reason == eventsource.RefusedTooLarge {
			failed.Add(1000)
		}
	}})
	h.take(t, batch...)
	summed(t, got, want)
	eventually(t, "the large one is refused, and no other", func() bool { return failed.Load() == 1000 })
}

func TestANameThatIsNoneIsRefusedWhenItIsCounted(t *testing.T) {
	h, srv := open(t, &eventsource.Settings{}, intake.Config{Channel: "a.{1}", Event: "{2}", Rollup: time.Millisecond})
	refused := 0
	count := func(err error) {
		if err != nil {
			refused++
		}
	}
	for range 3 {
		h.take(t, intake.Arrival{Data: []byte("x"), Value: values("1", "b c"), Done: count},
			intake.Arrival{Data: []byte("x"), Value: values("1", "b", "2", "a\nb"), Done: count})
	}
	if n := srv.Stats().Sources[0].Refusals; n["name"] != 3 || n["invalid"] != 3 || refused != 6 {
		t.Errorf("refused were %v, %d told so", n, refused)
	}
}

func TestWhatIsCountedIsPublishedAtTheEnd(t *testing.T) {
	for _, how := range []string{"the server shuts down", "the connection is lost", "both, while publishes are refused"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			backend := &sourcetest.Backend{}
			h, srv := open(t, &eventsource.Settings{Backend: backend}, intake.Config{Channel: "a", Rollup: time.Hour})
			got := follow(t, srv, "a")
			want := map[string]uint64{}
			var done atomic.Int64
			var batch []intake.Arrival
			for n := range 1000 {
				payload := fmt.Sprint(n % 7)
				want[payload]++
				batch = append(batch, intake.Arrival{Data: []byte(payload), Done: func(error) { done.Add(1) }})
			}
			h.take(t, batch...)
			began := time.Now()
			switch how {
			case "the server shuts down":
				shutdown(t, srv)
			case "the connection is lost":
				h.do(func(*intake.Flow) error { return errors.New("lost") })
				<-h.ended
			default:
				backend.Refuse(eventsource.ErrUnavailable)
				h.do(func(*intake.Flow) error { return errors.New("lost") })
				<-time.After(2500 * time.Millisecond) // longer than an end may take when the server shuts down
				backend.Refuse(nil)
				<-h.ended
				shutdown(t, srv)
			}
			summed(t, got, want)
			if took := time.Since(began); done.Load() != 1000 || took > 5*time.Second {
				t.Errorf("%d are done, after %v", done.Load(), took)
			}
		})
	}
}

// What is on its way when the server shuts down is counted together with what came after.
func TestWhatIsOnItsWayAtTheEndIsPublishedWithTheRest(t *testing.T) {
	backend := &sourcetest.Backend{}
	h, srv := open(t, &eventsource.Settings{Backend: backend}, intake.Config{Channel: "{name}", Rollup: time.Millisecond})
	a, b := follow(t, srv, "a"), follow(t, srv, "b")
	backend.Refuse(eventsource.ErrUnavailable)
	var done atomic.Int64
	arrival := func(name, data string) intake.Arrival {
		return intake.Arrival{Data: []byte(data), Value: values("name", name), Key: fmt.Sprint(rand.Int64()), Done: func(error) { done.Add(1) }}
	}
	h.take(t, arrival("a", "x"), arrival("b", "z"))
	<-time.After(50 * time.Millisecond) // now they are
	again := arrival("a", "x")
	h.take(t, again, again, arrival("a", "y"))
	ended := make(chan struct{})
	go func() { defer close(ended); shutdown(t, srv) }()
	<-time.After(100 * time.Millisecond)
	backend.Refuse(nil)
	<-ended
	if got := a.Data(t, 1); !slices.Equal(got, []string{`{"x":2,"y":1}`}) {
		t.Errorf("got %q", got)
	}
	if got := b.Data(t, 1); !slices.Equal(got, []string{`{"z":1}`}) {
		t.Errorf("got %q", got)
	}
	if done.Load() != 5 {
		t.Errorf("%d are done", done.Load())
	}
}

// What could not be published at the end is not done, and the end does not wait for it.
func TestTheEndDoesNotWaitForABackendThatIsAway(t *testing.T) {
	backend := &sourcetest.Backend{}
	h, srv := open(t, &eventsource.Settings{Backend: backend}, intake.Config{Channel: "a", Rollup: time.Millisecond})
	h.take(t, intake.Arrival{Data: []byte("before")})
	eventually(t, "the first is published", func() bool { return srv.Stats().Sources[0].Published == 1 })
	backend.Refuse(eventsource.ErrUnavailable)
	h.take(t, intake.Arrival{Data: []byte("x"), Key: "k", Done: func(error) { t.Error("it is done") }})
	<-time.After(20 * time.Millisecond)
	began := time.Now()
	shutdown(t, srv)
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
}

// FuzzRollup has whatever comes in parsed back, with exact counts.
func FuzzRollup(f *testing.F) {
	f.Add("a", "b", uint8(3))
	f.Add("\x00\u2028<>&\"\\", "\U0001F4C2", uint8(1))
	f.Fuzz(func(t *testing.T, one, other string, times uint8) {
		h, srv := open(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 4096}}, intake.Config{Channel: "a", Rollup: time.Millisecond})
		got := follow(t, srv, "a")
		for range times {
			h.take(t, intake.Arrival{Data: []byte(one)}, intake.Arrival{Data: []byte(other)}, intake.Arrival{Data: []byte(one + other)})
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		refused := uint64(0)
		for _, n := range srv.Stats().Sources[0].Refusals {
			refused += n
		}
		eventually(t, "the stream has ended", func() bool { return total(sums(t, got.Data(t, 0)))+refused == 3*uint64(times) })
	})
}
