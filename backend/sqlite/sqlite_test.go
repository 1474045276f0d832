package sqlite_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/backendtest"
	"github.com/railsmechanic/eventsource/backend/sqlite"
)

// backendOf returns the backend of a file, not started.
func backendOf(t testing.TB, file string) *sqlite.Backend {
	t.Helper()
	b, err := sqlite.New(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// shell runs a statement as another process would.
func shell(t testing.TB, file, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("PRAGMA busy_timeout = 5000"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(statement, args...); err != nil {
		t.Fatal(err)
	}
}

// A listening node keeps what it is told.
type listening struct {
	quiet
	mu      sync.Mutex
	seqs    []uint64
	reasons []error
}

func (n *listening) Deliver(records ...*eventsource.Record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range records {
		n.seqs = append(n.seqs, r.Seq)
	}
}

func (n *listening) Available(reason error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reasons = append(n.reasons, reason)
}

// back reports whether the backend was away and came back.
func (n *listening) back() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.reasons) > 0 && n.reasons[len(n.reasons)-1] == nil
}

// put publishes an event to news.
func put(t *testing.T, b *sqlite.Backend, text string) (eventsource.Kept, error) {
	return b.Publish(t.Context(), &eventsource.Record{Channels: []string{"news"}, Events: []eventsource.Event{{Data: text}}})
}

// held returns the places of what the file has of news.
func held(t *testing.T, b *sqlite.Backend) []uint64 {
	t.Helper()
	page, err := b.Read(t.Context(), eventsource.Query{Channel: "news"})
	if err != nil {
		t.Fatal(err)
	}
	var seqs []uint64
	for _, e := range page.Events {
		seqs = append(seqs, e.Seq)
	}
	return seqs
}

// said fails the test unless an error is of a kind and has the words.
func said(t *testing.T, err, kind error, words string) {
	t.Helper()
	if err == nil || kind != nil && !errors.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v, not %v: %s", err, kind, words)
	}
}

// filled returns a file with a thousand events of a kilobyte.
func filled(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "events.db")
	b := backendOf(t, file)
	if _, err := b.Start(quiet{}); err != nil {
		t.Fatal(err)
	}
	r := &eventsource.Record{Channels: []string{"news"}}
	for range 1000 {
		r.Events = append(r.Events, eventsource.Event{Data: strings.Repeat("x", 1000)})
	}
	if _, err := b.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, backendtest.Suite{
		Durable: true,
		New: func(t *testing.T) *backendtest.Place {
			file := filepath.Join(t.TempDir(), "events.db")
			lock := locker{file: file}
			return &backendtest.Place{
				Open:  func(t *testing.T) eventsource.Backend { return backendOf(t, file) },
				Break: lock.take,
				Mend:  lock.leave,
				Save: func(t *testing.T) {
					if err := sqlite.Backup(t.Context(), file, file+".copy"); err != nil {
						t.Fatal(err)
					}
				},
				Restore: func(t *testing.T) {
					if err := os.Rename(file+".copy", file); err != nil {
						t.Fatal(err)
					}
				},
				Older: func(t *testing.T, by time.Duration) {
					shell(t, file, "UPDATE keys SET expires = expires - ?", by.Milliseconds())
				},
			}
		},
	})
}

// A locker holds the file's lock as a careless process does.
type locker struct {
	file string
	db   *sql.DB
	tx   *sql.Tx
}

func (l *locker) take(t *testing.T) {
	t.Helper()
	var err error
	if l.db, err = sql.Open("sqlite", "file:"+l.file+"?_txlock=immediate&_pragma=busy_timeout(5000)"); err != nil {
		t.Fatal(err)
	}
	if l.tx, err = l.db.Begin(); err != nil {
		t.Fatal(err)
	}
}

func (l *locker) leave(t *testing.T) {
	t.Helper()
	if err := l.tx.Rollback(); err != nil {
		t.Error(err)
	}
	l.db.Close()
}

// A strict node retains little of two channels, and of the others what quiet does.
type strict struct{ quiet }

func (strict) Retention(channel string) eventsource.Retention {
	switch channel {
	case "a.few":
		return eventsource.Retention{Events: 10}
	case "a.young":
		return eventsource.Retention{Age: time.Millisecond}
	case "a.later":
		return eventsource.Retention{Age: time.Hour}
	}
	return eventsource.Retention{}
}

func TestManyEventsGoInSmallStepsAndPublishersGoOn(t *testing.T) {
	const each = 3000 // several steps of each channel
	file := filepath.Join(t.TempDir(), "events.db")
	b := backendOf(t, file)
	if _, err := b.Start(quiet{}); err != nil {
		t.Fatal(err)
	}
	last := map[string]uint64{}
	channels := []string{"a.few", "a.young", "a.later", "b"}
	for range each / 100 {
		for _, channel := range channels {
			kept, err := b.Publish(t.Context(), &eventsource.Record{Channels: []string{channel}, Events: make([]eventsource.Event, 100)})
			if err != nil {
				t.Fatal(err)
			}
			last[channel] = kept.Seq + 99
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = backendOf(t, file)
	if _, err := b.Start(strict{}); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	count := func(channel string) int {
		n, err := b.Count(t.Context(), eventsource.Query{Channel: channel})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	slowest := time.Duration(0)
	eventually(t, "the new bounds", func() bool {
		began := time.Now()
		if _, err := put(t, b, "x"); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
		return count("a.few") == 10 && count("a.young") == 0
	})
	t.Logf("meanwhile the slowest publish took %v", slowest)
	for channel, want := range map[string]struct {
		events int
		floor  uint64
	}{"a.few": {10, last["a.few"] - 10}, "a.young": {0, last["a.young"]}, "a.later": {each, 0}, "b": {each, 0},
		"a.*": {each + 10, max(last["a.few"]-10, last["a.young"])}} {
		page, err := b.Read(t.Context(), eventsource.Query{Channel: channel, Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		if n := count(channel); n != want.events || page.Floor != want.floor {
			t.Errorf("%s has %d events and the floor %d, not %d and %d", channel, n, page.Floor, want.events, want.floor)
		}
	}
}
