package backendtest

import (
	"slices"
	"testing"

	"github.com/railsmechanic/eventsource"
)

var lifeTests = []test{
	{name: "an empty place begins at 0", run: emptyBegins},
	{name: "what was kept is there after another opening", run: keptAfterReopening, store: true, durable: true},
	{name: "places go on after another opening", run: placesGoOn, durable: true},
	{name: "ids of earlier lives stay as they were", run: idsStay, durable: true},
	{name: "a place that was restored begins a life that knows where the copy ended", run: restored, restored: true, durable: true},
}

func emptyBegins(t *testing.T, f *fixture) {
	i := f.open(t)
	if i.order.Seq != 0 || len(i.order.Earlier) != 0 {
		t.Errorf("the order is %+v", i.order)
	}
	if kept := i.publish(to("news"), data("x")); kept.Seq == 0 {
		t.Error("an event has the Seq 0")
	}
}

func keptAfterReopening(t *testing.T, f *fixture) {
	i := f.open(t)
	i.store()
	i.publish(to("a.x", "b"), whole...)
	i.publish(to("all"), data("x"))
	before := map[string]eventsource.Page{}
	channels := to("a.x", "b", "a.*", "*", "all")
	for _, channel := range channels {
		before[channel] = i.read(eventsource.Query{Channel: channel})
	}
	i.close()
	i = f.open(t)
	for _, channel := range channels {
		got, want := i.read(eventsource.Query{Channel: channel}), before[channel]
		if got.Floor != want.Floor || !slices.EqualFunc(got.Events, want.Events, func(a, b eventsource.Stored) bool {
			return a.Seq == b.Seq && a.ID == b.ID && a.Data == b.Data && a.NoData == b.NoData && a.Type == b.Type &&
				a.Retry == b.Retry && a.Time.Equal(b.Time) && slices.Equal(a.Channels, b.Channels)
		}) {
			t.Errorf("%s has %+v, not %+v", channel, got, want)
		}
	}
	if got := i.node.delivered(); len(got) != 0 {
		t.Errorf("delivered once more: %+v", got)
	}
}

func placesGoOn(t *testing.T, f *fixture) {
	last := uint64(0)
	for range 3 {
		i := f.open(t)
		if i.order.Seq != last {
			t.Errorf("the order stands at %d, not %d", i.order.Seq, last)
		}
		kept := i.publish(to("news"), data("a"), data("b"))
		if kept.Seq <= last {
			t.Errorf("%d is given after %d", kept.Seq, last)
		}
		last = kept.Seq + 1
		i.close()
	}
}

func idsStay(t *testing.T, f *fixture) {
	var ids []string
	var orders []eventsource.Order
	for range 4 {
		i := f.open(t)
		kept := i.publish(to("news"), data("x"))
		ids = append(ids, kept.Epoch.ID(kept.Seq, kept.Time))
		orders = append(orders, i.order)
		if _, ok := i.Backend.(eventsource.Store); ok {
			var got []string
			for _, e := range i.read(eventsource.Query{Channel: "news"}).Events {
				got = append(got, e.ID)
			}
			if !slices.Equal(got, ids) {
				t.Errorf("the ids are %v, not %v", got, ids)
			}
		}
		i.close()
	}
	// Every life that ended is known, with where it did.
	last := orders[3]
	for n, o := range orders[:3] {
		if o.Epoch.Number == last.Epoch.Number && o.Epoch.Since.Equal(last.Epoch.Since) {
			continue // the life goes on
		}
		at := slices.IndexFunc(last.Earlier, func(l eventsource.Life) bool {
			return l.Epoch.Number == o.Epoch.Number && l.Epoch.Since.Equal(o.Epoch.Since)
		})
		if at < 0 {
			t.Errorf("the life %+v is not known any more", o.Epoch)
		} else if l := last.Earlier[at]; l.Last != orders[n+1].Seq {
			t.Errorf("a life ended at %d, not %d", l.Last, orders[n+1].Seq)
		}
	}
}

func restored(t *testing.T, f *fixture) {
	i := f.open(t)
	kept := i.publish(to("news"), data("kept"))
	saved := i.order.Epoch
	i.close()
	f.Save(t)
	i = f.open(t)
	lost := i.publish(to("news"), data("lost"))
	i.close()
	f.Restore(t)
	i = f.open(t)
	if i.order.Epoch.Number == lost.Epoch.Number {
		t.Error("the life that has lost events goes on")
	}
	for _, l := range i.order.Earlier {
		switch {
		case l.Epoch.Number == saved.Number && l.Last != kept.Seq:
			t.Errorf("the life of the copy ended at %d, not %d", l.Last, kept.Seq)
		case l.Epoch.Number == lost.Epoch.Number && l.Last >= lost.Seq:
			t.Errorf("a life that the copy does not know is said to have got to %d", l.Last)
		}
	}
	again := i.publish(to("news"), data("again"))
	if again.Epoch.ID(again.Seq, again.Time) == lost.Epoch.ID(lost.Seq, lost.Time) {
		t.Error("an id is given twice")
	}
}
