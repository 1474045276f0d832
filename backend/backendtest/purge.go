package backendtest

import (
	"slices"
	"testing"

	"github.com/railsmechanic/eventsource"
)

var purgeTests = []test{
	{name: "a purge stands in the order", run: purgeStandsInTheOrder},
	{name: "a purge drops a channel and leaves the others", run: purgeDropsAChannel, store: true},
	{name: "an event that another channel keeps stays there", run: purgeLeavesWhatIsKept, store: true},
	{name: "a purge of all drops everything", run: purgeDropsAll, store: true},
	{name: "a purge takes what was published at the same time before it", run: purgeWithinAGroup, store: true},
	{name: "no Seq is given again after a purge and another opening", run: purgeReusesNoSeq, durable: true},
	{name: "marks stand in the order", run: marksStandInTheOrder},
	{name: "marks say what was read", run: marksSayWhatWasRead, store: true},
	{name: "marks outlive the backend", run: marksOutlive, store: true, durable: true},
}

func purgeStandsInTheOrder(t *testing.T, f *fixture) {
	i := f.open(t)
	first := i.publish(to("news"), data("a"))
	purge := i.keep(&eventsource.Record{Channels: to("news", "sport"), Purge: true})
	last := i.publish(to("news"), data("b"))
	if purge.Seq <= first.Seq || last.Seq <= purge.Seq {
		t.Errorf("places %d, %d, %d", first.Seq, purge.Seq, last.Seq)
	}
	records := i.node.delivered()
	if len(records) != 3 || !records[1].Purge || !slices.Equal(records[1].Channels, to("news", "sport")) || records[1].Seq != purge.Seq {
		t.Errorf("delivered %+v", records)
	}
}

// purge purges, and returns the channels that had events.
func (i *instance) purge(names ...string) []string {
	i.t.Helper()
	r := &eventsource.Record{Channels: names, Purge: true}
	i.keep(r)
	return r.Purged
}

func purgeDropsAChannel(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	i.publish(to("a.x"), data("1"))
	last := i.publish(to("a.x"), data("2"))
	other := i.publish(to("a.y"), data("3"))
	global := i.publish(to("all"), data("4"))
	if went := i.purge("nothing", "a.x"); !slices.Equal(went, to("a.x")) {
		t.Errorf("events went of %v", went)
	}
	page := i.read(eventsource.Query{Channel: "a.x"})
	if len(page.Events) != 0 || page.Floor < last.Seq {
		t.Errorf("of the channel: %+v", page)
	}
	page = i.read(eventsource.Query{Channel: "a.*"})
	if len(page.Events) != 1 || page.Events[0].Seq != other.Seq || page.Floor < last.Seq {
		t.Errorf("of the wildcard: %+v", page)
	}
	page = i.read(eventsource.Query{Channel: "*"})
	if len(page.Events) != 1 || page.Events[0].Seq != other.Seq || page.Floor < last.Seq {
		t.Errorf("of every channel: %+v", page)
	}
	if got := i.seqs(eventsource.Query{Channel: "all"}); !slices.Equal(got, []uint64{global.Seq}) {
		t.Errorf("of all: %v", got)
	}
	if names := i.names("", "", 0); !slices.Equal(names, to("a.y")) {
		t.Errorf("channels %v", names)
	}
	again := i.publish(to("a.x"), data("5"))
	page = i.read(eventsource.Query{Channel: "a.x"})
	if len(page.Events) != 1 || page.Events[0].Seq != again.Seq || page.Floor < last.Seq || page.Floor >= again.Seq {
		t.Errorf("of the channel that began anew: %+v", page)
	}
}

func purgeLeavesWhatIsKept(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	kept := i.publish(to("a.x", "b"), data("1"))
	went := i.publish(to("a.x", "a.y"), data("2"))
	i.purge("a.x", "a.y")
	for channel, want := range map[string][]uint64{"a.x": {}, "a.y": {}, "b": {kept.Seq}, "*": {kept.Seq}, "a.*": {kept.Seq}} {
		page := i.read(eventsource.Query{Channel: channel})
		got := []uint64{}
		for _, e := range page.Events {
			got = append(got, e.Seq)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has %v, not %v", channel, got, want)
		}
		if channel != "b" && page.Floor < went.Seq {
			t.Errorf("the floor of %s is %d, below %d", channel, page.Floor, went.Seq)
		}
	}
	if page := i.read(eventsource.Query{Channel: "b"}); page.Floor != 0 || !slices.Equal(page.Events[0].Channels, to("a.x", "b")) {
		t.Errorf("of b: %+v", page)
	}
	i.purge("b")
	if got := i.seqs(eventsource.Query{Channel: "*"}); len(got) != 0 {
		t.Errorf("no channel keeps %v", got)
	}
	if names := i.names("", "", 0); len(names) != 0 {
		t.Errorf("channels %v", names)
	}
}

func purgeDropsAll(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	i.publish(to("b"), data("1"))
	i.publish(to("a.x", "c"), data("2"))
	last := i.publish(to("all"), data("3"))
	if went := i.purge("all"); !slices.Equal(went, to("a.x", "b", "c")) {
		t.Errorf("events went of %v", went)
	}
	for _, channel := range to("a.x", "a.*", "b", "c", "*", "all") {
		page := i.read(eventsource.Query{Channel: channel})
		floor := last.Seq - 2
		if channel == "all" {
			floor = last.Seq
		}
		if len(page.Events) != 0 || page.Floor < floor {
			t.Errorf("of %s: %+v", channel, page)
		}
	}
	if page := i.read(eventsource.Query{Channel: "*"}); page.Floor < last.Seq-1 {
		t.Errorf("the floor of * is %d", page.Floor)
	}
	if names := i.names("", "", 0); len(names) != 0 {
		t.Errorf("channels %v", names)
	}
	if went := i.purge("all"); len(went) != 0 {
		t.Errorf("of nothing went %v", went)
	}
	if next := i.publish(to("b"), data("4")); next.Seq <= last.Seq {
		t.Errorf("the next has %d after %d", next.Seq, last.Seq)
	}
}

func purgeWithinAGroup(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	for range 20 {
		done := make(chan struct{}, 12)
		for n := range 12 {
			go func() {
				defer func() { done <- struct{}{} }()
				r := &eventsource.Record{Channels: to("news"), Events: []eventsource.Event{data("x")}}
				if n == 6 {
					r = &eventsource.Record{Channels: to("news"), Purge: true}
				}
				if _, err := i.Publish(t.Context(), r); err != nil {
					t.Error(err)
				}
			}()
		}
		for range 12 {
			<-done
		}
		var want []uint64
		for _, r := range i.node.delivered() {
			if r.Purge {
				want = nil
			} else {
				want = append(want, r.Seq)
			}
		}
		if got := i.seqs(eventsource.Query{Channel: "news"}); !slices.Equal(got, want) && len(got)+len(want) > 0 {
			t.Fatalf("kept %v, and after the purge came %v", got, want)
		}
	}
}

func purgeReusesNoSeq(t *testing.T, f *fixture) {
	i := f.open(t)
	i.publish(to("news"), data("1"), data("2"))
	purge := i.keep(&eventsource.Record{Channels: to("all"), Purge: true})
	i.close()
	i = f.open(t)
	if i.order.Seq < purge.Seq {
		t.Errorf("the order stands at %d, and %d was given", i.order.Seq, purge.Seq)
	}
	if next := i.publish(to("news"), data("3")); next.Seq <= purge.Seq {
		t.Errorf("%d is given after %d", next.Seq, purge.Seq)
	}
	if _, ok := i.Backend.(eventsource.Store); ok {
		if page := i.read(eventsource.Query{Channel: "news"}); len(page.Events) != 1 || page.Floor < purge.Seq-1 {
			t.Errorf("of the channel: %+v", page)
		}
	}
}

func marksStandInTheOrder(t *testing.T, f *fixture) {
	i := f.open(t)
	first := i.publish(to("users.ada"), data("a"))
	marks := &eventsource.Marks{Seqs: []uint64{first.Seq}}
	kept := i.keep(&eventsource.Record{Channels: to("users.ada"), Marks: marks})
	last := i.publish(to("users.ada"), data("b"))
	if kept.Seq <= first.Seq || last.Seq <= kept.Seq {
		t.Errorf("places %d, %d, %d", first.Seq, kept.Seq, last.Seq)
	}
	records := i.node.delivered()
	if len(records) != 3 || records[1].Marks == nil || !slices.Equal(records[1].Marks.Seqs, marks.Seqs) || len(records[1].Events) != 0 {
		t.Errorf("delivered %+v", records)
	}
}

// mark marks events of a channel, and returns how many are unread then.
func (i *instance) mark(channel string, marks eventsource.Marks) int {
	i.t.Helper()
	r := &eventsource.Record{Channels: to(channel), Marks: &marks}
	i.keep(r)
	return r.Unread
}

func marksSayWhatWasRead(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	var seqs []uint64
	for range 5 {
		seqs = append(seqs, i.publish(to("users.ada", "users.bob"), data("x")).Seq)
	}
	expect := func(what string, unread int, read ...uint64) {
		t.Helper()
		if want := 5 - len(read); unread != want {
			t.Errorf("%s: %d are unread, not %d", what, unread, want)
		}
		got := i.seqs(eventsource.Query{Channel: "users.ada", Status: eventsource.Read})
		if !slices.Equal(got, read) && len(got)+len(read) > 0 {
			t.Errorf("%s: read are %v, not %v", what, got, read)
		}
		if n := i.count(eventsource.Query{Channel: "users.ada", Status: eventsource.Unread}); n != 5-len(read) {
			t.Errorf("%s: %d are counted as unread, not %d", what, n, 5-len(read))
		}
		if n := i.count(eventsource.Query{Channel: "users.bob", Status: eventsource.Read}); n != 0 {
			t.Errorf("%s: %d are read in the other channel", what, n)
		}
	}
	expect("one and one that is not kept", i.mark("users.ada", eventsource.Marks{Seqs: []uint64{seqs[3], seqs[4] + 100}}), seqs[3])
	expect("up to the second", i.mark("users.ada", eventsource.Marks{UpTo: seqs[1]}), seqs[0], seqs[1], seqs[3])
	expect("both at once", i.mark("users.ada", eventsource.Marks{UpTo: seqs[1], Seqs: []uint64{seqs[4]}}), seqs[0], seqs[1], seqs[3], seqs[4])
	expect("taken back", i.mark("users.ada", eventsource.Marks{Seqs: []uint64{seqs[0]}, Unread: true}), seqs[1], seqs[3], seqs[4])
	expect("taken back up to one", i.mark("users.ada", eventsource.Marks{UpTo: seqs[3], Unread: true}), seqs[4])
	for _, e := range i.read(eventsource.Query{Channel: "users.ada"}).Events {
		if e.Read != (e.Seq == seqs[4]) {
			t.Errorf("of %d read is %v", e.Seq, e.Read)
		}
	}
	if n := i.mark("users.nobody", eventsource.Marks{UpTo: seqs[4]}); n != 0 {
		t.Errorf("%d events of nobody are unread", n)
	}
}

func marksOutlive(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	seq := i.publish(to("users.ada"), data("x")).Seq
	i.publish(to("users.ada"), data("y"))
	i.mark("users.ada", eventsource.Marks{Seqs: []uint64{seq}})
	i.close()
	i = f.open(t)
	if got := i.seqs(eventsource.Query{Channel: "users.ada", Status: eventsource.Read}); !slices.Equal(got, []uint64{seq}) {
		t.Errorf("read are %v, not %d", got, seq)
	}
}
