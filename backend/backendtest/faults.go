package backendtest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

var faultTests = []test{
	{name: "while it is away it says so, keeps nothing and comes back by itself", run: awayAndBack, broken: true},
}

func awayAndBack(t *testing.T, f *fixture) {
	i := f.open(t)
	i.publish(to("news"), data("before"))
	f.Break(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := i.Publish(ctx, &eventsource.Record{Channels: to("news"), Events: []eventsource.Event{data("refused")}, Key: "k"})
	if !errors.Is(err, eventsource.ErrUnavailable) {
		t.Errorf("refused with %v", err)
	}
	if reason, said := i.node.available(); !said || reason == nil {
		t.Errorf("it said %v of itself", reason)
	}
	f.Mend(t)
	eventually(t, "its return", func() bool {
		reason, _ := i.node.available()
		return reason == nil
	})
	if kept := i.keep(&eventsource.Record{Channels: to("news"), Events: []eventsource.Event{data("after")}, Key: "k"}); kept.Repeated {
		t.Error("the key of what was refused is remembered")
	}
	if got := i.node.events(); !slices.Equal(got, to("before", "after")) {
		t.Errorf("delivered %v", got)
	}
	if _, ok := i.Backend.(eventsource.Store); ok {
		if n := i.count(eventsource.Query{Channel: "news"}); n != 2 {
			t.Errorf("%d events are kept", n)
		}
	}
}
