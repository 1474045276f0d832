package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// An idle node does nothing with what it gets.
type idle struct{ retention eventsource.Retention }

func (idle) Deliver(...*eventsource.Record) {}
func (idle) Lost(eventsource.Order)         {}
func (idle) Available(error)                {}
func (n idle) Retention(string) eventsource.Retention {
	return n.retention
}
func (idle) Limits() eventsource.Limits {
	return eventsource.Limits{IdempotencyKeys: 100_000, Channels: 1_000_000}
}

// usual is what retains as a server does without settings.
var usual = idle{eventsource.Retention{Events: 10_000, Age: 30 * 24 * time.Hour}}

// A keeping node keeps what it gets.
type keeping struct {
	idle
	mu      sync.Mutex
	records []*eventsource.Record
	reasons []error
}

func (n *keeping) Deliver(records ...*eventsource.Record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.records = append(n.records, records...)
}

func (n *keeping) Available(reason error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reasons = append(n.reasons, reason)
}

// texts returns the data of what the node has got.
func (n *keeping) texts() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var texts []string
	for _, r := range n.records {
		texts = append(texts, r.Events[0].Data)
	}
	return texts
}

// wait waits until the backend says of itself that it is back.
func (n *keeping) wait(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		n.mu.Lock()
		back := len(n.reasons) > 0 && n.reasons[len(n.reasons)-1] == nil
		n.mu.Unlock()
		if back {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not come back")
		}
		time.Sleep(time.Millisecond)
	}
}

// faulty starts a backend whose statements fail as fault says.
func faulty(t *testing.T, n eventsource.Node, fault func(query string, after bool) error) *Backend {
	t.Helper()
	b, err := New(filepath.Join(t.TempDir(), "events.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	b.fault = fault
	if _, err := b.Start(n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func publish(b *Backend, text string) (eventsource.Kept, error) {
	return b.Publish(context.Background(), &eventsource.Record{Channels: []string{"news"}, Events: []eventsource.Event{{Data: text}}})
}

func texts(t *testing.T, b *Backend) []string {
	t.Helper()
	page, err := b.Read(t.Context(), eventsource.Query{Channel: "news"})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, e := range page.Events {
		texts = append(texts, e.Data)
	}
	return texts
}

var errDisk = errors.New("the disk hiccups")

func TestACommitWithoutAnAnswerIsLookedUp(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("kept=%v", after), func(t *testing.T) {
			var armed atomic.Bool
			n := &keeping{}
			b := faulty(t, n, func(query string, now bool) error {
				if query == "COMMIT" && now == after && armed.CompareAndSwap(true, false) {
					return errDisk
				}
				return nil
			})
			want := []string{"first", "third"}
			publish(b, "first")
			armed.Store(true)
			kept, err := publish(b, "second")
			if after {
				if err != nil || kept.Seq != 2 {
					t.Errorf("it was kept, and the publisher was told %+v, %v", kept, err)
				}
				want = []string{"first", "second", "third"}
			} else {
				if !errors.Is(err, eventsource.ErrUnavailable) || errors.Is(err, eventsource.ErrUnknown) || !errors.Is(err, errDisk) {
					t.Errorf("nothing was kept, and the publisher was told %v", err)
				}
				n.wait(t)
			}
			if _, err := publish(b, "third"); err != nil {
				t.Fatal(err)
			}
			db, err := dial(b.file)
			if err != nil {
				t.Fatal(err)
			}
			defer db.close()
			if n, _, err := db.number("SELECT tries FROM state"); err != nil || n == 0 {
				t.Errorf("it was tried %d times whether the file can be written, %v", n, err)
			}
			if got := texts(t, b); !slices.Equal(got, want) {
				t.Errorf("kept are %v", got)
			}
			if got := n.texts(); !slices.Equal(got, want) {
				t.Errorf("delivered were %v", got)
			}
		})
	}
}

func TestACommitThatCantBeLookedUpIsUnknownAndDeliveredLater(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("kept=%v", after), func(t *testing.T) {
			var failing atomic.Bool
			n := &keeping{}
			b := faulty(t, n, func(query string, now bool) error {
				if !failing.Load() {
					return nil
				}
				switch {
				case query == "COMMIT" && now == after:
					return errDisk
				case query == "SELECT seq FROM state":
					return errDisk
				}
				return nil
			})
			publish(b, "first")
			failing.Store(true)
			_, err := publish(b, "second")
			if !errors.Is(err, eventsource.ErrUnknown) || errors.Is(err, eventsource.ErrUnavailable) {
				t.Errorf("the publisher was told %v", err)
			}
			if _, err := publish(b, "refused"); !errors.Is(err, eventsource.ErrUnavailable) {
				t.Errorf("meanwhile: %v", err)
			}
			failing.Store(false)
			n.wait(t)
			kept, err := publish(b, "third")
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"first", "third"}
			if after {
				want = []string{"first", "second", "third"}
			}
			if kept.Seq != uint64(len(want)) {
				t.Errorf("the next one has the Seq %d", kept.Seq)
			}
			if got := texts(t, b); !slices.Equal(got, want) {
				t.Errorf("kept are %v", got)
			}
			if got := n.texts(); !slices.Equal(got, want) {
				t.Errorf("delivered were %v", got)
			}
		})
	}
}

func TestTheRecordThatIsDeliveredIsThePublishers(t *testing.T) {
	n := &keeping{}
	b := faulty(t, n, nil)
	r := &eventsource.Record{Channels: []string{"news"}, Events: []eventsource.Event{{Data: "x"}}}
	if _, err := b.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if n.records[0] != r {
		t.Error("it is another") // without the frames that were encoded already
	}
}

func TestPlacesLeaveNothingOut(t *testing.T) {
	b := faulty(t, usual, nil)
	last := uint64(0)
	for _, r := range []*eventsource.Record{
		{Channels: []string{"news"}, Events: make([]eventsource.Event, 3)},
		{Channels: []string{"news"}, Purge: true},
		{Channels: []string{"users.ada"}, Marks: &eventsource.Marks{UpTo: 1}},
		{Channels: []string{"news"}, Events: []eventsource.Event{{TTL: -1}}},
		{Channels: []string{"all"}, Events: make([]eventsource.Event, 2)},
	} {
		kept, err := b.Publish(t.Context(), r)
		if err != nil || kept.Seq != last+1 {
			t.Errorf("%+v is at %d after %d, %v", r, kept.Seq, last, err)
		}
		last = kept.Seq + r.Places() - 1
	}
}

func TestWhoWaitsSharesACommit(t *testing.T) {
	var commits atomic.Int64
	hold := make(chan struct{})
	held := make(chan struct{}, 1)
	b := faulty(t, usual, func(query string, after bool) error {
		if query == "COMMIT" && !after {
			if commits.Add(1) == 1 {
				held <- struct{}{}
				<-hold
			}
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { publish(b, "first") })
	<-held
	for range 100 {
		wg.Go(func() { publish(b, "x") })
	}
	for waiting := 0; waiting < 100; {
		b.mu.Lock()
		waiting = len(b.waiting)
		b.mu.Unlock()
	}
	// Who gives up before it was taken is not kept.
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := b.Publish(ctx, &eventsource.Record{Channels: []string{"news"}, Events: []eventsource.Event{{Data: "withdrawn"}}})
		gone <- err
	}()
	for waiting := 0; waiting < 101; {
		b.mu.Lock()
		waiting = len(b.waiting)
		b.mu.Unlock()
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up was told %v", err)
	}
	close(hold)
	wg.Wait()
	if n := commits.Load(); n > 3 { // and perhaps one of the chores
		t.Errorf("101 events took %d commits", n)
	}
	if got := texts(t, b); len(got) != 101 || slices.Contains(got, "withdrawn") {
		t.Errorf("%d events are kept", len(got))
	}
}

func TestAPublishWhoseContextHasEndedKeepsNothing(t *testing.T) {
	b := faulty(t, usual, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Publish(ctx, &eventsource.Record{Channels: []string{"news"}, Events: make([]eventsource.Event, 1)}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := texts(t, b); len(got) != 0 {
		t.Errorf("kept are %v", got)
	}
}

func TestEarlierLivesAreBoundedAndIdsStay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.db")
	db, err := dial(file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	if err := prepare(db, file, "normal"); err != nil {
		t.Fatal(err)
	}
	open := func() []life {
		t.Helper()
		lives, _, err := begin(db)
		if err != nil {
			t.Fatal(err)
		}
		return lives
	}
	first := open()[0]
	if err := db.script("UPDATE state SET seq = 7; INSERT INTO events (seq, time, channels) VALUES (7, 1, 'news')"); err != nil {
		t.Fatal(err)
	}
	var lives []life
	for range livesKept + 20 {
		lives = open()
	}
	if len(lives) != livesKept+21 || lives[0].epoch != first.epoch || lives[0].last != 7 {
		t.Errorf("%d lives, the first %+v, with an event of it", len(lives), lives[0])
	}
	if err := db.script("DELETE FROM events"); err != nil {
		t.Fatal(err)
	}
	lives = open()
	if len(lives) != livesKept+1 || lives[0].epoch == first.epoch {
		t.Errorf("%d lives, the first %+v, without an event of it", len(lives), lives[0])
	}
	b := &Backend{lives: lives[len(lives)-2:]}
	b.lives[0].last = 9
	for seq, want := range map[uint64]eventsource.Epoch{1: b.lives[0].epoch, 9: b.lives[0].epoch, 10: b.lives[1].epoch} {
		if got := b.epochOf(seq); got != want {
			t.Errorf("%d is of the life %+v", seq, got)
		}
	}
}

func TestKeysOfAClockThatWasSetBackAreForgottenInTime(t *testing.T) {
	b := faulty(t, usual, nil)
	r := &eventsource.Record{Channels: []string{"news"}, Events: make([]eventsource.Event, 1), Key: "k"}
	first, err := b.Publish(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	db, err := dial(b.file, "_pragma=busy_timeout("+busyTimeout+")")
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	year := int64(365 * 24 * time.Hour / time.Millisecond)
	if _, err := db.exec("UPDATE keys SET expires = expires + ?", year); err != nil {
		t.Fatal(err)
	}
	// Another key has the chores look.
	for deadline := time.Now().Add(10 * time.Second); ; {
		expires, _, err := db.number("SELECT max(expires) FROM keys")
		if err != nil {
			t.Fatal(err)
		}
		if expires <= time.Now().Add(eventsource.IdempotencyAge).UnixMilli() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is kept for a year")
		}
		time.Sleep(choresEvery)
		publish(b, "x")
	}
	if kept, err := b.Publish(t.Context(), &eventsource.Record{Channels: r.Channels, Events: r.Events, Key: "k"}); err != nil || !kept.Repeated || kept.Seq != first.Seq {
		t.Errorf("the repeat: %+v, %v", kept, err)
	}
}

func TestTheWALStaysBoundedWhileThereIsAlwaysARead(t *testing.T) {
	b, err := New(filepath.Join(t.TempDir(), "events.db"), &Options{Synchronous: "normal"})
	if err != nil {
		t.Fatal(err)
	}
	b.walMost = 4 << 20
	if _, err := b.Start(usual); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	data := strings.Repeat("x", 4<<10)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range readers {
		wg.Go(func() {
			for ctx.Err() == nil {
				b.Read(ctx, eventsource.Query{Channel: "news", Limit: 1000, Descending: true})
			}
		})
	}
	var size, written int64
	cut := 0
	for began := time.Now(); cut < 2; {
		r := &eventsource.Record{Channels: []string{"news"}}
		for range 16 {
			r.Events = append(r.Events, eventsource.Event{Data: data})
		}
		if _, err := b.Publish(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		written += 16 * int64(len(data))
		info, err := os.Stat(b.file + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() < size {
			cut++
		}
		size = info.Size()
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%d MiB were written, and the WAL has %d MiB", written>>20, size>>20)
		}
	}
}

// The clock is an hour ahead, then right again. The order is by place, and each event is
// kept for as long as the clock said when it came: none for less, and none stands in
// the way of another's end.
func TestAClockThatIsSetBackDisturbsNeitherOrderNorRetention(t *testing.T) {
	b, err := New(filepath.Join(t.TempDir(), "events.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var ahead atomic.Int64
	b.clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	order, err := b.Start(idle{eventsource.Retention{Age: 30 * time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	ahead.Store(int64(time.Hour))
	var places []uint64
	post := func(text string) {
		t.Helper()
		kept, err := publish(b, text)
		if err != nil || kept.Time.Before(order.Epoch.Since) {
			t.Fatal(kept, err)
		}
		places = append(places, kept.Seq)
	}
	for _, text := range []string{"a", "b", "c"} {
		post(text)
	}
	ahead.Store(-int64(time.Hour)) // even to before the file was opened
	post("d")
	ahead.Store(0)
	post("e")
	if !slices.IsSorted(places) || !slices.Equal(texts(t, b), []string{"a", "b", "c", "d", "e"}) {
		t.Errorf("at first: %v %v", places, texts(t, b))
	}
	at := func(after time.Duration, want ...string) {
		t.Helper()
		ahead.Store(int64(after))
		if got := texts(t, b); !slices.Equal(got, want) {
			t.Errorf("after %v there are %v, not %v", after, got, want)
		}
		for deadline := time.Now().Add(10 * time.Second); ; { // and the rows go
			db, err := dial(b.file, "mode=ro", "_pragma=busy_timeout("+busyTimeout+")")
			if err != nil {
				t.Fatal(err)
			}
			n, _, err := db.number("SELECT count(*) FROM events")
			db.close()
			if err == nil && int(n) == len(want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("after %v there are %d rows: %v", after, n, err)
			}
			time.Sleep(choresEvery / 4)
		}
	}
	elapsed := time.Since(began)
	at(29*time.Minute-elapsed, "a", "b", "c", "d", "e")
	at(31*time.Minute, "a", "b", "c")
	at(89*time.Minute-elapsed, "a", "b", "c")
	at(91 * time.Minute)
}
