// Package backendtest says what every backend must do: one suite, which a backend's
// own tests run with real files and real brokers.
package backendtest

import (
	"context"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// A Suite says what is tested.
type Suite struct {
	// New makes a place in which nothing was kept, and returns how it is used. What it
	// needs is taken away with t.
	New func(t *testing.T) *Place
	// Shared: several nodes have backends on one place at once.
	Shared bool
	// Durable: what was kept is there when a backend is closed and another opened.
	Durable bool
}

// A Place is where a backend keeps events.
type Place struct {
	// Open returns a backend of the place, which is not started. It is called again
	// for another node, or for the same one after its backend was closed.
	Open func(t *testing.T) eventsource.Backend

	// What follows may be nil: its tests are left out then.

	// Break has the backend refuse what is published, Mend ends that.
	Break, Mend func(t *testing.T)
	// Save remembers what the place holds, and Restore brings that back, as an
	// operator does with a copy. No backend is open then.
	Save, Restore func(t *testing.T)
	// Older makes the idempotency keys of the place so much older.
	Older func(t *testing.T, by time.Duration)
}

// Run runs the suite. Its subtests run one after the other; what the backend can't do is
// left out.
func Run(t *testing.T, s Suite) {
	place := s.New(t)
	b := place.Open(t)
	_, store := b.(eventsource.Store)
	if err := b.Close(); err != nil {
		t.Fatal("closing what was not started:", err)
	}
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"order", orderTests}, {"keys", keyTests}, {"purge", purgeTests}, {"store", storeTests},
		{"retention", retentionTests}, {"lives", lifeTests}, {"nodes", nodeTests}, {"faults", faultTests}, {"server", serverTests},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, one := range group.tests {
				if one.store && !store || one.durable && !s.Durable || one.shared && !s.Shared || one.older && place.Older == nil ||
					one.broken && (place.Break == nil || place.Mend == nil) || one.restored && (place.Save == nil || place.Restore == nil) {
					continue
				}
				t.Run(one.name, func(t *testing.T) { one.run(t, &fixture{Place: s.New(t)}) })
			}
		})
	}
}

// A test is a subtest, with what the backend must be able to do.
type test struct {
	name string
	run  func(t *testing.T, f *fixture)

	store, durable, shared  bool
	older, broken, restored bool // by what its Place has
}

// A fixture is a place in a test.
type fixture struct{ *Place }

// An instance is a backend that was started, with the node that it feeds.
type instance struct {
	eventsource.Backend
	t     *testing.T
	node  *node
	order eventsource.Order
}

// open starts a backend of the place for a node with the default bounds. It is closed
// with the test.
func (f *fixture) open(t *testing.T) *instance { return f.openFor(t, newNode()) }

func (f *fixture) openFor(t *testing.T, n *node) *instance {
	t.Helper()
	i := &instance{Backend: f.Open(t), t: t, node: n}
	var err error
	if i.order, err = i.Start(n); err != nil {
		t.Fatal("start:", err)
	}
	n.begin(t, i.order.Seq)
	t.Cleanup(func() { i.Close() })
	return i
}

// close closes the backend before the test ends.
func (i *instance) close() {
	i.t.Helper()
	if err := i.Close(); err != nil {
		i.t.Fatal("close:", err)
	}
}

// publish keeps events for channels.
func (i *instance) publish(channels []string, events ...eventsource.Event) eventsource.Kept {
	i.t.Helper()
	return i.keep(&eventsource.Record{Channels: channels, Events: events})
}

// keep publishes a record that must not be refused.
func (i *instance) keep(r *eventsource.Record) eventsource.Kept {
	i.t.Helper()
	kept, err := i.Publish(i.t.Context(), r)
	if err != nil {
		i.t.Fatalf("publishing to %v: %v", r.Channels, err)
	}
	return kept
}

// store returns the backend as the store that it is.
func (i *instance) store() eventsource.Store {
	i.t.Helper()
	s, ok := i.Backend.(eventsource.Store)
	if !ok {
		i.t.Fatal("this backend is no store")
	}
	return s
}

// read returns a page.
func (i *instance) read(q eventsource.Query) eventsource.Page {
	i.t.Helper()
	page, err := i.store().Read(i.t.Context(), q)
	if err != nil {
		i.t.Fatalf("reading %+v: %v", q, err)
	}
	return page
}

// seqs returns the places of what a query finds.
func (i *instance) seqs(q eventsource.Query) []uint64 {
	i.t.Helper()
	seqs := []uint64{}
	for _, e := range i.read(q).Events {
		seqs = append(seqs, e.Seq)
	}
	return seqs
}

// count returns how many events a query finds.
func (i *instance) count(q eventsource.Query) int {
	i.t.Helper()
	n, err := i.store().Count(i.t.Context(), q)
	if err != nil {
		i.t.Fatalf("counting %+v: %v", q, err)
	}
	return n
}

// names returns the channels with retained events.
func (i *instance) names(prefix, after string, limit int) []string {
	i.t.Helper()
	names, err := i.store().Channels(i.t.Context(), prefix, after, limit)
	if err != nil {
		i.t.Fatal("listing channels:", err)
	}
	return names
}

// data returns an event.
func data(text string) eventsource.Event { return eventsource.Event{Data: text} }

// to returns channels.
func to(names ...string) []string { return names }

// eventually fails the test unless ok comes true within ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("in vain was waited for: " + what)
		}
	}
}
