package backendtest

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

var serverTests = []test{
	{name: "who follows gets what is published", run: followersGet},
	{name: "who comes back gets what it missed", run: resumes},
	{name: "who comes back to a gap is told", run: gapIsTold},
	{name: "who is connected to another node gets it too", run: followersElsewhere, shared: true},
}

// serve returns a server with a backend of the place. It is shut down with the test.
func (f *fixture) serve(t *testing.T, settings eventsource.Settings) *eventsource.Server {
	t.Helper()
	settings.Backend = f.Open(t)
	s, err := eventsource.Open(&settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error("shutdown:", err)
		}
	})
	return s
}

// follow yields what a server sends, until the test is over.
func follow(t *testing.T, s *eventsource.Server, channel string, sub *eventsource.Subscription) (next func() eventsource.Event) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	pull, stop := iter.Pull2(s.Subscribe(ctx, channel, sub))
	t.Cleanup(func() { cancel(); stop() })
	return func() eventsource.Event {
		t.Helper()
		e, err, ok := pull()
		if err != nil || !ok {
			t.Fatalf("following %s: %v", channel, err)
		}
		return e
	}
}

// send publishes to a server, and returns the event's id.
func send(t *testing.T, s *eventsource.Server, channel, text string) string {
	t.Helper()
	receipt, err := s.Publish(t.Context(), channel, data(text))
	if err != nil {
		t.Fatal(err)
	}
	return receipt.IDs[0]
}

func followersGet(t *testing.T, f *fixture) {
	s := f.serve(t, eventsource.Settings{})
	next := follow(t, s, "a.x,b.*", nil)
	for n, channel := range to("a.x", "b.y", "a.x,b.y", "all", "c", "b.y.z") {
		id := send(t, s, channel, fmt.Sprint(n))
		if channel == "c" {
			continue
		}
		if e := next(); e.Data != fmt.Sprint(n) || e.ID != id {
			t.Errorf("got %+v of %s, not %d with %s", e, channel, n, id)
		}
	}
}

func resumes(t *testing.T, f *fixture) {
	s := f.serve(t, eventsource.Settings{})
	first := send(t, s, "news", "0")
	var want []string
	for n := range 20 {
		send(t, s, "news", fmt.Sprint(n+1))
		want = append(want, fmt.Sprint(n+1))
	}
	next := follow(t, s, "news", &eventsource.Subscription{LastEventID: first})
	var got []string
	for range want {
		got = append(got, next().Data)
	}
	send(t, s, "news", "live")
	if got = append(got, next().Data); !slices.Equal(got, append(want, "live")) {
		t.Errorf("got %v", got)
	}
}

func gapIsTold(t *testing.T, f *fixture) {
	s := f.serve(t, eventsource.Settings{History: eventsource.History{Events: 2}, Retention: eventsource.Retention{Events: 2}})
	first := send(t, s, "news", "0")
	send(t, s, "news", "1")
	s.Close("news")
	send(t, s, "news", "2")
	next := follow(t, s, "news", &eventsource.Subscription{LastEventID: first})
	if e := next(); e.Type != "eventsource.gap" {
		t.Errorf("in place of the gap: %+v", e)
	}
	if e := next(); e.Data != "2" {
		t.Errorf("after the gap: %+v", e)
	}
}

func followersElsewhere(t *testing.T, f *fixture) {
	a, b := f.serve(t, eventsource.Settings{}), f.serve(t, eventsource.Settings{})
	next := follow(t, b, "news", nil)
	for n := range 5 {
		id := send(t, a, "news", fmt.Sprint(n))
		if e := next(); e.Data != fmt.Sprint(n) || e.ID != id {
			t.Errorf("got %+v, not %d with %s", e, n, id)
		}
	}
}
