// Package sourcetest is what the tests of several sources share: the backend that their
// server has, and the consumer that follows it.
package sourcetest

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/check"
)

// Shutdown ends a server within ten seconds, or else fails the test.
func Shutdown(t testing.TB, srv *eventsource.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Error("shutdown:", err)
	}
}

// A Backend takes events and keeps none, unless a test says otherwise.
type Backend struct {
	// Set before the start.
	Most int // bytes of a record's data; 0: any number

	mu    sync.Mutex
	node  eventsource.Node
	epoch eventsource.Epoch
	seq   uint64
	err   error // what a publish is answered with
	kept  bool  // nevertheless
}

// Start begins an epoch.
func (b *Backend) Start(node eventsource.Node) (eventsource.Order, error) {
	b.node, b.epoch = node, eventsource.NewEpoch()
	return eventsource.Order{Epoch: b.epoch}, nil
}

// Publish delivers the record, or refuses it.
func (b *Backend) Publish(_ context.Context, r *eventsource.Record) (eventsource.Kept, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := 0
	for _, e := range r.Events {
		size += len(e.Data)
	}
	switch {
	case b.Most > 0 && size > b.Most:
		return eventsource.Kept{}, eventsource.ErrTooLarge
	case b.err != nil && !b.kept:
		return eventsource.Kept{}, b.err
	}
	r.Seq, r.Time = b.seq+1, time.Now()
	b.seq += r.Places()
	b.node.Deliver(r)
	return eventsource.Kept{Epoch: b.epoch, Seq: r.Seq, Time: r.Time}, b.err
}

// Close does nothing.
func (b *Backend) Close() error { return nil }

// Refuse has publishes refused with err; nil: they are taken.
func (b *Backend) Refuse(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.kept = err, false
}

// Doubt has publishes answered with err, and taken nevertheless.
func (b *Backend) Doubt(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.kept = err, true
}

// A Heard is what a consumer has got so far.
type Heard struct {
	mu     sync.Mutex
	events []eventsource.Event
}

// Follow collects what there is and what comes on channels, until the test ends, and the
// server with it.
func Follow(t testing.TB, srv *eventsource.Server, channels string) *Heard {
	t.Helper()
	h := &Heard{}
	events := srv.Subscribe(context.Background(), channels, &eventsource.Subscription{History: 1 << 20})
	var wg sync.WaitGroup
	wg.Go(func() {
		for e, err := range events {
			if err != nil {
				return
			}
			h.mu.Lock()
			h.events = append(h.events, e)
			h.mu.Unlock()
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { Shutdown(t, srv) }) // before Wait
	return h
}

// All returns the events that came.
func (h *Heard) All() []eventsource.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// Count returns how many came.
func (h *Heard) Count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.events)
}

// Data waits for n events and returns their data.
func (h *Heard) Data(t testing.TB, n int) []string {
	t.Helper()
	check.Eventually(t, strconv.Itoa(n)+" events", func() bool { return h.Count() >= n })
	var data []string
	for _, e := range h.All() {
		data = append(data, e.Data)
	}
	return data
}
