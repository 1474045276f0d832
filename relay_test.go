package eventsource_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// A tap is a relay of what a test sends.
type tap struct {
	channel string
	admit   error
	begin   error // returned before the stream begins
	events  chan eventsource.Event
	sent    chan error // what Send returned
	header  http.Header
	cookie  string // that a request must have; "": none
}

func newTap(channel string) *tap {
	return &tap{channel: channel, events: make(chan eventsource.Event), sent: make(chan error, 100), header: http.Header{}}
}

func (p *tap) Admit(r *http.Request) (string, error) {
	if _, err := r.Cookie(p.cookie); p.cookie != "" && err != nil {
		return "", &eventsource.Problem{Type: "about:blank", Title: "Bad Request", Status: 400, Detail: "there is no cookie"}
	}
	return p.channel, p.admit
}

func (p *tap) Relay(ctx context.Context, _ *http.Request, out *eventsource.Stream) error {
	if p.begin != nil {
		return p.begin
	}
	maps.Copy(out.Header(), p.header)
	if err := out.Begin(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-p.events:
			if !ok {
				return &eventsource.EndError{Reason: "closed"}
			}
			err := out.Send(e)
			p.sent <- err
			if _, ok := errors.AsType[*eventsource.Problem](err); err != nil && !ok {
				return nil
			}
		case <-out.Idle():
			if err := out.Beat(); err != nil {
				return nil
			}
		}
	}
}

// node serves the tap at /queue.
func (p *tap) node(t *testing.T, path servingPath, settings *eventsource.Settings) *node {
	t.Helper()
	return path.node(t, settings, func(s *eventsource.Server) { s.HandleRelay("/queue", p) })
}

func TestARelaySendsEventsOfItsOwn(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		p := newTap("queue.a")
		p.header = http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}, "X-A": {"b"}}
		n := p.node(t, path, &eventsource.Settings{Heartbeat: 50 * time.Millisecond})
		s := n.stream(t, "/queue?id=a")
		if got := s.header; got.Get("Content-Type") != "text/event-stream; charset=utf-8" || got.Get("X-A") != "b" ||
			got.Get("Cache-Control") != "no-cache" || got.Get("X-Accel-Buffering") != "no" || got.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("the head is %v", got)
		}
		if b := s.next(); b.retry != "3000" || b.hasID || b.hasData {
			t.Errorf("it begins with %q", b.raw)
		}
		p.events <- eventsource.Event{ID: "5", Type: "e", Data: "a\nb"}
		if b := s.event(); b.raw != "id: 5\nevent: e\ndata: a\ndata: b\n\n" {
			t.Errorf("came %q", b.raw)
		}
		p.events <- eventsource.Event{Data: "c"}
		if b := s.event(); b.raw != "data: c\n\n" {
			t.Errorf("came %q", b.raw)
		}
		p.events <- eventsource.Event{Type: "a\nb", Data: "c"}
		<-p.sent
		<-p.sent
		if problem, ok := errors.AsType[*eventsource.Problem](<-p.sent); !ok || problem.Status != 400 {
			t.Errorf("what is no event was sent with %v", problem)
		}
		if b := s.next(); b.raw != ":\n\n" {
			t.Errorf("a heartbeat is %q", b.raw)
		}
		if st := n.Stats(); st.Relayed != 1 || st.Consumers != 0 {
			t.Errorf("%d are relayed, %d consumers", st.Relayed, st.Consumers)
		}
		close(p.events)
		if data, _ := s.ended(); data != `{"reason":"closed"}` {
			t.Errorf("it ends with %q", data)
		}
		eventually(t, "the stream to be counted no longer", func() bool { return n.Stats().Relayed == 0 })
	})
}

func TestARelayEndsWhenItsConsumerGoes(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		p := newTap("queue.a")
		n := p.node(t, path, nil)
		s := n.follow(t, "/queue")
		s.close()
		eventually(t, "the relay to end", func() bool { return n.Stats().Relayed == 0 })
	})
}

// A stream whose request announced a body was not answered until that had come, kept what
// it had taken, such as a queue, and was ended by nothing but the other side; and one whose
// body had come did not see the other side leave.
func TestAStreamWaitsForNoBody(t *testing.T) {
	for _, target := range []string{"/queue", "/a"} {
		t.Run(target, func(t *testing.T) {
			p := newTap("queue.a")
			n := p.node(t, servingPath{name: "portable", portable: true}, &eventsource.Settings{Timeout: 200 * time.Millisecond, Heartbeat: -1})
			ask := func(body string) net.Conn {
				conn, err := net.Dial("tcp", n.addr)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: a\r\n"+body)
				return conn
			}
			status := func(conn net.Conn) string {
				conn.SetReadDeadline(time.Now().Add(5 * time.Second))
				line := make([]byte, len("HTTP/1.1 200"))
				if _, err := io.ReadFull(conn, line); err != nil {
					t.Fatal(err)
				}
				return string(line)
			}
			for _, body := range []string{"Content-Length: 10\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"} {
				if got := status(ask(body)); got != "HTTP/1.1 400" {
					t.Errorf("a body that does not come is answered with %s", got)
				}
			}
			conn := ask("Content-Length: 3\r\n\r\nabc")
			if got := status(conn); got != "HTTP/1.1 200" {
				t.Errorf("a body that comes is answered with %s", got)
			}
			conn.Close()
			eventually(t, "the stream to be counted no longer", func() bool { st := n.Stats(); return st.Relayed+st.Consumers == 0 })
		})
	}
}

func TestARelayRefusesAsEverythingElse(t *testing.T) {
	p := newTap("queue.a")
	n := p.node(t, paths[0], nil)
	for _, method := range []string{"POST", "DELETE", "HEAD", "PUT"} {
		if a := n.do(t, method, "/queue", nil); a.status != 405 || a.header.Get("Allow") != "GET, OPTIONS" {
			t.Errorf("%s: %d %v", method, a.status, a.header)
		}
	}
	if a := n.do(t, "OPTIONS", "/queue", nil); a.status != 204 || a.header.Get("Allow") != "GET, OPTIONS" {
		t.Errorf("OPTIONS: %d %v", a.status, a.header)
	}
	p.admit = &eventsource.Problem{Type: "about:blank", Title: "Bad Request", Status: 400, Detail: "which one?"}
	n.do(t, "GET", "/queue", nil).refused(t, 400, "which one?")
	p.admit = nil
	p.begin = errors.New("no idea")
	n.do(t, "GET", "/queue", nil).refused(t, 500, "no idea")
	p.begin = &eventsource.Problem{Type: "about:blank", Title: "Service Unavailable", Status: 503, Detail: "taken", RetryAfter: time.Second}
	if a := n.do(t, "GET", "/queue", nil); a.status != 503 || a.header.Get("Retry-After") != "1" {
		t.Errorf("%d %v", a.status, a.header)
	}
	// A browser gives up for ever on any status but 200.
	a := n.do(t, "GET", "/queue", nil, "Accept", "text/event-stream")
	if a.status != 200 || !strings.HasPrefix(a.body, "retry: ") || !strings.HasSuffix(a.body, "\n: taken\n\n") {
		t.Errorf("%d %q", a.status, a.body)
	}
	if st := n.Stats(); st.Relayed != 0 || st.Refusals[503] != 2 {
		t.Errorf("%+v", st)
	}
}

func TestARelayAsksForATokenAsItsChannelDoes(t *testing.T) {
	p := newTap("queue.a")
	admins := newTap("")
	n := paths[0].node(t, &eventsource.Settings{AuthToken: "boss", Public: []string{"open"}, Keys: []eventsource.Key{
		{Token: "one", Subscribe: []string{"queue.a"}}, {Token: "all", Subscribe: []string{"queue.*"}},
		{Token: "other", Subscribe: []string{"news"}}, {Token: "admin", Admin: true},
	}}, func(s *eventsource.Server) {
		s.HandleRelay("/queue", p)
		s.HandleRelay("/admin/stream", admins)
		s.Handle("/admin/open", s.RelayHandler(admins)) // Handle asks, RelayHandler does not
	})
	for token, status := range map[string]int{"": 401, "unknown": 401, "other": 403, "one": 200, "all": 200, "admin": 200, "boss": 200} {
		if got := n.try(t, "/queue", token); got != status {
			t.Errorf("%q: %d, not %d", token, got, status)
		}
	}
	for token, status := range map[string]int{"": 401, "other": 403, "all": 403, "admin": 200, "boss": 200} {
		if got := n.try(t, "/admin/stream", token); got != status {
			t.Errorf("an administrator's, %q: %d, not %d", token, got, status)
		}
	}
	n.follow(t, "/queue?access_token=one").close()
}

// try returns the status that a stream begins with.
func (n *node) try(t *testing.T, path, token string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Auth-Token", token)
	}
	resp, err := n.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestARelaysStreamEndsWithItsToken(t *testing.T) {
	p := newTap("queue.a")
	n := p.node(t, paths[0], &eventsource.Settings{Public: []string{}, Issuers: []eventsource.Issuer{{Key: secret, Leeway: time.Second}}})
	exp := time.Now().Unix() + 1
	s := n.follow(t, "/queue", "Auth-Token", granted(t, claims{"exp": exp, "eventsource": claims{"subscribe": []string{"queue.*"}}}))
	if data, _ := s.ended(); data != `{"reason":"expired"}` {
		t.Errorf("it ends with %q", data)
	}
	if early := time.Until(time.Unix(exp, 0)); early > 0 {
		t.Errorf("it ended %v before its token", early)
	}
}

func TestAReloadEndsTheStreamsOfRelaysThatAreGrantedNoLonger(t *testing.T) {
	p := newTap("queue.a")
	n := p.node(t, paths[0], &eventsource.Settings{AuthToken: "boss", Public: []string{}, Keys: []eventsource.Key{
		{Token: "stays", Subscribe: []string{"queue.*"}}, {Token: "goes", Subscribe: []string{"queue.*"}}, {Token: "shrinks", Subscribe: []string{"queue.*"}}}})
	stays, goes, shrinks := n.follow(t, "/queue", "Auth-Token", "stays"), n.follow(t, "/queue", "Auth-Token", "goes"), n.follow(t, "/queue", "Auth-Token", "shrinks")
	if err := n.Reload(&eventsource.Settings{AuthToken: "boss", Public: []string{}, Keys: []eventsource.Key{
		{Token: "stays", Subscribe: []string{"queue.*"}}, {Token: "shrinks", Subscribe: []string{"news"}}}}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*stream{goes, shrinks} {
		if data, _ := s.ended(); data != `{"reason":"revoked"}` {
			t.Errorf("it ends with %q", data)
		}
	}
	p.events <- eventsource.Event{Data: "x"}
	stays.expect("x")
}

func TestARelaysStreamsCountForTheLimits(t *testing.T) {
	p := newTap("queue.a")
	n := p.node(t, paths[0], &eventsource.Settings{Limits: eventsource.Limits{Consumers: 3, ConsumersPerAddress: 2}})
	first := n.follow(t, "/queue")
	n.follow(t, "/news")
	n.do(t, "GET", "/queue", nil).refused(t, 429, "no more than 2 consumers may be connected from one address")
	n.do(t, "GET", "/news", nil).refused(t, 429, "no more than 2")
	first.close()
	eventually(t, "room", func() bool { return n.Stats().Relayed == 0 })
	n.follow(t, "/news").close()

	p = newTap("queue.a")
	n = p.node(t, paths[0], &eventsource.Settings{Limits: eventsource.Limits{Consumers: 1, ConnectsPerSecond: 2}})
	n.follow(t, "/queue")
	n.do(t, "GET", "/queue", nil).refused(t, 503, "no more than 1 consumers may be connected")
	n.do(t, "GET", "/queue", nil).refused(t, 503, "no more than 1") // who was refused has not connected
	if st := n.Stats(); st.Relayed != 1 {
		t.Errorf("%d are relayed", st.Relayed)
	}
}

// The operators' stream was refused when consumers were too many, which is when they look.
func TestTheLimitsOfConsumersKeepNoOperatorOut(t *testing.T) {
	p := newTap("")
	open := newTap("")
	n := paths[0].node(t, &eventsource.Settings{Limits: eventsource.Limits{Consumers: 1, ConsumersPerAddress: 1}}, func(s *eventsource.Server) {
		s.HandleRelay("/queue", p)
	})
	operators := httptest.NewServer(n.RelayHandler(open))
	defer operators.Close()
	n.follow(t, "/queue")
	res, err := http.Get(operators.URL)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK || n.Stats().Relayed != 2 {
		t.Errorf("an operator got %s, and %d are relayed", res.Status, n.Stats().Relayed)
	}
	res.Body.Close()
	eventually(t, "the operator to be counted no longer", func() bool { return n.Stats().Relayed == 1 })
	n.do(t, "GET", "/queue", nil).refused(t, 503, "no more than 1 consumers may be connected")
}

func TestARelaysStreamsEndWhenTheServerShutsDown(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		p := newTap("queue.a")
		n := p.node(t, path, nil)
		s := n.follow(t, "/queue")
		go n.Stop()
		data, retry := s.ended()
		if data != `{"reason":"draining"}` || retry == "" {
			t.Errorf("it ends with %q, retry %q", data, retry)
		}
	})
}

// A cookie that a page of another site has its browser send is not there.
func TestARelaySeesCookiesThatCountOnly(t *testing.T) {
	p := newTap("queue.a")
	p.cookie = "sid"
	n := p.node(t, paths[0], &eventsource.Settings{CorsAllowOrigin: "https://friend.example", CorsAllowCredentials: true})
	cookie := []string{"Cookie", "sid=5"}
	for _, foreign := range [][]string{{"Origin", "https://evil.example"}, {"Sec-Fetch-Site", "cross-site"}} {
		n.do(t, "GET", "/queue", nil, append(foreign, cookie...)...).refused(t, 400, "no cookie")
	}
	for _, own := range [][]string{nil, {"Origin", n.url}, {"Sec-Fetch-Site", "same-origin"}, {"Origin", "https://friend.example"}} {
		n.follow(t, "/queue", append(own, cookie...)...).close()
	}
}

// What would break the framing of the response is not sent.
func TestARelayCantBreakItsResponse(t *testing.T) {
	p := newTap("queue.a")
	p.header = http.Header{"Content-Length": {"3"}, "Trailer": {"X"}, "Transfer-Encoding": {"identity"}}
	n := p.node(t, paths[0], nil)
	s := n.follow(t, "/queue")
	p.events <- eventsource.Event{Data: "more than three bytes"}
	s.expect("more than three bytes")
}

// What takes a path of a channel's name, or the short page's, is served there.
func TestARelayMayHaveAnyPath(t *testing.T) {
	p := newTap("queue.a")
	n := paths[0].node(t, nil, func(s *eventsource.Server) { s.HandleRelay("/", p) })
	s := n.follow(t, "/?id=a")
	p.events <- eventsource.Event{Data: "x"}
	s.expect("x")
	n.follow(t, "/news").close()
	if a := n.do(t, "GET", "/health", nil); a.status != 200 {
		t.Errorf("health: %d", a.status)
	}
}

// A consumer that reads nothing is ended, and whoever relays to it hears of it.
func TestARelayHearsThatItsConsumerReadsNothing(t *testing.T) {
	p := newTap("queue.a")
	n := p.node(t, paths[0], &eventsource.Settings{Timeout: 200 * time.Millisecond, Heartbeat: -1})
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /queue HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	big := eventsource.Event{Data: strings.Repeat("x", 1<<20)}
	for range 100 {
		p.events <- big
		if err := <-p.sent; err != nil {
			eventually(t, "the stream to be counted no longer", func() bool { return n.Stats().Relayed == 0 })
			return
		}
	}
	t.Error("100 MiB went to somebody who reads nothing")
}
