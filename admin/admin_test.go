package admin_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/admin"
)

// A broken source can't connect.
type broken struct{}

func (broken) Run(context.Context, *eventsource.Feed) error {
	return errors.New("nobody listens there")
}

// kinds are the members of the document, and their kinds in JSON; in those that are
// lists, of each member.
var kinds = map[string]any{
	"node": "", "status": "", "reported_at": 0.0, "uptime": 0.0, "started": "", "watchers": 0.0, "memory_bytes": 0.0, "goroutines": 0.0,
	"build":     map[string]any{"version": "", "commit": "", "go": ""},
	"consumers": 0.0, "relayed": 0.0, "replays": 0.0, "channels": 0.0, "history_events": 0.0, "history_bytes": 0.0, "mark": 0.0,
	"publishes": 0.0, "published": 0.0, "delivered": 0.0, "sent_bytes": 0.0, "connects": 0.0, "gaps": 0.0, "recalled": 0.0,
	"disconnects": map[string]any{"slow": 0.0, "gone": 0.0}, "refusals": map[string]any{"404": 0.0}, "limited": map[string]any{"consumers": 0.0},
	"verified": 0.0, "unverified": 0.0, "draining": false, "available": false,
	"rates":   map[string]any{"seconds": 0.0, "published": 0.0, "delivered": 0.0, "sent_bytes": 0.0, "connects": 0.0},
	"backend": map[string]any{"kind": "", "state": "", "reason": ""},
	"sources": []any{map[string]any{"name": "", "state": "", "since": "", "reason": "", "published": 0.0, "duplicates": 0.0, "connects": 0.0,
		"refusals": map[string]any{"empty": 0.0}}},
	"upstream": []any{map[string]any{"name": "", "state": "", "since": "", "reason": "", "numbers": map[string]any{"streams": 0.0}}},
	"followed": map[string]any{"names": 0.0, "counted_at": 0.0, "top": []any{map[string]any{"channel": "", "consumers": 0.0}}},
	"connections": []any{map[string]any{"id": "", "request_path": "", "namespace": "", "created_at": 0.0, "client_ip": "", "user_agent": "",
		"behind": 0.0}},
}

// differences lists where a value is of another kind than it should be. A member that
// should not be there counts, but for those of a table of counters.
func differences(path string, want, got any) (list []string) {
	switch want := want.(type) {
	case map[string]any:
		members, ok := got.(map[string]any)
		if !ok {
			return []string{path + ": no object"}
		}
		for name, of := range want {
			list = append(list, differences(path+"."+name, of, members[name])...)
		}
		for name := range members {
			counters := strings.HasSuffix(path, "disconnects") || strings.HasSuffix(path, "limited") || strings.HasSuffix(path, "refusals")
			if _, ok := want[name]; !ok && !counters {
				list = append(list, path+"."+name+": unknown")
			}
		}
	case []any:
		elements, ok := got.([]any)
		if !ok || len(elements) == 0 {
			return []string{path + ": no list, or empty"}
		}
		for i, e := range elements {
			list = append(list, differences(fmt.Sprintf("%s[%d]", path, i), want[0], e)...)
		}
	default:
		if fmt.Sprintf("%T", got) != fmt.Sprintf("%T", want) {
			list = append(list, fmt.Sprintf("%s: %T, not %T", path, got, want))
		}
	}
	return list
}

func TestTheDocumentHasEveryMemberAndNoOther(t *testing.T) {
	t.Parallel()
	options := &admin.Options{Build: admin.Build{Version: "v1.2.3", Commit: "abc", Go: "go1.26"}, Backend: "memory", BasePath: "/subscribe",
		Upstream: func() []admin.Upstream {
			return []admin.Upstream{{Name: "broker", State: "ok", Since: time.Now(), Numbers: map[string]uint64{"streams": 7}}}
		}}
	n := serve(t, &eventsource.Settings{BasePath: "/subscribe", Sources: []eventsource.Source{broken{}}}, options)
	before := time.Now().Unix()
	consumer := follow(t, n.url+"/subscribe/details/1F680,news.*?event=none")
	defer consumer.close()
	get(t, "GET", n.url+"/metrics") // which is not there
	follow(t, n.url+"/admin/stream").status()
	var all map[string]any
	eventually(t, "there are rates and a reason", func() bool {
		_, body := get(t, "GET", n.url+"/admin/status.json")
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			t.Fatal(err)
		}
		return all["rates"] != nil && strings.Contains(body, "nobody listens there") && !strings.Contains(body, `"refusals":{}`)
	})
	if list := differences("", kinds, all); len(list) > 0 {
		t.Errorf("the document differs:\n%s", strings.Join(list, "\n"))
	}
	d := document(t, n.url)
	if d.Node != n.Node() || d.Status != "OK" || d.ReportedAt < before || d.Build != options.Build || d.Backend != (admin.Backend{Kind: "memory", State: "ok"}) ||
		d.Watchers != 1 || d.Relayed != 1 || d.MemoryBytes == 0 || d.Sources[0].State != "failing" || d.Upstream[0].Numbers["streams"] != 7 {
		t.Errorf("the document says %+v", d)
	}
	c := d.Connections[0]
	if c.RequestPath != "/subscribe/details.1F680,news.*" || c.Namespace != "/details.1F680,news.*" || c.CreatedAt < before || c.ClientIP != "" {
		t.Errorf("the consumer is %+v", c)
	}
	want := []admin.Followed{{Channel: "details.1F680", Consumers: 1}, {Channel: "news.*", Consumers: 1}}
	if !slices.Equal(d.Followed.Top, want) || d.Followed.Names != 2 {
		t.Errorf("what is followed: %+v", d.Followed)
	}
}

func TestTheDocumentIsBounded(t *testing.T) {
	t.Parallel()
	n := serve(t, nil, nil)
	for i := range 120 {
		path := fmt.Sprintf("/channel.%03d", i)
		if i >= 110 {
			path = "/popular"
		}
		defer follow(t, n.url+path).close()
	}
	d := document(t, n.url)
	if len(d.Connections) != 100 || d.Consumers != 120 || d.Connections[0].Namespace != "/popular" {
		t.Errorf("%d of %d consumers, the first at %q", len(d.Connections), d.Consumers, d.Connections[0].Namespace)
	}
	top := d.Followed.Top
	if len(top) != 50 || d.Followed.Names != 111 || top[0] != (admin.Followed{Channel: "popular", Consumers: 10}) || top[1].Channel != "channel.000" || top[49].Channel != "channel.048" {
		t.Errorf("%d of %d names: %v", len(top), d.Followed.Names, top)
	}
}

func TestAConsumersAddressIsShownWhereItIsKept(t *testing.T) {
	t.Parallel()
	n := serve(t, &eventsource.Settings{Limits: eventsource.Limits{ConsumersPerAddress: 10}}, nil)
	defer follow(t, n.url+"/news").close()
	if d := document(t, n.url); d.Connections[0].ClientIP != "127.0.0.1" {
		t.Errorf("it comes from %q", d.Connections[0].ClientIP)
	}
}

func TestThePageIsOpenAndWhatItShowsIsNot(t *testing.T) {
	t.Parallel()
	n := serve(t, &eventsource.Settings{AuthToken: "geheim", Keys: []eventsource.Key{{Token: "follower", Subscribe: []string{"*"}}}}, nil)
	for path, media := range map[string]string{
		"/admin/": "text/html; charset=utf-8", "/admin/page.css": "text/css; charset=utf-8",
		"/admin/page.js": "text/javascript; charset=utf-8", "/admin/icon.svg": "image/svg+xml",
	} {
		res, body := get(t, "GET", n.url+path)
		if res.StatusCode != 200 || res.Header.Get("Content-Type") != media || strings.Contains(body, n.Node()) {
			t.Errorf("%s: %s %v", path, res.Status, res.Header)
		}
		for header, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} {
			if got := res.Header.Get(header); got != want {
				t.Errorf("%s: %s is %q", path, header, got)
			}
		}
		csp := res.Header.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: the policy is %q", path, csp)
		}
		if res, body := get(t, "HEAD", n.url+path); res.StatusCode != 200 || body != "" {
			t.Errorf("HEAD %s: %s", path, res.Status)
		}
		if res, _ := get(t, "POST", n.url+path); res.StatusCode != 405 || res.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("POST %s: %s %v", path, res.Status, res.Header)
		}
	}
	if res, _ := get(t, "GET", n.url+"/admin"); res.StatusCode != 308 || res.Header.Get("Location") != "admin/" {
		t.Errorf("/admin: %s %v", res.Status, res.Header)
	}
	if res, _ := get(t, "GET", n.url+"/admin/other"); res.StatusCode != 404 {
		t.Errorf("/admin/other: %s", res.Status)
	}
	for _, path := range []string{"/admin/status.json", "/admin/stream"} {
		for _, test := range []struct {
			header []string
			status int
		}{
			{nil, 401},
			{[]string{"Auth-Token", "wrong"}, 401},
			{[]string{"Auth-Token", "follower"}, 403},
			{[]string{"Cookie", "eventsource_token=follower"}, 403},
			{[]string{"Cookie", "eventsource_token=geheim", "Sec-Fetch-Site", "cross-site"}, 401},
			{[]string{"Cookie", "eventsource_token=geheim", "Origin", "https://elsewhere.example"}, 401},
		} {
			res, body := get(t, "GET", n.url+path, test.header...)
			if res.StatusCode != test.status || res.Header.Get("Content-Type") != "application/problem+json" || strings.Contains(body, n.Node()) {
				t.Errorf("%s with %v: %s %s", path, test.header, res.Status, body)
			}
		}
		if res, _ := get(t, "POST", n.url+path, "Auth-Token", "geheim"); res.StatusCode != 405 {
			t.Errorf("POST %s: %s", path, res.Status)
		}
	}
	// With the cookie, as the page and its EventSource send it.
	with := []string{"Cookie", "eventsource_token=geheim", "Sec-Fetch-Site", "same-origin"}
	if d := document(t, n.url, with...); d.Node != n.Node() {
		t.Errorf("the document says %+v", d)
	}
	follow(t, n.url+"/admin/stream", with...).status()
	if res, _ := get(t, "GET", n.url+"/admin/status.json?access_token=geheim"); res.StatusCode != 401 {
		t.Errorf("a token in the URL opens the document: %s", res.Status)
	}
}

func TestTheAddressOfOperatorsAsksForNoToken(t *testing.T) {
	t.Parallel()
	n := serve(t, &eventsource.Settings{AuthToken: "geheim"}, nil)
	operators := httptest.NewServer(n.pages.Handler())
	defer operators.Close()
	for path, status := range map[string]int{"/admin": 308, "/admin/": 200, "/admin/page.js": 200, "/admin/status.json": 200, "/admin/other": 404, "/": 404} {
		res, _ := get(t, "GET", operators.URL+path)
		if res.StatusCode != status || res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %s %v", path, res.Status, res.Header)
		}
	}
	stream := follow(t, operators.URL+"/admin/stream")
	stream.status()
	n.stop()
	for typ, data := stream.event(); ; typ, data = stream.event() {
		if typ == "eventsource.end" && data == `{"reason":"draining"}` {
			break
		}
		if typ != "status" {
			t.Fatalf("it ended with %q %q", typ, data)
		}
	}
}

func TestPrivateChannelsAreShownToWhoMayFollowThem(t *testing.T) {
	t.Parallel()
	settings := &eventsource.Settings{AuthToken: "geheim", Keys: []eventsource.Key{
		{Token: "operator", Admin: true}, {Token: "supervisor", Admin: true, Subscribe: []string{"users.*"}}}}
	n := serve(t, settings, nil)
	operators := httptest.NewServer(n.pages.Handler())
	defer operators.Close()
	defer follow(t, n.url+"/news,users.joe", "Auth-Token", "geheim").close()
	for _, test := range []struct {
		name, url string
		header    []string
		sees      bool
	}{
		{"AuthToken", n.url, []string{"Auth-Token", "geheim"}, true},
		{"an administrator that is granted them", n.url, []string{"Auth-Token", "supervisor"}, true},
		{"another administrator", n.url, []string{"Auth-Token", "operator"}, false},
		{"operators without a token", operators.URL, nil, false},
		{"operators with one", operators.URL, []string{"Auth-Token", "supervisor"}, true},
	} {
		check := func(d admin.Status) {
			if d.Followed.Names != 2 || d.Consumers != 1 {
				t.Errorf("%s: %+v", test.name, d)
			}
			want := map[bool]string{true: "/news,users.joe", false: "/news"}[test.sees]
			listed := slices.ContainsFunc(d.Followed.Top, func(f admin.Followed) bool { return f.Channel == "users.joe" })
			if d.Connections[0].Namespace != want || listed != test.sees {
				t.Errorf("%s: %+v %+v", test.name, d.Connections, d.Followed)
			}
		}
		check(document(t, test.url, test.header...))
		stream := follow(t, test.url+"/admin/stream", test.header...)
		check(stream.status())
		stream.close()
	}

	// A reload that takes the grant away counts for who looks.
	stream := follow(t, n.url+"/admin/stream", "Auth-Token", "supervisor")
	stream.status()
	settings.Keys[1].Subscribe = nil
	if err := n.Reload(settings); err != nil {
		t.Fatal(err)
	}
	stream.status() // perhaps on its way already
	if d := stream.status(); d.Connections[0].Namespace != "/news" {
		t.Errorf("after the reload: %+v", d.Connections)
	}

	// Without any token nothing is private.
	open := serve(t, nil, nil)
	defer follow(t, open.url+"/users.joe").close()
	if d := document(t, open.url); d.Connections[0].Namespace != "/users.joe" || d.Followed.Top[0].Channel != "users.joe" {
		t.Errorf("without a token: %+v %+v", d.Connections, d.Followed)
	}
}

func TestTheStreamBringsADocumentAtOnceAndThenEachSecond(t *testing.T) {
	t.Parallel()
	n := serve(t, nil, nil)
	began := time.Now()
	one, two := follow(t, n.url+"/admin/stream"), follow(t, n.url+"/admin/stream")
	one.status()
	two.status()
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("the first came after %v", took)
	}
	second := one.status()
	if took := time.Since(began); took < 700*time.Millisecond || took > 3*time.Second {
		t.Errorf("the second came after %v", took)
	}
	if again := two.status(); again.ReportedAt != second.ReportedAt || again.Watchers != 2 || again.Consumers != 0 || again.Relayed != 2 {
		t.Errorf("the two were told %+v and %+v", second, again)
	}
	for range 50 {
		if _, err := n.Publish(t.Context(), "news", eventsource.Event{Data: "hello"}); err != nil {
			t.Fatal(err)
		}
	}
	third := one.status()
	if third.Published != 50 {
		third = one.status()
	}
	if r := third.Rates; r == nil || third.Published != 50 || r.Published*r.Seconds < 49.5 || r.Published*r.Seconds > 50.5 || r.Sent != 0 {
		t.Errorf("50 were published: %+v %+v", third.Rates, third.Stats)
	}
}

func TestNothingRunsWhileNobodyLooks(t *testing.T) {
	asked := make(chan struct{}, 1000)
	n := serve(t, nil, &admin.Options{Upstream: func() []admin.Upstream { asked <- struct{}{}; return nil }})
	if len(asked) != 0 || ticks() {
		t.Error("something runs before anybody looks")
	}
	one, two := follow(t, n.url+"/admin/stream"), follow(t, n.url+"/admin/stream")
	one.status()
	two.status()
	one.status()
	if len(asked) > 3 || !ticks() {
		t.Errorf("two that look cost %d documents in a second", len(asked))
	}
	one.close()
	two.close()
	eventually(t, "nobody looks, and nothing runs", func() bool { return n.Stats().Relayed == 0 && !ticks() })
	for len(asked) > 0 {
		<-asked
	}
	select {
	case <-asked:
		t.Error("a document was made for nobody")
	case <-time.After(1500 * time.Millisecond):
	}
}

// ticks reports whether a goroutine makes documents.
func ticks() bool {
	stacks := make([]byte, 1<<20)
	return strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "(*Pages).tick(")
}

func TestDocumentsThatAreAskedForAtOnceAreOne(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1000)
	n := serve(t, nil, &admin.Options{Upstream: func() []admin.Upstream { asked <- struct{}{}; return nil }})
	for range 20 {
		document(t, n.url)
	}
	if len(asked) > 2 {
		t.Errorf("20 requests cost %d documents", len(asked))
	}
}

func TestAStreamEndsWhenItsTokenIsRevoked(t *testing.T) {
	t.Parallel()
	settings := &eventsource.Settings{AuthToken: "geheim", Keys: []eventsource.Key{{Token: "operator", Admin: true}}}
	n := serve(t, settings, nil)
	stream := follow(t, n.url+"/admin/stream", "Auth-Token", "operator")
	stream.status()
	settings.Keys = nil
	if err := n.Reload(settings); err != nil {
		t.Fatal(err)
	}
	endsWith(t, stream, "revoked")
}

func TestAStreamEndsWhenItsTokenExpires(t *testing.T) {
	t.Parallel()
	secret := strings.Repeat("s", 32)
	n := serve(t, &eventsource.Settings{Issuers: []eventsource.Issuer{{Key: []byte(secret)}}}, nil)
	token := sign(secret, time.Now().Add(2*time.Second))
	stream := follow(t, n.url+"/admin/stream", "Cookie", "eventsource_token="+token)
	stream.status()
	endsWith(t, stream, "expired")
	res, body := get(t, "GET", n.url+"/admin/status.json", "Cookie", "eventsource_token="+token)
	if res.StatusCode != 401 || !strings.Contains(body, "the token expired at") {
		t.Errorf("afterwards: %s %s", res.Status, body)
	}
}

// sign returns a JWT of an administrator.
func sign(secret string, expires time.Time) string {
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." +
		encode(fmt.Appendf(nil, `{"sub":"ann","exp":%d,"eventsource":{"admin":true}}`, expires.Unix()))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return text + "." + encode(mac.Sum(nil))
}

// endsWith reads documents until the stream is ended for a reason.
func endsWith(t *testing.T, stream *following, reason string) {
	t.Helper()
	typ, data := stream.event()
	for typ == "status" {
		typ, data = stream.event()
	}
	if typ != "eventsource.end" || data != fmt.Sprintf(`{"reason":%q}`, reason) {
		t.Errorf("it ended with %q %q", typ, data)
	}
}

func TestADocumentSaysThatTheServerDrains(t *testing.T) {
	t.Parallel()
	release, entered := make(chan struct{}), make(chan struct{})
	n := serve(t, &eventsource.Settings{Sources: []eventsource.Source{lingering{entered, release}}}, nil)
	<-entered
	stream := follow(t, n.url+"/admin/stream")
	stream.status()
	done := make(chan struct{})
	go func() { n.stop(); close(done) }()
	eventually(t, "it drains", func() bool { return n.Stats().Draining })
	stream.status() // perhaps on its way already
	if d := stream.status(); d.Status != "draining" {
		t.Errorf("the stream says %q", d.Status)
	}
	if d := document(t, n.url); d.Status != "draining" {
		t.Errorf("the document says %q", d.Status)
	}
	res, body := get(t, "GET", n.url+"/admin/stream", "Accept", "text/event-stream")
	if res.StatusCode != http.StatusOK || !strings.Contains(body, ": the server is shutting down") {
		t.Errorf("who comes now is told %s %q", res.Status, body)
	}
	close(release)
	<-done
	endsWith(t, stream, "draining")
}

// A lingering source takes its time to end.
type lingering struct{ entered, release chan struct{} }

func (l lingering) Run(_ context.Context, feed *eventsource.Feed) error {
	feed.Connected()
	close(l.entered)
	<-l.release
	return nil
}
