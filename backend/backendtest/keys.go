package backendtest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

var keyTests = []test{
	{name: "a repeat publishes nothing and says where the first stands", run: repeatPublishesNothing},
	{name: "repeats at once publish one", run: repeatsAtOnce},
	{name: "a key that comes with another body is refused", run: keyReused},
	{name: "keys beyond the limit are refused", run: keysFull},
	{name: "a key is forgotten after its time", run: keyForgotten, older: true},
	{name: "a purge forgets no key", run: purgeKeepsKeys},
	{name: "a refused record leaves no key", run: refusalLeavesNoKey, store: true},
	{name: "a repeat is known after another opening", run: repeatAfterReopening, durable: true},
	{name: "a repeat is known on another node", run: repeatOnAnotherNode, shared: true},
}

// keyed returns a record with an idempotency key.
func keyed(key, body string, events ...eventsource.Event) *eventsource.Record {
	return &eventsource.Record{Channels: to("news"), Events: events, Key: key, Body: sha256.Sum256([]byte(body))}
}

// same fails the test unless a record was taken for a repeat of the first.
func same(t *testing.T, what string, got, first eventsource.Kept) {
	t.Helper()
	if !got.Repeated || got.Seq != first.Seq || !got.Time.Equal(first.Time) || got.Epoch.Number != first.Epoch.Number || !got.Epoch.Since.Equal(first.Epoch.Since) {
		t.Errorf("%s: %+v, and the first was %+v", what, got, first)
	}
}

func repeatPublishesNothing(t *testing.T, f *fixture) {
	i := f.open(t)
	i.publish(to("news"), data("before"))
	first := i.keep(keyed("k", "body", data("a"), data("b")))
	between := i.publish(to("news"), data("between"))
	same(t, "the repeat", i.keep(keyed("k", "body", data("a"), data("b"))), first)
	if other := i.keep(keyed("other", "body", data("a"))); other.Repeated || other.Seq <= between.Seq {
		t.Errorf("with another key: %+v", other)
	}
	if got := i.node.events(); len(got) != 5 {
		t.Errorf("delivered %v", got)
	}
}

func repeatsAtOnce(t *testing.T, f *fixture) {
	const keys, repeats = 10, 8
	i := f.open(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seqs := map[string]map[uint64]int{}
	fresh := map[string]int{}
	for k := range keys {
		seqs[fmt.Sprint(k)] = map[uint64]int{}
	}
	for k := range keys {
		key := fmt.Sprint(k)
		for range repeats {
			wg.Go(func() {
				kept, err := i.Publish(t.Context(), keyed(key, "body", data(key)))
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				seqs[key][kept.Seq]++
				if !kept.Repeated {
					fresh[key]++
				}
			})
		}
	}
	wg.Wait()
	for key, places := range seqs {
		if len(places) != 1 || fresh[key] != 1 {
			t.Errorf("the key %s: places %v, published %d times", key, places, fresh[key])
		}
	}
	if got := i.node.events(); len(got) != keys {
		t.Errorf("%d events were delivered, not %d", len(got), keys)
	}
}

func keyReused(t *testing.T, f *fixture) {
	i := f.open(t)
	first := i.keep(keyed("k", "body", data("a")))
	if _, err := i.Publish(t.Context(), keyed("k", "another", data("b"))); !errors.Is(err, eventsource.ErrKeyReused) {
		t.Errorf("with another body: %v", err)
	}
	same(t, "with the first body", i.keep(keyed("k", "body", data("a"))), first)
	if got := i.node.events(); len(got) != 1 {
		t.Errorf("delivered %v", got)
	}
}

func keysFull(t *testing.T, f *fixture) {
	n := newNode()
	n.limits.IdempotencyKeys = 3
	i := f.openFor(t, n)
	first := i.keep(keyed("two", "body", data("a"), data("b")))
	if _, err := i.Publish(t.Context(), keyed("too many", "body", data("c"), data("d"))); !errors.Is(err, eventsource.ErrKeysFull) {
		t.Errorf("two events more than may be: %v", err)
	}
	i.keep(keyed("one", "body", data("c")))
	if _, err := i.Publish(t.Context(), keyed("another", "body", data("d"))); !errors.Is(err, eventsource.ErrKeysFull) {
		t.Errorf("one event more than may be: %v", err)
	}
	i.publish(to("news"), data("without a key"))
	same(t, "a repeat", i.keep(keyed("two", "body", data("a"), data("b"))), first)
}

func keyForgotten(t *testing.T, f *fixture) {
	n := newNode()
	n.limits.IdempotencyKeys = 1
	i := f.openFor(t, n)
	first := i.keep(keyed("k", "body", data("a")))
	f.Older(t, eventsource.IdempotencyAge-10*time.Second)
	same(t, "shortly before its time", i.keep(keyed("k", "body", data("a"))), first)
	f.Older(t, 10*time.Second)
	again := i.keep(keyed("k", "another body", data("b")))
	if again.Repeated || again.Seq <= first.Seq {
		t.Errorf("after its time: %+v", again)
	}
	f.Older(t, eventsource.IdempotencyAge)
	if other := i.keep(keyed("other", "body", data("c"))); other.Repeated {
		t.Errorf("where the one before makes room: %+v", other)
	}
}

func purgeKeepsKeys(t *testing.T, f *fixture) {
	i := f.open(t)
	first := i.keep(keyed("k", "body", data("a")))
	i.keep(&eventsource.Record{Channels: to("news"), Purge: true})
	i.keep(&eventsource.Record{Channels: to("all"), Purge: true})
	same(t, "after the purge", i.keep(keyed("k", "body", data("a"))), first)
}

func refusalLeavesNoKey(t *testing.T, f *fixture) {
	n := newNode()
	n.limits.Channels = 1
	i := f.openFor(t, n)
	i.store()
	i.publish(to("first"), data("a"))
	if _, err := i.Publish(t.Context(), keyed("k", "body", data("b"))); !errors.Is(err, eventsource.ErrChannelsFull) {
		t.Errorf("a channel too many: %v", err)
	}
	n.mu.Lock()
	n.limits.Channels = 2
	n.mu.Unlock()
	if kept := i.keep(keyed("k", "another body", data("b"))); kept.Repeated {
		t.Errorf("after the refusal: %+v", kept)
	}
}

func repeatAfterReopening(t *testing.T, f *fixture) {
	i := f.open(t)
	first := i.keep(keyed("k", "body", data("a")))
	i.close()
	i = f.open(t)
	same(t, "after another opening", i.keep(keyed("k", "body", data("a"))), first)
	if _, err := i.Publish(t.Context(), keyed("k", "another", data("b"))); !errors.Is(err, eventsource.ErrKeyReused) {
		t.Errorf("with another body: %v", err)
	}
}

func repeatOnAnotherNode(t *testing.T, f *fixture) {
	a, b := f.open(t), f.open(t)
	first := a.keep(keyed("k", "body", data("a")))
	same(t, "on another node", b.keep(keyed("k", "body", data("a"))), first)
	eventually(t, "the event on the other node", func() bool { return len(b.node.events()) == 1 })
	if got := a.node.events(); len(got) != 1 {
		t.Errorf("delivered %v", got)
	}
}
