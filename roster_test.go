package eventsource_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

func TestFollowedYieldsWhatIsFollowedWithItsConsumers(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{AuthToken: "secret"})
		for i := range 600 { // more than are looked at at once, and followed by nobody
			if _, err := n.Publish(t.Context(), fmt.Sprintf("old.n%d", i), eventsource.Event{Data: "x"}); err != nil {
				t.Fatal(err)
			}
		}
		n.follow(t, "/news,sport.*")
		n.follow(t, "/news,sport")
		n.follow(t, "/news")
		want := map[string]int{"news": 3, "sport": 1, "sport.*": 1}
		for _, rest := range []int{0, 5} {
			if got := maps.Collect(n.Followed(t.Context(), rest)); !maps.Equal(got, want) {
				t.Errorf("resting %d times as long: %v, not %v", rest, got, want)
			}
		}
		for range n.Followed(t.Context(), 0) {
			break // who has enough gets no more
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if got := maps.Collect(n.Followed(ctx, 1e9)); len(got) > len(want) {
			t.Errorf("after its context has ended: %v", got)
		}
	})
}

func TestLatestReturnsWhoCameLast(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Limits: eventsource.Limits{ConsumersPerAddress: 100}})
		if got := n.Latest(10); len(got) != 0 {
			t.Errorf("of nobody: %v", got)
		}
		for i := range 30 {
			n.follow(t, fmt.Sprintf("/news.n%02d", i))
		}
		got := n.Latest(10)
		var names []string
		for _, c := range got {
			names = append(names, c.Channels...)
			if c.Address.String() != "127.0.0.1" || time.Since(c.Connected) > time.Minute {
				t.Errorf("it is %+v", c)
			}
		}
		if len(names) != 10 || names[0] != "news.n29" || names[9] != "news.n20" || !slices.IsSortedFunc(got, func(a, b eventsource.Consumer) int { return b.Connected.Compare(a.Connected) }) {
			t.Errorf("the latest ten are %q", names)
		}
	})
}

func TestAPageThatIsOpenAsksForNoToken(t *testing.T) {
	s, err := eventsource.Open(&eventsource.Settings{AuthToken: "secret", Keys: []eventsource.Key{{Token: "admin", Admin: true}}})
	if err != nil {
		t.Fatal(err)
	}
	says := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, s.MayFollow(r, "users.joe"), s.MayFollow(r, "news"))
	}
	s.HandleOpen("/admin/open", http.HandlerFunc(says))
	s.Handle("/admin/closed", http.HandlerFunc(says))
	h := s.Handler()
	defer s.Shutdown(t.Context())
	for _, test := range []struct {
		path, token string
		status      int
		body        string
	}{
		{"/admin/open", "", 200, "false true"},
		{"/admin/open", "unknown", 200, "false false"},
		{"/admin/open", "admin", 200, "false true"},
		{"/admin/open", "secret", 200, "true true"},
		{"/admin/closed", "", 401, ""},
		{"/admin/closed", "admin", 200, "false true"},
	} {
		r, w := httptest.NewRequest(http.MethodGet, test.path, nil), httptest.NewRecorder()
		r.Header.Set("Auth-Token", test.token)
		h.ServeHTTP(w, r)
		if body := w.Body.String(); w.Code != test.status || test.status == 200 && body != test.body {
			t.Errorf("%s with %q: %d %s", test.path, test.token, w.Code, body)
		}
	}
}

// What the status page asks for each second, of many channels.
func BenchmarkFollowed(b *testing.B) {
	const channels = 10_000
	s, err := eventsource.Open(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Shutdown(b.Context())
	for i := range channels {
		if _, err := s.Publish(b.Context(), fmt.Sprintf("many.n%d", i), eventsource.Event{Data: "x"}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		for range s.Followed(b.Context(), 0) {
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/channels, "ns/channel")
}
