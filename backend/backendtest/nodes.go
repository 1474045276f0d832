package backendtest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/railsmechanic/eventsource"
)

var nodeTests = []test{
	{name: "every node gets every event in one order", run: nodesShareOneOrder, shared: true},
	{name: "a node that joins later begins where the order stands", run: nodeJoinsLater, shared: true},
	{name: "purges and marks reach every node", run: purgesReachNodes, shared: true},
}

func nodesShareOneOrder(t *testing.T, f *fixture) {
	const publishers, each = 4, 25
	nodes := []*instance{f.open(t), f.open(t), f.open(t)}
	var wg sync.WaitGroup
	for n, i := range nodes {
		for p := range publishers {
			wg.Go(func() {
				for e := range each {
					r := &eventsource.Record{Channels: to("news"), Events: []eventsource.Event{data(fmt.Sprintf("%d/%d/%d", n, p, e)), data("second")}}
					if _, err := i.Publish(t.Context(), r); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	all := len(nodes) * publishers * each
	for _, i := range nodes {
		eventually(t, "all records", func() bool { return len(i.node.delivered()) == all })
	}
	first := nodes[0].node.delivered()
	for _, i := range nodes[1:] {
		if !slices.EqualFunc(i.node.delivered(), first, func(a, b eventsource.Record) bool {
			return a.Seq == b.Seq && a.Time.Equal(b.Time) && len(a.Events) == len(b.Events) && a.Events[0].Data == b.Events[0].Data && slices.Equal(a.Channels, b.Channels)
		}) {
			t.Error("two nodes have different orders")
		}
		if i.order.Epoch.Number != nodes[0].order.Epoch.Number {
			t.Error("two nodes are in different lives")
		}
	}
}

func nodeJoinsLater(t *testing.T, f *fixture) {
	a := f.open(t)
	kept := a.publish(to("news"), data("before"))
	b := f.open(t)
	if b.order.Seq < kept.Seq {
		t.Errorf("the order stands at %d, and %d was given", b.order.Seq, kept.Seq)
	}
	a.publish(to("news"), data("after"))
	eventually(t, "the event", func() bool { return len(b.node.delivered()) > 0 })
	if got := b.node.events(); !slices.Equal(got, to("after")) {
		t.Errorf("delivered %v", got)
	}
}

func purgesReachNodes(t *testing.T, f *fixture) {
	a, b := f.open(t), f.open(t)
	kept := a.publish(to("users.ada"), data("x"))
	a.keep(&eventsource.Record{Channels: to("users.ada"), Marks: &eventsource.Marks{Seqs: []uint64{kept.Seq}}})
	a.keep(&eventsource.Record{Channels: to("users.ada"), Purge: true})
	eventually(t, "the three records", func() bool { return len(b.node.delivered()) == 3 })
	got := b.node.delivered()
	if got[1].Marks == nil || !slices.Equal(got[1].Marks.Seqs, []uint64{kept.Seq}) || !got[2].Purge {
		t.Errorf("delivered %+v", got)
	}
}
