package eventsource_test

import (
	"context"
	"errors"
	"iter"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/railsmechanic/eventsource"
)

// take returns the data of the next events of a subscription, "gap" being one.
func take(t *testing.T, events iter.Seq2[eventsource.Event, error], n int) []string {
	t.Helper()
	var data []string
	for e, err := range events {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type == "eventsource.gap" {
			e.Data = "gap"
		}
		if data = append(data, e.Data); len(data) == n {
			break
		}
	}
	return data
}

func TestASubscriptionBeginsWhereItIsAskedTo(t *testing.T) {
	type sub = eventsource.Subscription
	for _, tc := range []struct {
		channels string
		from     func(ids []string) *sub
		want     string
	}{
		{"news", func([]string) *sub { return nil }, "live"},
		{"news", func([]string) *sub { return &sub{History: 2} }, "4 5 live"},
		{"news", func([]string) *sub { return &sub{History: 9, Types: []string{"a", "message"}} }, "2 4 live"},
		{"news,sport,*", func(ids []string) *sub { return &sub{LastEventID: ids[3]} }, "4 5 live"},
		{"news", func(ids []string) *sub { return &sub{LastEventID: ids[3], History: 1} }, "4 5 live"},
		{"news", func(ids []string) *sub { return &sub{LastEventID: ids[0]} }, "gap 2 3 4 5 live"},
		{"news", func([]string) *sub { return &sub{LastEventID: "unknown", Types: []string{"b", "message"}} }, "gap 3 5 live"},
		{"sport", func(ids []string) *sub { return &sub{LastEventID: ids[0]} }, "live"},
	} {
		s := openWith(t, &eventsource.Settings{History: eventsource.History{Events: 4}})
		var ids []string
		for i := range 6 {
			ids = append(ids, publish(t, s, "news", eventsource.Event{Type: string(rune('a' + i%2)), Data: strconv.Itoa(i)})...)
		}
		follow := s.Subscribe(t.Context(), tc.channels, tc.from(ids))
		if s.ConsumerCountAll() != 1 {
			t.Errorf("%s: it is no consumer yet", tc.channels)
		}
		publish(t, s, "all", eventsource.Event{Data: "live"})
		if got := strings.Join(take(t, follow, len(strings.Fields(tc.want))), " "); got != tc.want {
			t.Errorf("%s from %+v: %s, not %s", tc.channels, tc.from(ids), got, tc.want)
		}
		if got := s.ConsumerCountAll(); got != 0 {
			t.Errorf("%s: %d consumers are left", tc.channels, got)
		}
	}
}

func TestASubscriptionYieldsWhatWasPublished(t *testing.T) {
	s := openWith(t, nil)
	follow := s.Subscribe(t.Context(), "pets.*", nil)
	want := eventsource.Event{ID: "i", Type: "t", Data: " a\r\nb\r\rc\n", Retry: 1000_000_000}
	publish(t, s, "news,pets.cats", want)
	for e, err := range follow {
		if err != nil || e.Channel != "pets.cats" || e.Time.IsZero() {
			t.Errorf("got %+v, %v", e, err)
		}
		e.Channel, e.Time = "", want.Time
		if e != want {
			t.Errorf("got %+v, not %+v", e, want)
		}
		break
	}
}

func TestWhatCantBeSubscribedIsAProblem(t *testing.T) {
	s := openWith(t, &eventsource.Settings{Limits: eventsource.Limits{Consumers: 1}})
	s.Subscribe(t.Context(), "news", nil)
	for channels, status := range map[string]int{"all": 400, "news,all": 400, "@me": 400, "no name!": 404, "": 404, "health": 404, "news": 503} {
		for _, err := range s.Subscribe(t.Context(), channels, nil) {
			if p, ok := errors.AsType[*eventsource.Problem](err); !ok || p.Status != status {
				t.Errorf("%q: %v, not a %d", channels, err, status)
			}
		}
	}
	for _, err := range s.Subscribe(t.Context(), "news", &eventsource.Subscription{LastEventID: strings.Repeat("x", 256)}) {
		if p, ok := errors.AsType[*eventsource.Problem](err); !ok || p.Status != 400 {
			t.Errorf("a long id: %v", err)
		}
	}
}

func TestWhatCantBePublishedFromGoIsAProblem(t *testing.T) {
	s := openWith(t, nil)
	for _, tc := range []struct {
		channels string
		events   []eventsource.Event
		status   int
	}{
		{"news", nil, 400},
		{"news", []eventsource.Event{{Data: "x"}, {NoData: true}}, 400},
		{"news", []eventsource.Event{{ID: " "}}, 400},
		{"@me", []eventsource.Event{{}}, 400},
		{"pets.*", []eventsource.Event{{}}, 404},
		{"no name!", []eventsource.Event{{}}, 404},
	} {
		_, err := s.Publish(t.Context(), tc.channels, tc.events...)
		if p, ok := errors.AsType[*eventsource.Problem](err); !ok || p.Status != tc.status {
			t.Errorf("%s %+v: %v, not a %d", tc.channels, tc.events, err, tc.status)
		}
	}
	if s.Stats().Mark != 0 {
		t.Error("something was published")
	}
}

func TestASubscriptionEndsWithItsContext(t *testing.T) {
	s := openWith(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	follow := s.Subscribe(ctx, "news", nil)
	publish(t, s, "news", eventsource.Event{Data: "x"}, eventsource.Event{Data: "never seen"})
	n := 0
	for _, err := range follow {
		if err != nil {
			t.Error(err)
		}
		n++
		cancel()
	}
	if n != 1 || s.ConsumerCountAll() != 0 {
		t.Errorf("%d events, %d consumers are left", n, s.ConsumerCountAll())
	}
	for range follow {
		t.Error("it can be ranged over twice")
	}

	// One that nobody ranges over leaves with its context, too.
	ctx, cancel = context.WithCancel(t.Context())
	s.Subscribe(ctx, "news", nil)
	if s.ConsumerCountAll() != 1 {
		t.Error("it is no consumer")
	}
	cancel()
	eventually(t, "it has left", func() bool { return s.ConsumerCountAll() == 0 })
}

// reason returns why a subscription ended, and how many events came before.
func reason(events iter.Seq2[eventsource.Event, error]) (why string, n int) {
	for _, err := range events {
		if end, ok := errors.AsType[*eventsource.EndError](err); ok {
			return end.Reason, n
		}
		n++
	}
	return "", n
}

func TestASubscriptionIsToldWhyItEnds(t *testing.T) {
	s := openWith(t, nil)
	closed := s.Subscribe(t.Context(), "news", nil)
	drained := s.Subscribe(t.Context(), "news.*,sport", nil)
	publish(t, s, "news,sport", eventsource.Event{Data: "x"})
	s.Close("news")
	if why, n := reason(closed); why != "closed" || n != 1 {
		t.Errorf("DELETE: %q after %d events", why, n)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(s.Stop)
	if why, n := reason(drained); why != "draining" || n != 1 {
		t.Errorf("shutdown: %q after %d events", why, n)
	}
}

func TestASubscriberThatReadsTooSlowlyIsEnded(t *testing.T) {
	s := openWith(t, &eventsource.Settings{History: eventsource.History{Events: -1}})
	slow := s.Subscribe(t.Context(), "news", nil)
	quick := s.Subscribe(t.Context(), "news", nil)
	data := strings.Repeat("x", 100_000)
	next, stop := iter.Pull2(quick)
	defer stop()
	for range 100 { // 10 MB, where 4 MiB are kept for it
		publish(t, s, "news", eventsource.Event{Data: data})
		if e, err, ok := next(); e.Data != data || err != nil || !ok {
			t.Fatal(err, ok)
		}
	}
	if why, _ := reason(slow); why != "slow" {
		t.Errorf("it ended: %q", why)
	}
	if got := s.Stats().Disconnects["slow"]; got != 1 {
		t.Errorf("%d are counted as slow", got)
	}
}

func TestStatsCountWhatHappened(t *testing.T) {
	n := newNode(t, nil)
	one, wild := n.follow(t, "/news"), n.follow(t, "/*")
	publish(t, n.Server, "news", eventsource.Event{Data: "1"}, eventsource.Event{Data: "2"})
	n.post(t, "/sport", asText, "3")
	one.expect("1", "2")
	wild.expect("1", "2", "3")
	n.post(t, "/news!", asText, "4")
	n.follow(t, "/x", "Last-Event-ID", "unknown").close()
	eventually(t, "all is counted", func() bool {
		st := n.Stats()
		return st.Consumers == 2 && st.Channels == 2 && st.HistoryEvents == 3 && st.HistoryBytes > 0 && st.Mark == 3 && st.Publishes == 2 &&
			st.Published == 3 && st.Delivered == 5 && st.Sent > 0 && st.Connects == 3 && st.Gaps == 1 &&
			st.Disconnects["gone"] == 1 && st.Refusals[404] == 1 && st.Available && !st.Draining && !st.Started.IsZero()
	})
}
