package eventsource_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/railsmechanic/eventsource"
)

// kept returns the data of the last n kept events of channels.
func kept(t *testing.T, s *eventsource.Server, channels string, n int) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := s.Subscribe(ctx, channels, &eventsource.Subscription{History: n})
	// What is published to all consumers is the end of what was kept.
	end, err := s.Publish(ctx, "all", eventsource.Event{Type: "end", TTL: -1})
	if err != nil {
		t.Fatal(err)
	}
	var data []string
	for e, err := range follow {
		if err != nil {
			t.Fatal(err)
		}
		if e.ID == end.IDs[0] {
			break
		}
		data = append(data, e.Data)
	}
	return data
}

func publish(t *testing.T, s *eventsource.Server, channels string, events ...eventsource.Event) []string {
	t.Helper()
	r, err := s.Publish(t.Context(), channels, events...)
	if err != nil {
		t.Fatal(err)
	}
	return r.IDs
}

func TestHistoryKeepsSoManyEventsInAChannel(t *testing.T) {
	s := openWith(t, &eventsource.Settings{History: eventsource.History{Events: 3}})
	for i := range 5 {
		publish(t, s, "news", eventsource.Event{Data: fmt.Sprint(i)})
	}
	publish(t, s, "sport", eventsource.Event{Data: "s"})
	if got := strings.Join(kept(t, s, "news", 100), " "); got != "2 3 4" {
		t.Errorf("kept %s", got)
	}
	if got := strings.Join(kept(t, s, "*", 100), " "); got != "3 4 s" {
		t.Errorf("the wildcard keeps %s", got)
	}
	if got := strings.Join(kept(t, s, "news,sport", 2), " "); got != "4 s" {
		t.Errorf("the last two of both: %s", got)
	}
}

func TestHistoryForgetsWithAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, &eventsource.Settings{History: eventsource.History{Age: time.Minute}})
		first := publish(t, s, "news", eventsource.Event{Data: "old"})
		time.Sleep(30 * time.Second)
		publish(t, s, "news", eventsource.Event{Data: "short", TTL: 10 * time.Second}, eventsource.Event{Data: "young"})
		if got := strings.Join(kept(t, s, "news", 9), " "); got != "old short young" {
			t.Errorf("at first: %s", got)
		}
		time.Sleep(11 * time.Second)
		if got := strings.Join(kept(t, s, "news", 9), " "); got != "old young" {
			t.Errorf("after the ttl of one: %s", got)
		}
		time.Sleep(20 * time.Second)
		if got := strings.Join(kept(t, s, "news", 9), " "); got != "young" {
			t.Errorf("after a minute: %s", got)
		}
		for e, err := range s.Subscribe(t.Context(), "news", &eventsource.Subscription{LastEventID: first[0]}) {
			if err != nil || e.Type != "eventsource.gap" {
				t.Errorf("who has the first event and missed the short one: %+v, %v", e, err)
			}
			break
		}
		time.Sleep(2 * time.Minute)
		if st := s.Stats(); st.HistoryEvents != 0 || st.Channels != 0 || s.ChannelExists("news") || st.HistoryBytes != 0 {
			t.Errorf("something is left: %+v", st)
		}
	})
}

func TestATTLOfNoneReachesWhoIsConnectedOnly(t *testing.T) {
	s := openWith(t, nil)
	publish(t, s, "news", eventsource.Event{Data: "kept"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := s.Subscribe(ctx, "news", nil)
	publish(t, s, "news", eventsource.Event{Data: "passing", TTL: -1})
	for e, err := range follow {
		if err != nil || e.Data != "passing" {
			t.Errorf("who is connected got %+v, %v", e, err)
		}
		break
	}
	if got := strings.Join(kept(t, s, "news", 9), " "); got != "kept" {
		t.Errorf("who comes later: %s", got)
	}
}

func TestTheBudgetTakesFromTheChannelThatHoldsMost(t *testing.T) {
	s := openWith(t, &eventsource.Settings{History: eventsource.History{Events: 1000, Bytes: 300 << 10}})
	for i := range 10 {
		publish(t, s, "small", eventsource.Event{Data: fmt.Sprint(i)})
	}
	for range 500 {
		publish(t, s, "big", eventsource.Event{Data: strings.Repeat("x", 1000)})
	}
	if got := len(kept(t, s, "small", 1000)); got != 10 {
		t.Errorf("the small channel keeps %d of 10", got)
	}
	if got := len(kept(t, s, "big", 1000)); got < 100 || got > 300 {
		t.Errorf("the big channel keeps %d", got)
	}
	if got := s.Stats().HistoryBytes; got > 300<<10 {
		t.Errorf("%d bytes are held", got)
	}
}

func TestDeleteDropsTheEventsFromTheWildcardsToo(t *testing.T) {
	s := openWith(t, nil)
	publish(t, s, "pets.cats", eventsource.Event{Data: "cat"})
	publish(t, s, "pets.dogs", eventsource.Event{Data: "dog"})
	publish(t, s, "pets.cats,pets.dogs", eventsource.Event{Data: "both"})
	s.Close("pets.cats")
	if got := strings.Join(kept(t, s, "pets.*", 9), " "); got != "dog both" {
		t.Errorf("below pets: %s", got)
	}
	if got := strings.Join(kept(t, s, "pets.dogs", 9), " "); got != "dog both" {
		t.Errorf("dogs: %s", got)
	}
	if s.ChannelExists("pets.cats") {
		t.Error("pets.cats exists")
	}
	s.Close("pets.dogs")
	if got := strings.Join(kept(t, s, "pets.*", 9), " "); got != "" {
		t.Errorf("after both were deleted, one after the other: %s", got)
	}
	publish(t, s, "pets.cats", eventsource.Event{Data: "cat"})
	s.CloseAll()
	if got := kept(t, s, "*", 9); len(got) != 0 {
		t.Errorf("after all were deleted: %v", got)
	}
}

func TestAChannelThatWentLeavesItsFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, &eventsource.Settings{History: eventsource.History{Age: time.Minute}})
		before := publish(t, s, "other", eventsource.Event{Data: "x"})
		publish(t, s, "news", eventsource.Event{Data: "1"}, eventsource.Event{Data: "2"})
		time.Sleep(2 * time.Minute)
		told := func(id string) bool {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			follow := s.Subscribe(ctx, "news", &eventsource.Subscription{LastEventID: id})
			publish(t, s, "news", eventsource.Event{Data: "new", TTL: -1})
			for e, err := range follow {
				if err != nil {
					t.Fatal(err)
				}
				return e.Type == "eventsource.gap"
			}
			return false
		}
		if !told(before[0]) {
			t.Error("who missed both events was not told")
		}
	})
}
