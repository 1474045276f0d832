package backendtest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

var retentionTests = []test{
	{name: "a channel keeps no more events than it may", run: keepsNoMore, store: true},
	{name: "what one channel drops another may keep", run: keepsForAnother, store: true},
	{name: "events go when they are too old", run: goByAge, store: true},
	{name: "an event goes when its own time is over", run: goByTTL, store: true},
	{name: "a floor is the highest of what went, in whatever order it did", run: goInAnyOrder, store: true},
	{name: "the longest age of its channels keeps an event", run: longestAge, store: true},
	{name: "bounds that became tighter hold for what was kept before", run: tighterBounds, store: true, durable: true},
	{name: "floors outlive the backend", run: floorsOutlive, store: true, durable: true},
}

// retaining returns a node that retains as it is told.
func retaining(of func(channel string) eventsource.Retention) *node {
	n := newNode()
	n.retention = of
	return n
}

func keepsNoMore(t *testing.T, f *fixture) {
	i := f.openFor(t, retaining(func(channel string) eventsource.Retention {
		if channel == "any" {
			return eventsource.Retention{}
		}
		return eventsource.Retention{Events: 10}
	}))
	i.store()
	var seqs []uint64
	for n := range 35 {
		seqs = append(seqs, i.publish(to("a.x"), data(fmt.Sprint(n))).Seq)
		i.publish(to("any"), data("x"))
		i.publish(to("all"), data("x"))
	}
	eventually(t, "ten events", func() bool { return i.count(eventsource.Query{Channel: "a.x"}) == 10 })
	for _, channel := range to("a.x", "a.*") {
		page := i.read(eventsource.Query{Channel: channel})
		if len(page.Events) != 10 || page.Events[0].Seq != seqs[25] || page.Floor != seqs[24] {
			t.Errorf("%s has %d events from %v with the floor %d, not from %d", channel, len(page.Events), page.Events[0].Seq, page.Floor, seqs[25])
		}
	}
	eventually(t, "ten events for all", func() bool { return i.count(eventsource.Query{Channel: "all"}) == 10 })
	if n := i.count(eventsource.Query{Channel: "any"}); n != 35 {
		t.Errorf("the channel without a bound has %d", n)
	}
	page := i.read(eventsource.Query{Channel: "*"})
	if len(page.Events) != 45 || page.Floor < seqs[24] {
		t.Errorf("* has %d events with the floor %d", len(page.Events), page.Floor)
	}
}

func keepsForAnother(t *testing.T, f *fixture) {
	i := f.openFor(t, retaining(func(channel string) eventsource.Retention {
		if channel == "a.few" {
			return eventsource.Retention{Events: 2}
		}
		return eventsource.Retention{Events: 5}
	}))
	i.store()
	var seqs []uint64
	for range 8 {
		seqs = append(seqs, i.publish(to("a.few", "b.more"), data("x")).Seq)
	}
	eventually(t, "the bounds", func() bool {
		return i.count(eventsource.Query{Channel: "a.few"}) == 2 && i.count(eventsource.Query{Channel: "b.more"}) == 5
	})
	for channel, floor := range map[string]uint64{"a.few": seqs[5], "b.more": seqs[2], "*": seqs[2]} {
		if page := i.read(eventsource.Query{Channel: channel}); page.Floor != floor {
			t.Errorf("the floor of %s is %d, not %d", channel, page.Floor, floor)
		}
	}
	if n := i.count(eventsource.Query{Channel: "*"}); n != 5 {
		t.Errorf("* has %d", n)
	}
}

// gone waits until a channel is empty.
func (i *instance) gone(channel string) {
	i.t.Helper()
	eventually(i.t, "the end of "+channel, func() bool { return i.count(eventsource.Query{Channel: channel}) == 0 })
}

func goByAge(t *testing.T, f *fixture) {
	const age = 600 * time.Millisecond
	i := f.openFor(t, retaining(func(channel string) eventsource.Retention {
		if channel == "long" {
			return eventsource.Retention{Age: time.Hour}
		}
		return eventsource.Retention{Age: age}
	}))
	i.store()
	i.publish(to("long"), data("x"))
	first := i.publish(to("a.x"), data("x"))
	if n := i.count(eventsource.Query{Channel: "a.x"}); n != 1 && time.Since(first.Time) < age {
		t.Error("it went before its time")
	}
	i.gone("a.x")
	if went := time.Since(first.Time); went < age {
		t.Errorf("it went after %v", went)
	}
	for _, channel := range to("a.x", "a.*", "*") {
		if page := i.read(eventsource.Query{Channel: channel}); page.Floor != first.Seq {
			t.Errorf("the floor of %s is %d, not %d", channel, page.Floor, first.Seq)
		}
	}
	if names := i.names("", "", 0); !slices.Equal(names, to("long")) {
		t.Errorf("channels %v", names)
	}
	// Once what went has been taken out, too.
	eventually(t, "the floors after the end", func() bool {
		return i.read(eventsource.Query{Channel: "a.x"}).Floor == first.Seq && time.Since(first.Time) > age+time.Second
	})
	again := i.publish(to("a.x"), data("y"))
	if page := i.read(eventsource.Query{Channel: "a.x"}); page.Floor != first.Seq || len(page.Events) != 1 || page.Events[0].Seq != again.Seq {
		t.Errorf("of the channel that began anew: %+v", page)
	}
}

func goByTTL(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	first := i.publish(to("a.x"), data("1"))
	short := i.publish(to("a.x"), eventsource.Event{Data: "2", TTL: 400 * time.Millisecond})
	last := i.publish(to("a.x"), data("3"))
	eventually(t, "its end", func() bool { return i.count(eventsource.Query{Channel: "a.x"}) == 2 })
	if since := time.Since(short.Time); since < 400*time.Millisecond {
		t.Errorf("it went after %v", since)
	}
	for _, channel := range to("a.x", "a.*", "*") {
		page := i.read(eventsource.Query{Channel: channel})
		if len(page.Events) != 2 || page.Events[0].Seq != first.Seq || page.Events[1].Seq != last.Seq || page.Floor != short.Seq {
			t.Errorf("%s has %+v", channel, page)
		}
	}
	i.mark("a.x", eventsource.Marks{UpTo: first.Seq})
	if n := i.count(eventsource.Query{Channel: "a.x", Status: eventsource.Unread}); n != 1 {
		t.Errorf("%d are unread", n)
	}
}

func goInAnyOrder(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	i.publish(to("a.x", "a.y"), eventsource.Event{Data: "later", TTL: 310 * time.Millisecond})
	last := i.publish(to("a.x", "a.y"), eventsource.Event{Data: "sooner", TTL: 300 * time.Millisecond})
	i.publish(to("a.x"), data("kept"))
	eventually(t, "their end", func() bool { return i.count(eventsource.Query{Channel: "a.*"}) == 1 })
	// Before and after what went has been taken out.
	for time.Since(last.Time) < 1500*time.Millisecond {
		for _, channel := range to("a.x", "a.y", "a.*", "*") {
			if page := i.read(eventsource.Query{Channel: channel}); page.Floor < last.Seq {
				t.Fatalf("the floor of %s is %d, below %d", channel, page.Floor, last.Seq)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func longestAge(t *testing.T, f *fixture) {
	i := f.openFor(t, retaining(func(channel string) eventsource.Retention {
		switch channel {
		case "short":
			return eventsource.Retention{Age: 300 * time.Millisecond}
		case "forever":
			return eventsource.Retention{}
		}
		return eventsource.Retention{Age: time.Hour}
	}))
	i.store()
	i.publish(to("short", "long"), data("x"))
	i.publish(to("forever", "short"), data("x"))
	alone := i.publish(to("short"), data("x"))
	eventually(t, "the end of one", func() bool { return len(i.seqs(eventsource.Query{Channel: "*"})) == 2 })
	for channel, want := range map[string]int{"long": 1, "forever": 1} {
		if n := i.count(eventsource.Query{Channel: channel}); n != want {
			t.Errorf("%s has %d", channel, n)
		}
	}
	if page := i.read(eventsource.Query{Channel: "short"}); page.Floor != alone.Seq {
		t.Errorf("the floor is %d, not %d", page.Floor, alone.Seq)
	}
}

func tighterBounds(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	var few, young []uint64
	for range 20 {
		few = append(few, i.publish(to("a.few"), data("x")).Seq)
		young = append(young, i.publish(to("a.young"), data("x")).Seq)
	}
	other := i.publish(to("b"), data("x"))
	i.close()
	i = f.openFor(t, retaining(func(channel string) eventsource.Retention {
		switch channel {
		case "a.few":
			return eventsource.Retention{Events: 3, Age: time.Hour}
		case "a.young":
			return eventsource.Retention{Events: 100, Age: time.Millisecond}
		}
		return eventsource.Retention{}
	}))
	i.store()
	eventually(t, "the new bounds", func() bool {
		return i.count(eventsource.Query{Channel: "a.few"}) == 3 && i.count(eventsource.Query{Channel: "a.young"}) == 0
	})
	for channel, floor := range map[string]uint64{"a.few": few[16], "a.young": young[19], "a.*": young[19], "*": young[19]} {
		if page := i.read(eventsource.Query{Channel: channel}); page.Floor != floor {
			t.Errorf("the floor of %s is %d, not %d", channel, page.Floor, floor)
		}
	}
	if got := i.seqs(eventsource.Query{Channel: "b"}); !slices.Equal(got, []uint64{other.Seq}) {
		t.Errorf("the other channel has %v", got)
	}
}

func floorsOutlive(t *testing.T, f *fixture) {
	bounds := func(string) eventsource.Retention { return eventsource.Retention{Events: 1} }
	i := f.openFor(t, retaining(bounds))
	i.store()
	first := i.publish(to("a.x"), data("1"))
	i.publish(to("a.x"), data("2"))
	gone := i.publish(to("b"), data("3"))
	i.purge("b")
	eventually(t, "the bound", func() bool { return i.count(eventsource.Query{Channel: "a.x"}) == 1 })
	i.close()
	i = f.openFor(t, retaining(bounds))
	for channel, floor := range map[string]uint64{"a.x": first.Seq, "a.*": first.Seq, "b": gone.Seq, "*": gone.Seq} {
		if page := i.read(eventsource.Query{Channel: channel}); page.Floor != floor {
			t.Errorf("the floor of %s is %d, not %d", channel, page.Floor, floor)
		}
	}
}
