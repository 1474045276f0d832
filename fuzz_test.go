package eventsource_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/railsmechanic/eventsource"
)

// fuzzServer is a server that keeps little.
func fuzzServer(f *testing.F) *eventsource.Server {
	s, err := eventsource.Open(&eventsource.Settings{
		Timeout: time.Second,
		History: eventsource.History{Events: 8, Bytes: 1 << 20},
		Limits:  eventsource.Limits{Body: 64 << 10, Channels: 1000, IdempotencyKeys: 1000},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Stop)
	return s
}

// Whatever is posted, the answer is 2xx or a problem document, and a refusal
// leaves everything as it was.
func FuzzPost(f *testing.F) {
	for _, seed := range [][4]string{
		{asJSON, "", "", `{"id":1,"event":"e","data":{"a":[1,2]},"retry":1,"ttl":0}`},
		{asJSON, "", "k", `[{"data":"a\r\nb"},{"data":null}]`},
		{asJSON, "raw=1&id=x", "", `{"a":"\ud83d\ude00"}`},
		{asJSON, "", "", "{\"data\":\"\\ud800\"}"},
		{asLines, "", "", "{\"data\":1}\n\n{\"data\":2}\r\n{\"data\":3}"},
		{asLines, "answers=errors", "", "{\"data\":1}\n{"},
		{asForm, "", "", "data=a%0Db&id=1&event=x"},
		{asText, "id=%00&retry=1e3", "", "hello\r\n\xff"},
		{"text/html; charset=utf-8", "event=a&ttl=5", "", "<p>"},
		{asCloud, "", "", `{"specversion":"1.0","type":"t","data_base64":"aGk="}`},
		{"application/octet-stream", "", "", "x"},
		{"\x00;;", "%zz;&=", "\x7f", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], []byte(seed[3]))
	}
	s := fuzzServer(f)
	h := s.Handler()
	f.Fuzz(func(t *testing.T, contentType, query, key string, body []byte) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/news", strings.NewReader(string(body)))
		r.URL.RawQuery = query
		r.Header["Content-Type"] = []string{contentType}
		if key != "" {
			r.Header["Idempotency-Key"] = []string{key}
		}
		before := s.Stats().Mark
		w := fullDuplex{httptest.NewRecorder()}
		h.ServeHTTP(w, r)
		checkAnswer(t, r.Method, contentType, answer{w.Code, w.Header(), w.Body.String()})
		if w.Code < 200 || w.Code >= 300 && w.Code < 400 {
			t.Errorf("answered %d", w.Code)
		}
		if w.Code >= 400 && s.Stats().Mark != before {
			t.Errorf("it was refused with %d, and published", w.Code)
		}
		if !utf8.Valid(w.Body.Bytes()) {
			t.Errorf("the answer %q is no text", w.Body)
		}
		if mark := s.Stats().Mark; mark > before {
			checkKept(t, s, int(min(mark-before, 8)))
		}
	})
}

// checkKept checks that so many events come back from the history.
func checkKept(t *testing.T, s *eventsource.Server, n int) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := s.Subscribe(ctx, "news", &eventsource.Subscription{History: n})
	s.Publish(ctx, "news", eventsource.Event{ID: "the end", TTL: -1})
	got := 0
	for e, err := range follow {
		if err != nil {
			t.Fatal(err)
		}
		if e.ID == "the end" {
			break
		}
		got++
	}
	if got > n {
		t.Errorf("%d events came back, where at most %d were kept", got, n)
	}
}

// A fullDuplex is a recorder that lines can be posted to.
type fullDuplex struct{ *httptest.ResponseRecorder }

func (fullDuplex) EnableFullDuplex() error { return nil }

// Whatever stands in a path, every verb answers, and what was published to can
// be found again under the same name.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"news", "a/b.c", "a,b", "*", "a.*", "all", "@me", "health", "a..b", "/", ",", "favicon.ico", "ü", "a\x00", "%2f", strings.Repeat("a", 256)} {
		f.Add(seed)
	}
	s := fuzzServer(f)
	h := s.Handler()
	f.Fuzz(func(t *testing.T, name string) {
		names, p := eventsource.ParseNames(name, false)
		status := map[string]int{}
		for _, verb := range []string{"POST", "HEAD", "DELETE", "PUT"} {
			r := httptest.NewRequestWithContext(t.Context(), verb, "/", strings.NewReader("x"))
			r.URL = &url.URL{Path: "/" + name}
			r.Header.Set("Content-Type", asText)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			checkAnswer(t, verb, name, answer{w.Code, w.Header(), w.Body.String()})
			status[verb] = w.Code
			if verb == "HEAD" && status["POST"] == 201 && names[0] != "all" && len(names) == 1 && w.Header().Get("X-Channel-Exists") != "true" {
				t.Errorf("%q was published to and does not exist", name)
			}
		}
		if (p == nil) != (status["POST"] == 201) && status["POST"] != 401 && status["POST"] != 405 {
			t.Errorf("%q is parsed as %v, %v and answered %d", name, names, p, status["POST"])
		}
		for _, n := range names {
			if again, p := eventsource.ParseNames(n, false); p != nil || len(again) != 1 || again[0] != n {
				t.Errorf("%q is parsed as %q, and that as %q, %v", name, n, again, p)
			}
		}
		if _, wild := eventsource.ParseNames(name, true); p == nil && wild != nil {
			t.Errorf("%q is a name that can't be followed: %v", name, wild)
		}
	})
}

// Whatever last id a consumer comes with, it is served or refused.
func FuzzLastEventID(f *testing.F) {
	for _, seed := range []string{"", "1", "00000000-0000-7000-8000-000000000000", "ffffffff-ffff-7fff-bfff-ffffffffffff",
		"01a1fcb4-e45a-7ce6-b500-000000000001", "\x00", "\"\\\u2028", "\xff", strings.Repeat("x", 256)} {
		f.Add(seed, "last_event_id=x&history=3&event=a&envelope=1")
		f.Add("", "last_event_id="+url.QueryEscape(seed))
	}
	s := fuzzServer(f)
	s.Publish(context.Background(), "news", eventsource.Event{ID: "1"}, eventsource.Event{})
	h := s.Handler()
	f.Fuzz(func(t *testing.T, id, query string) {
		ctx, cancel := context.WithCancel(t.Context())
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/news", nil)
		r.URL.RawQuery = query
		r.Header["Last-Event-Id"] = []string{id}
		w := &leaving{ResponseRecorder: httptest.NewRecorder(), leave: cancel}
		defer cancel()
		h.ServeHTTP(w, r)
		checkAnswer(t, r.Method, id, answer{w.Code, w.Header(), w.Body.String()})
		if w.Code != 200 && w.Code != 400 {
			t.Errorf("answered %d", w.Code)
		}
		if text := w.Body.String(); w.Code == 200 && (!strings.HasPrefix(text, "retry: ") || !strings.HasSuffix(text, "\n\n") || !utf8.ValidString(text)) {
			t.Errorf("the stream is %q", text)
		}
	})
}

// leaving is a consumer that leaves after the first bytes.
type leaving struct {
	*httptest.ResponseRecorder
	leave func()
}

func (l *leaving) SetWriteDeadline(time.Time) error { return nil }
func (l *leaving) Flush()                           { l.leave() }
