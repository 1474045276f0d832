package backendtest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

var orderTests = []test{
	{name: "a publish returns when its node has had the events", run: returnsAfterDelivery},
	{name: "events arrive as they were published", run: eventsArriveWhole},
	{name: "concurrent publishers see one order", run: oneOrder},
	{name: "a batch stands together", run: batchesStandTogether},
	{name: "a record of several channels is one record", run: severalChannels},
	{name: "an event that nobody keeps takes its place", run: unkeptTakesItsPlace},
	{name: "who gave up is told whether it was kept", run: givingUp},
	{name: "after Close nothing is kept", run: nothingAfterClose},
	{name: "what Close meets on its way is kept or refused", run: closeAnswers},
}

func returnsAfterDelivery(t *testing.T, f *fixture) {
	i := f.open(t)
	last := i.order.Seq
	for n := range 20 {
		text := fmt.Sprint(n)
		before := time.Now().Add(-time.Second)
		kept := i.publish(to("news"), data(text))
		records := i.node.delivered()
		if len(records) != n+1 || records[n].Events[0].Data != text {
			t.Fatalf("after the publish of %s the node has %d records", text, len(records))
		}
		if kept.Seq <= last || records[n].Seq != kept.Seq {
			t.Errorf("the Seq is %d after %d, delivered with %d", kept.Seq, last, records[n].Seq)
		}
		if kept.Epoch != i.order.Epoch || kept.Repeated {
			t.Errorf("kept as %+v in the life %+v", kept, i.order.Epoch)
		}
		if kept.Time.Before(before) || kept.Time.After(time.Now().Add(time.Second)) || kept.Time.Before(i.order.Epoch.Since) {
			t.Errorf("the time is %v, at %v, since %v", kept.Time, time.Now(), i.order.Epoch.Since)
		}
		if !records[n].Time.Equal(kept.Time) {
			t.Errorf("delivered with the time %v, kept with %v", records[n].Time, kept.Time)
		}
		last = kept.Seq
	}
}

// whole are events with everything that one may have.
var whole = []eventsource.Event{
	{Data: "plain"},
	{ID: "given", Type: "sort", Data: "two\nlines\r\nand\x00more — “ü”", Retry: 1500 * time.Millisecond},
	{Data: ""},
	{ID: "no data", NoData: true},
	{Type: "again", NoData: true, Retry: -1},
	{Data: "short-lived", TTL: time.Hour},
}

func eventsArriveWhole(t *testing.T, f *fixture) {
	i := f.open(t)
	i.publish(to("news"), whole...)
	got := i.node.delivered()[0]
	if !reflect.DeepEqual(got.Events, whole) || !slices.Equal(got.Channels, to("news")) || got.Purge || got.Marks != nil {
		t.Errorf("delivered %+v", got)
	}
}

func oneOrder(t *testing.T, f *fixture) {
	const publishers, each = 16, 40
	i := f.open(t)
	kept := make([][]uint64, publishers)
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for n := range each {
				k, err := i.Publish(t.Context(), &eventsource.Record{
					Channels: to(fmt.Sprintf("from.%d", p)), Events: []eventsource.Event{data(fmt.Sprintf("%d/%d", p, n))}})
				if err != nil {
					t.Error(err)
					return
				}
				kept[p] = append(kept[p], k.Seq)
			}
		})
	}
	wg.Wait()
	records := i.node.delivered()
	if len(records) != publishers*each {
		t.Fatalf("%d records were delivered, not %d", len(records), publishers*each)
	}
	at := map[uint64]string{}
	for _, r := range records {
		at[r.Seq] = r.Events[0].Data
	}
	for p := range publishers {
		if !slices.IsSorted(kept[p]) {
			t.Errorf("publisher %d has the places %v", p, kept[p])
		}
		for n, seq := range kept[p] {
			if want := fmt.Sprintf("%d/%d", p, n); at[seq] != want {
				t.Errorf("at %d is %q, not %q", seq, at[seq], want)
			}
		}
	}
}

func batchesStandTogether(t *testing.T, f *fixture) {
	const publishers, each, size = 8, 10, 7
	i := f.open(t)
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for n := range each {
				r := &eventsource.Record{Channels: to("news")}
				for e := range size {
					r.Events = append(r.Events, data(fmt.Sprintf("%d/%d/%d", p, n, e)))
				}
				if _, err := i.Publish(t.Context(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	records := i.node.delivered()
	if len(records) != publishers*each {
		t.Fatalf("%d records were delivered, not %d", len(records), publishers*each)
	}
	end := uint64(0)
	for _, r := range records {
		if r.Seq <= end {
			t.Errorf("a batch begins at %d, within the one that ends at %d", r.Seq, end)
		}
		end = r.Seq + size - 1
		var p, n int
		fmt.Sscanf(r.Events[0].Data, "%d/%d", &p, &n)
		for e := range r.Events {
			if want := fmt.Sprintf("%d/%d/%d", p, n, e); r.Events[e].Data != want {
				t.Errorf("in a batch %q stands in place of %q", r.Events[e].Data, want)
			}
		}
	}
	if _, ok := i.Backend.(eventsource.Store); ok {
		var texts []string
		for _, e := range i.read(eventsource.Query{Channel: "news"}).Events {
			texts = append(texts, e.Data)
		}
		if !slices.Equal(texts, i.node.events()) {
			t.Error("the store has them in another order")
		}
	}
}

func severalChannels(t *testing.T, f *fixture) {
	i := f.open(t)
	kept := i.publish(to("a.x", "a.y", "b"), data("one"), data("two"))
	if next := i.publish(to("a.x"), data("three")); next.Seq <= kept.Seq+1 {
		t.Errorf("two events at %d, the next at %d", kept.Seq, next.Seq)
	}
	records := i.node.delivered()
	if len(records) != 2 || !slices.Equal(records[0].Channels, to("a.x", "a.y", "b")) || len(records[0].Events) != 2 {
		t.Errorf("delivered %+v", records)
	}
}

func unkeptTakesItsPlace(t *testing.T, f *fixture) {
	i := f.open(t)
	first := i.publish(to("news"), data("a"))
	passing := i.publish(to("news"), eventsource.Event{Data: "b", TTL: -1})
	last := i.publish(to("news"), data("c"))
	if passing.Seq <= first.Seq || last.Seq <= passing.Seq {
		t.Errorf("places %d, %d, %d", first.Seq, passing.Seq, last.Seq)
	}
	if got := i.node.events(); !slices.Equal(got, to("a", "b", "c")) {
		t.Errorf("delivered %v", got)
	}
}

func givingUp(t *testing.T, f *fixture) {
	i := f.open(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var kept []string
	for n := range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		if n%5 == 0 {
			cancel()
		}
		wg.Go(func() {
			text := fmt.Sprint(n)
			switch _, err := i.Publish(ctx, &eventsource.Record{Channels: to("news"), Events: []eventsource.Event{data(text)}}); {
			case err == nil:
				mu.Lock()
				kept = append(kept, text)
				mu.Unlock()
			case !errors.Is(err, context.Canceled):
				t.Error(err)
			}
		})
		wg.Go(cancel)
	}
	wg.Wait()
	i.publish(to("news"), data("last"))
	kept = append(kept, "last")
	got := i.node.events()
	slices.Sort(kept)
	slices.Sort(got)
	if !slices.Equal(got, kept) {
		t.Errorf("delivered %v, and told of %v", got, kept)
	}
}

func nothingAfterClose(t *testing.T, f *fixture) {
	i := f.open(t)
	i.publish(to("news"), data("a"))
	i.close()
	if _, err := i.Publish(t.Context(), &eventsource.Record{Channels: to("news"), Events: []eventsource.Event{data("b")}}); !errors.Is(err, eventsource.ErrClosed) {
		t.Errorf("published with %v", err)
	}
	if err := i.Close(); err != nil {
		t.Errorf("closed again with %v", err)
	}
	if got := i.node.events(); !slices.Equal(got, to("a")) {
		t.Errorf("delivered %v", got)
	}
	if s, ok := i.Backend.(eventsource.Store); ok {
		if _, err := s.Read(t.Context(), eventsource.Query{Channel: "news"}); !errors.Is(err, eventsource.ErrClosed) {
			t.Errorf("read with %v", err)
		}
	}
}

func closeAnswers(t *testing.T, f *fixture) {
	i := f.open(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var kept []string
	started := make(chan struct{}, 32)
	for p := range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				text := fmt.Sprintf("%d/%d", p, n)
				_, err := i.Publish(t.Context(), &eventsource.Record{Channels: to("news"), Events: []eventsource.Event{data(text)}})
				if errors.Is(err, eventsource.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				kept = append(kept, text)
				mu.Unlock()
				select {
				case started <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 16 {
		<-started
	}
	i.close()
	wg.Wait()
	got := i.node.events()
	slices.Sort(kept)
	slices.Sort(got)
	if !slices.Equal(got, kept) {
		t.Errorf("%d were delivered, and %d told of", len(got), len(kept))
	}
}
