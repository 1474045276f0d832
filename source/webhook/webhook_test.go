package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/sourcetest"
	"github.com/railsmechanic/eventsource/source/webhook"
)

// serve returns the server with webhooks, and its URL.
func serve(t *testing.T, settings *eventsource.Settings, configs ...webhook.Config) (*eventsource.Server, string) {
	t.Helper()
	for _, c := range configs {
		src, err := webhook.New(c)
		if err != nil {
			t.Fatal(err)
		}
		settings.Sources = append(settings.Sources, src)
	}
	srv, err := eventsource.Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return srv, "http://" + l.Addr().String()
}

// post sends a body and returns the answer.
func post(t *testing.T, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	return send(t, http.MethodPost, url, body, header...)
}

func send(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(answer)
}

// ready waits until the webhook of a server that has just been opened runs.
func ready(t *testing.T, url string, header ...string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		if res, _ := post(t, url, "{}", header...); res.StatusCode == http.StatusOK {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the webhook never ran")
		}
	}
}

func TestAnyJSONIsPublishedUntouched(t *testing.T) {
	srv, url := serve(t, &eventsource.Settings{}, webhook.Config{Channel: "builds", Event: "done"})
	ready(t, url+"/api/events")
	documents := []string{
		`{"msg":"data"}`, ` {"b" : 1.50,  "a":[ 1, 2 ]} `, `"text"`, `null`, `0`, `12345678901234567890`, `[]`,
		"{\n  \"a\": \"\\u00e9é\"\n}\n", `{"a":1,"a":2}`,
	}
	var ids []string
	for _, d := range documents {
		// Senders are careless with the type, and curl's own is that of a form.
		res, body := post(t, url+"/api/events", d, "Content-Type", "application/x-www-form-urlencoded")
		var answer map[string]string
		if err := json.Unmarshal([]byte(body), &answer); err != nil || res.StatusCode != http.StatusOK || len(answer) != 1 || len(answer["id"]) != 36 {
			t.Fatalf("%s: %s %s", d, res.Status, body)
		}
		if ct := res.Header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("the answer is %s", ct)
		}
		ids = append(ids, answer["id"])
	}
	n := 0
	for e, err := range srv.Subscribe(t.Context(), "builds", &eventsource.Subscription{History: len(documents)}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Data != documents[n] || e.Type != "done" || e.ID != ids[n] {
			t.Errorf("event %d is %+v, want %s", n, e, documents[n])
		}
		if n++; n == len(documents) {
			break
		}
	}
}

func TestRefusalsSayWhatWouldBeRightAndPublishNothing(t *testing.T) {
	srv, url := serve(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 50}}, webhook.Config{Path: "/api/hook", Channel: "a"})
	ready(t, url+"/api/hook")
	before := srv.Stats().Published
	for _, test := range []struct {
		name, method, body string
		status             int
		want               string
	}{
		{"empty", "POST", "", 400, "the body is empty: send a JSON document"},
		{"no JSON", "POST", `{"a":}`, 400, "the body is no JSON document: invalid character '}' looking for beginning of value at byte 6"},
		{"half", "POST", `{"a":`, 400, "the body is no JSON document: unexpected end of JSON input at byte 5"},
		{"two documents", "POST", `{} {}`, 400, "the body is no JSON document: invalid character '{' after top-level value at byte 4"},
		{"a form", "POST", `msg=data`, 400, "the body is no JSON document: "},
		{"byte order mark", "POST", "\xef\xbb\xbf{}", 400, "the body is no JSON document: "},
		{"no UTF-8", "POST", "\"\xff\"", 400, "the body is not valid UTF-8, as JSON must be (RFC 8259, 8.1)"},
		{"too long", "POST", `"` + strings.Repeat("x", 50) + `"`, 413, "the body is longer than 50 bytes"},
		{"GET", "GET", "", 405, "POST"},
		{"DELETE", "DELETE", "", 405, "POST"},
	} {
		t.Run(test.name, func(t *testing.T) {
			res, body := send(t, test.method, url+"/api/hook", test.body)
			var p eventsource.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatal(err, body)
			}
			if res.StatusCode != test.status || p.Status != test.status || res.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(p.Detail, test.want) {
				t.Errorf("%s %v %s", res.Status, res.Header, body)
			}
			if test.status == 405 && !strings.Contains(res.Header.Get("Allow"), "POST") {
				t.Errorf("Allow: %q", res.Header.Get("Allow"))
			}
		})
	}
	// Without a length, the body's bound is met only while it is read.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/api/hook", io.MultiReader(strings.NewReader(`"`+strings.Repeat("x", 60)+`"`)))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 413 {
		t.Errorf("a long body without a length: %s", res.Status)
	}
	if after := srv.Stats().Published; after != before {
		t.Errorf("refused requests published %d events", after-before)
	}
}

func TestAWebhookAsksForItsSecretOrForAToken(t *testing.T) {
	srv, url := serve(t, &eventsource.Settings{AuthToken: "token"},
		webhook.Config{Path: "/secret", Channel: "a", Secret: "hush"}, webhook.Config{Path: "/open", Channel: "a"})
	ready(t, url+"/secret", "Auth-Token", "hush")
	ready(t, url+"/open", "Auth-Token", "token")
	before := srv.Stats().Published
	for _, test := range []struct {
		path   string
		header []string
		status int
	}{
		{"/secret", nil, 401},
		{"/secret", []string{"Authorization", "Bearer hus"}, 401},
		{"/secret", []string{"Authorization", "Basic hush"}, 401},
		{"/secret", []string{"Auth-Token", "token"}, 401},
		{"/secret", []string{"Auth-Token", "wrong", "Authorization", "Bearer hush"}, 401},
		{"/open", nil, 401},
		{"/open", []string{"Auth-Token", "hush"}, 401},
		{"/secret", []string{"Authorization", "Bearer hush"}, 200},
		{"/secret", []string{"Authorization", "bearer  hush "}, 200},
		{"/secret", []string{"Auth-Token", "hush"}, 200},
		{"/open", []string{"Authorization", "Bearer token"}, 200},
	} {
		res, body := post(t, url+test.path, "{}", test.header...)
		if res.StatusCode != test.status {
			t.Errorf("%s %q: %s %s", test.path, test.header, res.Status, body)
		}
		if challenge := res.Header.Get("WWW-Authenticate"); test.status == 401 && !strings.HasPrefix(challenge, "Bearer") {
			t.Errorf("%s %q: WWW-Authenticate: %q", test.path, test.header, challenge)
		}
		if strings.Contains(body, "hush") || strings.Contains(body, "token\"") {
			t.Errorf("the answer shows a secret: %s", body)
		}
	}
	if n := srv.Stats().Published - before; n != 4 {
		t.Errorf("%d events were published, not 4", n)
	}
}

// A backend counts what is published, and holds it up when it is told to.
type backend struct {
	sourcetest.Backend
	calls atomic.Int64
	holds atomic.Pointer[chan struct{}] // publishing waits until it is closed
}

func (b *backend) Publish(ctx context.Context, r *eventsource.Record) (eventsource.Kept, error) {
	holds := b.holds.Load()
	b.calls.Add(1)
	if holds != nil {
		<-*holds
	}
	return b.Backend.Publish(ctx, r)
}

func TestAWebhookPublishesOnlyWhileItRuns(t *testing.T) {
	src, err := webhook.New(webhook.Config{Channel: "a"})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	src.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/events", strings.NewReader("{}")))
	if w.Code != 503 || w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), "does not run at present") {
		t.Errorf("before Run: %d %v %s", w.Code, w.Header(), w.Body)
	}
}

func TestASenderIsToldWhatTheBackendSays(t *testing.T) {
	b := &backend{}
	srv, url := serve(t, &eventsource.Settings{Backend: b}, webhook.Config{Channel: "a"})
	ready(t, url+"/api/events")
	for _, test := range []struct {
		fails  error
		status int
		retry  bool
		reason string // that is counted
	}{
		{eventsource.ErrUnavailable, 503, true, ""},
		{eventsource.ErrTooLarge, 413, false, eventsource.RefusedTooLarge},
	} {
		b.Refuse(test.fails)
		before := srv.Stats().Sources[0]
		res, body := post(t, url+"/api/events", "{}")
		if res.StatusCode != test.status || (res.Header.Get("Retry-After") != "") != test.retry {
			t.Errorf("%v: %s %v %s", test.fails, res.Status, res.Header, body)
		}
		after := srv.Stats().Sources[0]
		if test.reason != "" && after.Refusals[test.reason] != before.Refusals[test.reason]+1 || after.Published != before.Published {
			t.Errorf("%v is counted as %+v, before as %+v", test.fails, after, before)
		}
	}
	b.Refuse(nil)
	if res, body := post(t, url+"/api/events", "{}"); res.StatusCode != 200 {
		t.Errorf("afterwards: %s %s", res.Status, body)
	}
}

func TestBadConfigsAreRefused(t *testing.T) {
	for _, test := range []struct {
		config webhook.Config
		want   string
	}{
		{webhook.Config{}, "channel: none is given; name the one that events go to"},
		{webhook.Config{Channel: "a", Path: "hook"}, `path "hook" is no path such as /api/events`},
		{webhook.Config{Channel: "a", Path: "/hook{x}"}, `path "/hook{x}" is no path such as /api/events`},
		{webhook.Config{Channel: "a.*"}, `channel: "a.*" is a wildcard, which can only be followed: name the channel itself`},
		{webhook.Config{Channel: "a,b"}, `channel: "a,b" holds ',': a webhook publishes to one channel`},
		{webhook.Config{Channel: "a.{header:X-GitHub-Event}"}, `channel: "a.{header:X-GitHub-Event}" has variables, and no grant is for that; give a secret`},
		{webhook.Config{Channel: "a.{name}", Secret: "hush"}, `channel: "a.{name}": there is no {name} here`},
		{webhook.Config{Channel: "a", Event: "{header:}"}, `event: "{header:}": there is no {header:} here`},
		{webhook.Config{Channel: "a", ID: "{body:id"}, `id: "{body:id": {body:id is not closed; write {{ for one {`},
		{webhook.Config{Channel: "a", Signature: "github"}, "secret: none is given; with a signature it is the key that both sides know"},
		{webhook.Config{Channel: "a", Signature: "gitlab", Secret: "hush"}, `signature: "gitlab" is none of github, stripe`},
		{webhook.Config{Channel: "metrics"}, `channel: "metrics" is reserved: `},
		{webhook.Config{Channel: "a", Event: "eventsource.gap"}, `event: "eventsource.gap" begins with "eventsource.", which is kept for the server's own; choose another`},
		{webhook.Config{Channel: "a", Event: "a\nb"}, `event: "a\nb" has control characters`},
		{webhook.Config{Channel: "a", Secret: " hush"}, "secret: it has control characters, or a space at an end"},
	} {
		if _, err := webhook.New(test.config); err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%+v: %v, want %s", test.config, err, test.want)
		}
	}
	src, err := webhook.New(webhook.Config{Channel: "all"})
	if err != nil || src.Path() != webhook.DefaultPath || src.Channel() != "all" {
		t.Error(src, err)
	}
}

func FuzzAnyBodyIsPublishedOrRefused(f *testing.F) {
	for _, seed := range []string{"", "{}", "\xff", `"\ud800"`, "[1,\r\n2]", "\xef\xbb\xbf1", "payload=%7B%7D"} {
		f.Add([]byte(seed))
	}
	src, err := webhook.New(webhook.Config{Channel: "a", ID: "{body:id}"})
	if err != nil {
		f.Fatal(err)
	}
	srv, err := eventsource.Open(&eventsource.Settings{Sources: []eventsource.Source{src}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { srv.Shutdown(context.Background()) })
	f.Fuzz(func(t *testing.T, body []byte) {
		var w *httptest.ResponseRecorder
		published := srv.Stats().Published
		for w == nil || w.Code == 503 {
			w = httptest.NewRecorder()
			src.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/events", strings.NewReader(string(body))))
		}
		published = srv.Stats().Published - published
		valid := json.Valid(body) && utf8.Valid(body)
		if !valid && (w.Code != 400 || published != 0) || w.Code == 200 && published != 1 {
			t.Errorf("%q: %d, published %d", body, w.Code, published)
		}
		if w.Code != 200 && w.Code != 400 {
			t.Errorf("%q: %d %s", body, w.Code, w.Body)
		}
	})
}
