package eventsource_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

func TestAReloadEndsTheStreamsThatAreGrantedNoLonger(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		other := []byte(strings.Repeat("other", 10))
		n := path.node(t, &eventsource.Settings{
			AuthToken: "boss", Public: []string{"open", "half.*"},
			Keys: []eventsource.Key{
				{Token: "stays", Subscribe: []string{"news"}}, {Token: "goes", Subscribe: []string{"news"}},
				{Token: "shrinks", Subscribe: []string{"news", "sport"}}, {Token: "grows", Subscribe: []string{"news"}},
				{Token: "admin", Admin: true, Subscribe: []string{"users.*"}}, {Token: "blinded", Admin: true, Subscribe: []string{"users.*"}},
			},
			Issuers: []eventsource.Issuer{{Key: secret, Issuer: "a"}, {Key: other, Issuer: "b"}},
		})
		news := claims{"subscribe": []string{"news"}}
		streams := map[string]*stream{}
		follow := func(name, channels, token string) {
			var header []string
			if token != "" {
				header = []string{"Auth-Token", token}
			}
			streams[name] = n.follow(t, channels, header...)
		}
		follow("boss", "/news", "boss")
		follow("stays", "/news", "stays")
		follow("goes", "/news", "goes")
		follow("goes on what is public", "/open", "goes")
		follow("shrinks", "/news", "shrinks")
		follow("shrinks in a list", "/news,sport,open", "shrinks")
		follow("grows", "/news,open", "grows")
		follow("issuer a", "/news", granted(t, claims{"iss": "a", "eventsource": news}))
		follow("issuer b", "/news", sign(t, "HS256", other, nil, claims{"iss": "b", "eventsource": news}))
		follow("person of a", "/@me", granted(t, claims{"iss": "a"}))
		follow("person of b", "/@me", sign(t, "HS256", other, nil, claims{"iss": "b"}))
		follow("nobody", "/open", "")
		follow("nobody by half", "/half.x,open", "")
		follow("admin", "/*", "admin")
		follow("blinded", "/*", "blinded")
		program, end := context.WithCancel(t.Context())
		defer end()
		called := make(chan error, 1)
		next := n.Subscribe(program, "news", nil)
		go func() {
			var last error
			for _, err := range next {
				last = err
			}
			called <- last
		}()

		err := n.Reload(&eventsource.Settings{
			AuthToken: "boss", Public: []string{"open"},
			Keys: []eventsource.Key{
				{Token: eventsource.HashToken("stays"), Subscribe: []string{"news"}},
				{Token: "shrinks", Subscribe: []string{"news"}}, {Token: "grows", Subscribe: []string{"news", "sport"}},
				{Token: "admin", Admin: true, Subscribe: []string{"users.*"}}, {Token: "blinded", Admin: true},
			},
			Issuers: []eventsource.Issuer{{Key: secret, Issuer: "a"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"goes", "goes on what is public", "shrinks in a list", "issuer b", "person of b", "nobody by half", "blinded"} {
			if data, _ := streams[name].ended(); data != `{"reason":"revoked"}` {
				t.Errorf("%s: the stream ends with %q", name, data)
			}
			delete(streams, name)
		}
		n.client.CloseIdleConnections()
		n.post(t, "/news,open,users.joe", asText, "x", "Auth-Token", "boss").receipt(t)
		for name, s := range streams {
			if b := s.event(); b.data != "x" {
				t.Errorf("%s: %q came", name, b.raw)
			}
		}
		end()
		if err := <-called; err != nil {
			t.Error("a program's subscription was touched:", err)
		}
		eventually(t, "seven to be counted as revoked", func() bool { return n.Stats().Disconnects["revoked"] == 7 })
		n.do(t, "GET", "/news", nil, "Auth-Token", "goes").refused(t, 401)
		n.do(t, "GET", "/half.x", nil).refused(t, 401)
		if status, _ := n.status(t, "GET", "/sport", "Auth-Token", "grows"); status != 200 {
			t.Errorf("what was granted anew is answered %d", status)
		}
	})
}

func TestAReloadThatBeginsToAskEndsWhatIsNotPublic(t *testing.T) {
	n := newNode(t, nil)
	open := n.follow(t, "/news")
	everything := n.follow(t, "/*")
	person := n.follow(t, "/users.joe")
	if err := n.Reload(&eventsource.Settings{AuthToken: "boss"}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*stream{everything, person} {
		if data, _ := s.ended(); data != `{"reason":"revoked"}` {
			t.Errorf("the stream ends with %q", data)
		}
	}
	n.client.CloseIdleConnections()
	n.post(t, "/news", asText, "x").refused(t, 401)
	n.post(t, "/news", asText, "1", "Auth-Token", "boss").receipt(t)
	open.expect("1")
	// And back: whoever had a token goes on.
	known := n.follow(t, "/users.joe", "Auth-Token", "boss")
	if err := n.Reload(nil); err != nil {
		t.Fatal(err)
	}
	n.post(t, "/news,users.joe", asText, "2").receipt(t)
	open.expect("2")
	known.expect("2")
}

func TestAReloadChangesCORSAndLimits(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{CorsAllowOrigin: "https://a.example"})
		allowed := func(origin string) string {
			s := n.stream(t, "/news", "Origin", origin)
			s.close()
			eventually(t, "the consumer to leave", func() bool { return n.ConsumerCountAll() == 0 })
			return s.header.Get("Access-Control-Allow-Origin")
		}
		if got := allowed("https://a.example"); got != "https://a.example" {
			t.Fatalf("allowed is %q", got)
		}
		if err := n.Reload(&eventsource.Settings{CorsAllowOrigin: "https://b.example", Limits: eventsource.Limits{Body: 4, ChannelsPerConsumer: 2, Channels: 3, Consumers: 1}}); err != nil {
			t.Fatal(err)
		}
		if a, b := allowed("https://a.example"), allowed("https://b.example"); a != "" || b != "https://b.example" {
			t.Errorf("allowed are %q and %q", a, b)
		}
		n.client.CloseIdleConnections()
		n.post(t, "/news", asText, "12345").refused(t, 413)
		n.post(t, "/a,b,c", asText, "1").refused(t, 400)
		only := n.follow(t, "/news")
		n.do(t, "GET", "/news", nil).refused(t, 503, "1 consumers")
		only.close()
		if err := n.Reload(nil); err != nil {
			t.Fatal(err)
		}
		if got := allowed("https://b.example"); got != "" {
			t.Errorf("CORS is off, and allowed is %q", got)
		}
		n.post(t, "/news", asText, "12345").receipt(t)
		n.follow(t, "/a,b,c")
	})
}

func TestAReloadThatCantBeUsedLeavesEverything(t *testing.T) {
	n := newNode(t, &eventsource.Settings{AuthToken: "boss"})
	s := n.follow(t, "/users.joe", "Auth-Token", "boss")
	err := n.Reload(&eventsource.Settings{Keys: []eventsource.Key{{}}})
	if err == nil || !strings.Contains(err.Error(), "keys[0].token") {
		t.Error(err)
	}
	n.post(t, "/users.joe", asText, "x", "Auth-Token", "boss").receipt(t)
	s.expect("x")
}

func TestALineAfterAReloadIsJudgedAgain(t *testing.T) {
	settings := func(channel string) *eventsource.Settings {
		return &eventsource.Settings{AuthToken: "boss", Keys: []eventsource.Key{{Token: "k", Publish: []string{channel}}}}
	}
	n := newNode(t, settings("news"))
	for _, tc := range []struct {
		settings *eventsource.Settings
		status   string
	}{{settings("sport"), `"status":403`}, {&eventsource.Settings{AuthToken: "boss"}, `"status":401`}} {
		if err := n.Reload(settings("news")); err != nil {
			t.Fatal(err)
		}
		l := n.lines(t, "", "Auth-Token", "k")
		for range 2 {
			l.send(`{"data":1}` + "\n")
			if got := l.answer(); !strings.Contains(got, `"id"`) {
				t.Fatal(got)
			}
			if err := n.Reload(settings("*")); err != nil { // it still may
				t.Fatal(err)
			}
		}
		if err := n.Reload(tc.settings); err != nil {
			t.Fatal(err)
		}
		l.send(`{"data":2}` + "\n")
		if got := l.answer(); !strings.Contains(got, tc.status) {
			t.Errorf("answered %s, not %s", got, tc.status)
		}
	}
}

// Consumers come and go while the settings are reloaded again and again: nobody
// whose token stays is ended or refused, and nobody whose token is gone is left.
func TestReloadsInAStorm(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		with := eventsource.Settings{AuthToken: "boss", Public: []string{}, Keys: []eventsource.Key{
			{Token: "stays", Subscribe: []string{"news"}}, {Token: "goes", Subscribe: []string{"news"}}}}
		without := with
		without.Keys = with.Keys[:1]
		n := path.node(t, &with)
		over := make(chan struct{})
		var consumers sync.WaitGroup
		for i := range 16 {
			token := []string{"stays", "goes"}[i%2]
			consumers.Go(func() {
				for last := false; !last; {
					select {
					case <-over:
						last = token == "goes" // it stays until it is ended
						if !last {
							return
						}
					default:
					}
					ctx, cancel := context.WithCancel(context.Background())
					stop := func() { time.AfterFunc(rand.N(20*time.Millisecond), cancel) }
					if last {
						stop = func() { time.AfterFunc(10*time.Second, cancel) }
					}
					if err := n.visit(ctx, token, stop); err != nil && (token == "stays" || last && errors.Is(err, context.Canceled)) {
						t.Errorf("%s: %v", token, err)
					}
					cancel()
				}
			})
		}
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
			for _, s := range []*eventsource.Settings{&without, &with} {
				if err := n.Reload(s); err != nil {
					t.Fatal(err)
				}
				time.Sleep(rand.N(2 * time.Millisecond))
			}
		}
		close(over)
		time.Sleep(rand.N(5 * time.Millisecond))
		if err := n.Reload(&without); err != nil {
			t.Fatal(err)
		}
		consumers.Wait()
		if n.Stats().Disconnects["revoked"] == 0 {
			t.Error("nobody was revoked: the test shows nothing")
		}
	})
}

// visit follows with a token from the time that stop is called until ctx ends or
// the server ends it. It returns why the server would not go on, and ctx's error
// when a stream without an end of its own was left.
func (n *node) visit(ctx context.Context, token string, stop func()) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url+"/news", nil)
	if err != nil {
		return err
	}
	r.Header.Set("Auth-Token", token)
	resp, err := n.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	stop()
	body, err := io.ReadAll(resp.Body)
	if strings.Contains(string(body), "eventsource.end") {
		return fmt.Errorf("it was ended: %s", body)
	}
	if token == "stays" {
		return nil
	}
	return err
}
