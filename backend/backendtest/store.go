package backendtest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

var storeTests = []test{
	{name: "an event is read as it was published", run: readWhole, store: true},
	{name: "pages follow one another", run: pagesFollow, store: true},
	{name: "a page holds no more bytes than it may, and one event in any case", run: pagesOfBytes, store: true},
	{name: "a page has the types and the id that are asked for", run: pagesAreFiltered, store: true},
	{name: "a wildcard has every channel below it", run: wildcards, store: true},
	{name: "channels are listed in order", run: channelsAreListed, store: true},
	{name: "an empty channel has no floor", run: noFloor, store: true},
	{name: "more channels than may exist are refused", run: channelsFull, store: true},
	{name: "a read whose context has ended fails", run: readGivesUp, store: true},
}

func readWhole(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	kept := i.publish(to("a.x", "b"), whole...)
	page := i.read(eventsource.Query{Channel: "b"})
	if len(page.Events) != len(whole) || page.More || page.Floor != 0 {
		t.Fatalf("read %+v", page)
	}
	for n, got := range page.Events {
		want := whole[n]
		if want.ID == "" {
			want.ID = kept.Epoch.ID(kept.Seq+uint64(n), kept.Time)
		}
		// What is left of it: who takes the event from here must not keep it longer.
		if got.TTL > want.TTL || want.TTL > 0 && got.TTL < want.TTL-time.Minute {
			t.Errorf("%v of %v are left", got.TTL, want.TTL)
		}
		want.TTL, got.TTL = 0, 0
		at := got.Time
		if got.Time = (time.Time{}); want.Retry < 0 && got.Retry < 0 {
			got.Retry = want.Retry
		}
		if !reflect.DeepEqual(got.Event, want) {
			t.Errorf("read %+v, not %+v", got.Event, want)
		}
		if got.Seq != kept.Seq+uint64(n) || !at.Equal(kept.Time) || got.Read || !slices.Equal(got.Channels, to("a.x", "b")) {
			t.Errorf("read at %d, %v, %v", got.Seq, at, got.Channels)
		}
	}
}

func pagesFollow(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	var seqs []uint64
	for n := range 25 {
		seqs = append(seqs, i.publish(to("a.x"), data(fmt.Sprint(n))).Seq)
		i.publish(to("b"), data("another"))
	}
	for _, channel := range to("a.x", "a.*") {
		var forward []uint64
		for after := uint64(0); ; {
			page := i.read(eventsource.Query{Channel: channel, After: after, Limit: 10})
			for _, e := range page.Events {
				forward = append(forward, e.Seq)
				after = e.Seq
			}
			if !page.More {
				break
			}
			if len(page.Events) != 10 {
				t.Fatalf("a page of %d events before the last", len(page.Events))
			}
		}
		if !slices.Equal(forward, seqs) {
			t.Errorf("%s forward: %v", channel, forward)
		}
		var back []uint64
		for before := uint64(0); ; {
			page := i.read(eventsource.Query{Channel: channel, Before: before, Limit: 10, Descending: true})
			for _, e := range page.Events {
				back = append(back, e.Seq)
				before = e.Seq
			}
			if !page.More {
				break
			}
		}
		slices.Reverse(back)
		if !slices.Equal(back, seqs) {
			t.Errorf("%s back: %v", channel, back)
		}
		between := eventsource.Query{Channel: channel, After: seqs[3], Before: seqs[8]}
		if got := i.seqs(between); !slices.Equal(got, seqs[4:8]) {
			t.Errorf("%s between: %v, not %v", channel, got, seqs[4:8])
		}
		between.Limit = 1
		if n := i.count(between); n != 4 {
			t.Errorf("%s: %d are counted, not 4", channel, n)
		}
		if page := i.read(eventsource.Query{Channel: channel, Limit: 25}); page.More {
			t.Errorf("%s: more than all", channel)
		}
	}
}

func pagesOfBytes(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	for range 4 {
		i.publish(to("news"), data(strings.Repeat("x", 1000)))
	}
	for _, tc := range []struct {
		bytes, events int
		more          bool
	}{{1, 1, true}, {2500, 2, true}, {1 << 20, 4, false}, {0, 4, false}} {
		page := i.read(eventsource.Query{Channel: "news", Bytes: tc.bytes})
		if len(page.Events) != tc.events || page.More != tc.more {
			t.Errorf("of %d bytes: %d events, more %v", tc.bytes, len(page.Events), page.More)
		}
	}
}

func pagesAreFiltered(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	var seqs []uint64
	for _, e := range []eventsource.Event{{Data: "0"}, {Data: "1", Type: "a"}, {Data: "2", Type: "b"}, {Data: "3", Type: "message"},
		{Data: "4", ID: "one"}, {Data: "5", ID: "two", Type: "a"}, {Data: "6", ID: "one", Type: "b"}} {
		seqs = append(seqs, i.publish(to("a.x"), e).Seq)
	}
	i.publish(to("b"), eventsource.Event{Data: "7", ID: "one"})
	at := func(places ...int) []uint64 {
		want := []uint64{}
		for _, p := range places {
			want = append(want, seqs[p])
		}
		return want
	}
	for _, channel := range to("a.x", "a.*") {
		for _, tc := range []struct {
			query eventsource.Query
			want  []uint64
		}{
			{eventsource.Query{Types: to("a")}, at(1, 5)},
			{eventsource.Query{Types: to("a", "b")}, at(1, 2, 5, 6)},
			{eventsource.Query{Types: to("message")}, at(0, 3, 4)},
			{eventsource.Query{Types: to("none")}, at()},
			{eventsource.Query{ID: "one"}, at(4, 6)},
			{eventsource.Query{ID: "one", Descending: true, Limit: 1}, at(6)},
			{eventsource.Query{ID: "one", Types: to("b")}, at(6)},
			{eventsource.Query{ID: "one", After: seqs[4]}, at(6)},
			{eventsource.Query{ID: "none"}, at()},
			{eventsource.Query{Types: to("a"), Descending: true}, at(5, 1)},
		} {
			tc.query.Channel = channel
			if got := i.seqs(tc.query); !slices.Equal(got, tc.want) {
				t.Errorf("%+v has %v, not %v", tc.query, got, tc.want)
			}
			if tc.query.Limit == 0 {
				if n := i.count(tc.query); n != len(tc.want) {
					t.Errorf("%+v counts %d, not %d", tc.query, n, len(tc.want))
				}
			}
		}
	}
	if got := i.seqs(eventsource.Query{Channel: "*", ID: "one"}); len(got) != 3 {
		t.Errorf("of every channel: %v", got)
	}
}

func wildcards(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	for _, channels := range [][]string{{"pets"}, {"pets.cats"}, {"pets.cats.siamese"}, {"petshop"}, {"all"}, {"pets.cats", "pets.dogs", "news"}, {"users.ada"}} {
		i.publish(channels, data(strings.Join(channels, ",")))
	}
	for channel, want := range map[string][]string{
		"pets":        {"pets"},
		"pets.*":      {"pets.cats", "pets.cats.siamese", "pets.cats,pets.dogs,news"},
		"pets.cats":   {"pets.cats", "pets.cats,pets.dogs,news"},
		"pets.cats.*": {"pets.cats.siamese"},
		"news.*":      {},
		"users.*":     {"users.ada"},
		"all":         {"all"},
		"*":           {"pets", "pets.cats", "pets.cats.siamese", "petshop", "pets.cats,pets.dogs,news", "users.ada"},
	} {
		got := []string{}
		for _, e := range i.read(eventsource.Query{Channel: channel}).Events {
			got = append(got, e.Data)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has %q, not %q", channel, got, want)
		}
		if n := i.count(eventsource.Query{Channel: channel}); n != len(want) {
			t.Errorf("%s counts %d, not %d", channel, n, len(want))
		}
	}
}

func channelsAreListed(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	for _, name := range to("b", "a.x", "a", "a.x.y", "a~b", "B", "all", "a.y") {
		i.publish(to(name), data("x"))
	}
	for _, tc := range []struct {
		prefix, after string
		limit         int
		want          []string
	}{
		{"", "", 0, to("B", "a", "a.x", "a.x.y", "a.y", "a~b", "b")},
		{"", "a", 2, to("a.x", "a.x.y")},
		{"a.", "", 10, to("a.x", "a.x.y", "a.y")},
		{"a.", "a.x", 10, to("a.x.y", "a.y")},
		{"a.", "a", 1, to("a.x")},
		{"al", "", 0, []string{}},
		{"c", "", 0, []string{}},
		{"a", "b", 0, []string{}},
	} {
		if got := i.names(tc.prefix, tc.after, tc.limit); !slices.Equal(got, tc.want) {
			t.Errorf("with %q after %q: %q, not %q", tc.prefix, tc.after, got, tc.want)
		}
	}
}

func noFloor(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	kept := i.publish(to("a.x"), data("x"))
	for _, channel := range to("none", "a.x", "a.*", "*", "all", "none.*") {
		if page := i.read(eventsource.Query{Channel: channel}); page.Floor != 0 {
			t.Errorf("the floor of %s is %d", channel, page.Floor)
		}
	}
	passing := i.publish(to("a.y"), eventsource.Event{Data: "y", TTL: -1})
	for channel, floor := range map[string]uint64{"a.y": passing.Seq, "a.*": passing.Seq, "*": passing.Seq} {
		page := i.read(eventsource.Query{Channel: channel})
		if page.Floor < floor {
			t.Errorf("the floor of %s is %d, and %d is kept no longer", channel, page.Floor, floor)
		}
	}
	if page := i.read(eventsource.Query{Channel: "a.x"}); page.Floor >= kept.Seq || len(page.Events) != 1 {
		t.Errorf("of the other channel: %+v", page)
	}
	if names := i.names("", "", 0); !slices.Equal(names, to("a.x")) {
		t.Errorf("channels %v", names)
	}
}

func channelsFull(t *testing.T, f *fixture) {
	n := newNode()
	n.limits.Channels = 2
	i := f.openFor(t, n)
	i.store()
	refused := func(channels ...string) {
		t.Helper()
		if _, err := i.Publish(t.Context(), &eventsource.Record{Channels: channels, Events: []eventsource.Event{data("x")}}); !errors.Is(err, eventsource.ErrChannelsFull) {
			t.Errorf("to %v: %v", channels, err)
		}
	}
	i.publish(to("a.x.y"), data("1"))
	refused("b", "c")
	i.publish(to("b"), data("2"))
	refused("c")
	refused("b", "c")
	i.publish(to("a.x.y", "b"), data("3"))
	i.publish(to("all"), data("4"))
	i.purge("b")
	i.publish(to("c"), data("5"))
	refused("b")
	if got := i.names("", "", 0); !slices.Equal(got, to("a.x.y", "c")) {
		t.Errorf("channels %v", got)
	}
	if got := i.node.delivered(); len(got) != 6 {
		t.Errorf("%d records were delivered, not 6", len(got))
	}
}

func readGivesUp(t *testing.T, f *fixture) {
	i := f.open(t)
	s := i.store()
	i.publish(to("news"), data("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Read(ctx, eventsource.Query{Channel: "news"}); !errors.Is(err, context.Canceled) {
		t.Errorf("read with %v", err)
	}
	for range 20 { // what it had in its hands is there for others
		i.read(eventsource.Query{Channel: "news"})
	}
}
