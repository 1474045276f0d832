package eventsource_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// limited fails the test unless an answer is a refusal that will pass.
func (a answer) limited(t testing.TB, status int, words string) {
	t.Helper()
	a.refused(t, status, words)
	if after, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || after < 1 {
		t.Errorf("Retry-After is %q", a.header.Get("Retry-After"))
	}
}

func TestConsumersOfAChannelAreLimited(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Limits: eventsource.Limits{ConsumersPerChannel: 2}})
		first := n.follow(t, "/news")
		n.follow(t, "/sport,news")
		n.do(t, "GET", "/news", nil).limited(t, 503, "no more than 2 consumers may follow news")
		n.do(t, "GET", "/other,news", nil).limited(t, 503, "news")
		n.passing(t, "/news", "no more than 2")
		n.follow(t, "/sport")
		n.follow(t, "/news.*")
		n.follow(t, "/*")
		first.close()
		eventually(t, "a place", func() bool { return n.ConsumerCount("news") == 1 })
		n.follow(t, "/news")
		if got := n.Stats().Limited["consumers_per_channel"]; got != 4 {
			t.Errorf("%d refusals are counted, not 4", got)
		}
	})
}

func TestConsumersOfAnAddressAreLimited(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		if path.foreign || path.hijacked {
			return // no matter how the connection came
		}
		n := path.node(t, &eventsource.Settings{Limits: eventsource.Limits{ConsumersPerAddress: 2}})
		n.follow(t, "/news")
		second := n.follow(t, "/sport")
		n.do(t, "GET", "/news", nil).limited(t, 429, "no more than 2 consumers may be connected from one address")
		n.do(t, "GET", "/news", nil, "X-Forwarded-For", "203.0.113.5").limited(t, 429, "address") // nobody trusts it
		n.post(t, "/news", asText, "x").receipt(t)
		second.close()
		eventually(t, "a place", func() bool { return n.ConsumerCountAll() == 1 })
		n.follow(t, "/news")
		// The browser's own EventSource comes back by itself.
		s := n.stream(t, "/news", "Accept", "text/event-stream")
		if b := s.next(); b.retry == "" || !strings.Contains(b.comment, "address") {
			t.Errorf("a browser is told %q", b.raw)
		}
	})
}

func TestConnectsAreLimited(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{AuthToken: "boss", Keys: []eventsource.Key{{Token: "k"}}, Limits: eventsource.Limits{ConnectsPerSecond: 0.5}})
		get := func(header ...string) answer {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r, _ := http.NewRequestWithContext(ctx, "GET", n.url+"/news", nil)
			setHeader(r, header)
			resp, err := n.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b := make([]byte, 400)
			m, _ := resp.Body.Read(b)
			return answer{resp.StatusCode, resp.Header, string(b[:m])}
		}
		if a := get(); a.status != 200 {
			t.Fatalf("the first: %d", a.status)
		}
		get().limited(t, 429, "more than 0.5 connects a second")
		// Each key has its own; one that is refused counts for the address.
		if a := get("Auth-Token", "k"); a.status != 200 {
			t.Errorf("a key's first: %d", a.status)
		}
		get("Auth-Token", "k").limited(t, 429, "connects")
		get("Auth-Token", "guess").limited(t, 429, "connects")
		if a := get("Auth-Token", "boss"); a.status != 200 {
			t.Errorf("another key's first: %d", a.status)
		}
		if got := n.Stats().Limited["connects_per_second"]; got != 3 {
			t.Errorf("%d refusals are counted, not 3", got)
		}
	})
}

// What the reactor passes on to net/http to refuse is counted once.
func TestARefusalCountsOnce(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Limits: eventsource.Limits{ConnectsPerSecond: 1.01, PublishesPerSecond: 1.01, Consumers: 1, Channels: 1}}) // two at once
	n.follow(t, "/news")
	n.do(t, "GET", "/news", nil).limited(t, 503, "1 consumers")
	n.do(t, "GET", "/news", nil).limited(t, 429, "connects")
	// A publish that comes to nothing takes nothing.
	for range 5 {
		n.post(t, "/sport", asText, "x").limited(t, 503, "channels")
	}
	n.post(t, "/news", asText, "x").receipt(t)
}

func TestGuessingTokensIsLimited(t *testing.T) {
	n := newNode(t, &eventsource.Settings{AuthToken: "boss", Issuers: []eventsource.Issuer{{Key: secret}}, Limits: eventsource.Limits{ConnectsPerSecond: 3}})
	known, slow, began := 0, 0, time.Now()
	for i := range 20 {
		switch a := n.post(t, "/news", asText, "x", "Auth-Token", fmt.Sprint("guess", i)); a.status {
		case 401:
			known++
		case 429:
			slow++
		default:
			t.Fatal(a)
		}
	}
	if most := 3 + int(3*time.Since(began).Seconds()); known > most || slow == 0 && most < 20 {
		t.Errorf("%d guesses were answered and %d put off", known, slow)
	}
}

func TestPublishesAreLimited(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{AuthToken: "boss", Keys: []eventsource.Key{{Token: "a", Publish: []string{"*"}}, {Token: "b", Publish: []string{"*"}}},
			Issuers: []eventsource.Issuer{{Key: secret}}, Limits: eventsource.Limits{PublishesPerSecond: 4}})
		grants := claims{"publish": []string{"news"}}
		joe, ann := granted(t, claims{"eventsource": grants}), granted(t, claims{"sub": "ann", "eventsource": grants})
		joeAgain := granted(t, claims{"jti": "another token of his", "eventsource": grants})
		burst := func(token string, at int) {
			began, published := time.Now(), 0
			for range 8 {
				a := n.post(t, "/news", asText, "x", "Auth-Token", token)
				if a.status == 201 {
					published++
				} else {
					a.limited(t, 429, "more than 4 publishes a second")
				}
			}
			if most := at + 1 + int(4*time.Since(began).Seconds()); published < min(at, 4) || published > most {
				t.Errorf("%.5s published %d of 8 at once, not %d to %d", token, published, at, most)
			}
		}
		for _, token := range []string{"a", "b", ann, joe} {
			burst(token, 4)
		}
		burst(joeAgain, 0) // another token of the same subject
		time.Sleep(600 * time.Millisecond)
		n.post(t, "/news", asText, "x", "Auth-Token", "a").receipt(t)
		// Who may not publish takes nothing from who may.
		time.Sleep(600 * time.Millisecond)
		for range 10 {
			n.post(t, "/sport", asText, "x", "Auth-Token", joe).refused(t, 403)
			n.post(t, "/news", asJSON, "{", "Auth-Token", joe).refused(t, 400)
		}
		n.post(t, "/news", asText, "x", "Auth-Token", joe).receipt(t)
		if s := n.Stats(); s.Limited["publishes_per_second"] == 0 || s.Refusals[429] != s.Limited["publishes_per_second"] {
			t.Errorf("counted are %v and %v", s.Limited, s.Refusals)
		}
	})
}

func TestABatchCountsItsEvents(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Limits: eventsource.Limits{PublishesPerSecond: 5, Channels: 1}})
	n.follow(t, "/news")
	batch := `[{"data":1}` + strings.Repeat(`,{"data":2}`, 11) + `]`
	for range 5 { // what comes to nothing is owed by nobody
		n.post(t, "/sport", asJSON, batch).limited(t, 503, "channels")
	}
	began := time.Now()
	if a := n.post(t, "/news", asJSON, batch); a.status != 201 {
		t.Fatal(a)
	}
	a := n.post(t, "/news", asText, "x")
	a.limited(t, 429, "publishes")
	if got := a.header.Get("Retry-After"); got != "2" && got != "1" {
		t.Errorf("after 12 events at 5 a second, Retry-After is %s", got)
	}
	eventually(t, "its turn", func() bool { return n.post(t, "/news", asText, "x").status == 201 })
	if took := time.Since(began); took < 1500*time.Millisecond || took > 10*time.Second {
		t.Errorf("12 events at 5 a second put the next off by %v", took)
	}
}

func TestLinesWaitForTheirTurn(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Limits: eventsource.Limits{PublishesPerSecond: 20}})
	s := n.follow(t, "/news")
	began := time.Now()
	l := n.lines(t, "")
	l.send(strings.Repeat(`{"data":"x"}`+"\n", 40))
	for i := range 40 {
		if got := l.answer(); !strings.Contains(got, `"id"`) {
			t.Fatalf("line %d: %s", i, got)
		}
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("40 lines at 20 a second took %v", took)
	}
	s.expect("x", "x")
	// A shutdown does not wait for those that wait.
	l.send(strings.Repeat(`{"data":"x"}`+"\n", 250))
	time.Sleep(50 * time.Millisecond)
	began = time.Now()
	n.Stop()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the shutdown took %v", took)
	}
}

func TestAWebhookIsLimited(t *testing.T) {
	hook := &hook{}
	n := newNode(t, &eventsource.Settings{Sources: []eventsource.Source{hook}, Limits: eventsource.Limits{PublishesPerSecond: 1}})
	if a := n.post(t, "/api/hook", asJSON, "{}"); a.status != 204 {
		t.Fatal(a)
	}
	n.post(t, "/api/hook", asJSON, "{}").limited(t, 429, "publishes")
}

// A hook is a source that takes everything.
type hook struct{}

func (*hook) Path() string    { return "/api/hook" }
func (*hook) Channel() string { return "news" }
func (*hook) Run(ctx context.Context, _ *eventsource.Feed) error {
	<-ctx.Done()
	return nil
}
func (*hook) ServeHTTP(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

// However many addresses publish, what is remembered of them is bounded.
func TestAFloodOfAddressesTakesBoundedMemory(t *testing.T) {
	s, err := eventsource.Open(&eventsource.Settings{Limits: eventsource.Limits{PublishesPerSecond: 1}, History: eventsource.History{Events: -1}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	h := s.Handler()
	post := func(address string) int {
		r := httptest.NewRequest("POST", "/news", strings.NewReader("x"))
		r.Header.Set("Content-Type", asText)
		r.RemoteAddr = address
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	if a, b := post("203.0.113.1:1"), post("203.0.113.1:2"); a != 201 || b != 429 {
		t.Fatalf("answered %d and %d", a, b)
	}
	flood := func(from, to int) {
		for i := from; i < to; i++ {
			if got := post(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)); got != 201 {
				t.Fatalf("address %d: %d", i, got)
			}
		}
	}
	before := heap()
	flood(0, 20_000)
	if got := post("203.0.113.1:3"); got != 429 && got != 201 {
		t.Errorf("the first address: %d", got)
	}
	flood(20_000, 150_000)
	grown := heap() - before
	if grown > 32<<20 {
		t.Errorf("150,000 addresses hold %d KiB", grown>>10)
	}
	t.Logf("150,000 addresses hold %d KiB", grown>>10)
	// One /64 is one address.
	if a, b, c := post("[2001:db8::1]:1"), post("[2001:db8::2:3]:1"), post("[2001:db8:0:1::1]:1"); a != 201 || b != 429 || c != 201 {
		t.Errorf("two addresses of a /64 and one of another: %d, %d, %d", a, b, c)
	}
}
