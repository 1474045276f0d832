package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/client"
)

// serve serves settings over HTTP until the test ends. What wrap returns stands before
// the server.
func serve(t *testing.T, settings *eventsource.Settings, wrap func(http.Handler) http.Handler) (*eventsource.Server, string) {
	t.Helper()
	s, err := eventsource.Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	h := s.Handler()
	if wrap != nil {
		h = wrap(h)
	}
	w := httptest.NewServer(h)
	t.Cleanup(func() {
		s.Stop()
		w.CloseClientConnections()
		w.Close()
	})
	return s, w.URL
}

func newClient(t *testing.T, base string, options *client.Options) *client.Client {
	t.Helper()
	c, err := client.New(base, options)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// must fails the test at an error.
func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// refused fails the test unless err is a refusal with a status and words.
func refused(t *testing.T, err error, status int, words string) *client.Problem {
	t.Helper()
	p, ok := errors.AsType[*client.Problem](err)
	if !ok || p.Status != status || !strings.Contains(p.Error(), words) || p.Title == "" || p.Type != "about:blank" {
		t.Fatalf("%v (%+v), not %d and %q", err, p, status, words)
	}
	return p
}

// collect ranges over a sequence.
func collect[T any](t *testing.T, seq func(func(T, error) bool)) (all []T) {
	t.Helper()
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func TestWhatIsPublishedComesBack(t *testing.T) {
	_, base := serve(t, nil, nil)
	c := newClient(t, base+"/", nil)
	ctx := t.Context()
	before := time.Now()
	events := []client.Event{
		{ID: "1", Type: "score", Data: "two\nlines <é>", Retry: 1500 * time.Millisecond, TTL: time.Minute},
		{ID: "a/b", NoData: true, Retry: -1},
		{ID: "..", Data: ""},
	}
	for _, e := range events {
		r := must[client.Receipt](t)(c.Publish(ctx, "news", e))
		if !slices.Equal(r.IDs, []string{e.ID}) || !slices.Equal(r.Channels, []string{"news"}) || r.Consumers != 0 {
			t.Errorf("%+v: %+v", e, r)
		}
	}
	got := collect(t, c.Events(ctx, "news", nil))
	for i, e := range got {
		if e.Time.Before(before.Add(-time.Second)) || !slices.Equal(e.Channels, []string{"news"}) || e.Read {
			t.Errorf("%+v", e)
		}
		one := must[client.Event](t)(c.Event(ctx, "news", e.ID))
		if fmt.Sprint(one) != fmt.Sprint(e) {
			t.Errorf("%+v by its id is %+v", e, one)
		}
		want := events[i]
		if e.ID != want.ID || e.Type != want.Type || e.Data != want.Data || e.NoData != want.NoData || e.Retry != want.Retry {
			t.Errorf("%+v came back as %+v", want, e)
		}
	}
	if len(got) != len(events) {
		t.Errorf("%d events came back", len(got))
	}
	batch := must[client.Receipt](t)(c.Publish(ctx, "batch", client.Event{Data: "a"}, client.Event{Data: "b"}))
	several := must[client.Receipt](t)(c.Publish(ctx, "one,two", client.Event{ID: "x"}, client.Event{ID: "y"}))
	both := must[client.Receipt](t)(c.Publish(ctx, "one,two", client.Event{ID: "z", NoData: true}))
	if len(batch.IDs) != 2 || !slices.Equal(several.IDs, []string{"x", "y"}) || !slices.Equal(several.Channels, []string{"one", "two"}) ||
		!slices.Equal(both.IDs, []string{"z"}) || !slices.Equal(both.Channels, []string{"one", "two"}) {
		t.Errorf("%+v %+v %+v", batch, several, both)
	}
	if all := collect(t, c.Events(ctx, "two", nil)); len(all) != 3 {
		t.Errorf("to several came %+v", all)
	}
	if _, err := c.Publish(ctx, "news"); err == nil {
		t.Error("nothing was published")
	}
	_, err := c.Publish(ctx, "a b", client.Event{Data: "x"})
	refused(t, err, 404, "a channel name is")
	_, err = c.Publish(ctx, "a,b.*", client.Event{Data: "x"})
	refused(t, err, 400, "wildcard")
	_, err = c.Event(ctx, "news", "unknown")
	refused(t, err, 404, "no event with the id")
}

func TestEventsYieldsEveryPage(t *testing.T) {
	s, base := serve(t, &eventsource.Settings{History: eventsource.History{Events: 3000}}, nil)
	c := newClient(t, base, nil)
	var want []string
	for i := range 2500 {
		r := must[eventsource.Receipt](t)(s.Publish(t.Context(), []string{"news.a", "news.b"}[i%2], eventsource.Event{Type: []string{"x", "y"}[i%2]}))
		want = append(want, r.IDs[0])
	}
	ids := func(channel string, q *client.Query) (ids []string) {
		for _, e := range collect(t, c.Events(t.Context(), channel, q)) {
			ids = append(ids, e.ID)
		}
		return ids
	}
	backwards := slices.Clone(want)
	slices.Reverse(backwards)
	for _, tc := range []struct {
		q    *client.Query
		want []string
	}{
		{nil, want},
		{&client.Query{Page: 1000}, want},
		{&client.Query{Descending: true}, backwards},
		{&client.Query{After: want[99]}, want[100:]},
		{&client.Query{After: want[99], Before: want[2300], Page: 7}, want[100:2300]},
		{&client.Query{Before: want[2300]}, backwards[200:]},
		{&client.Query{Types: []string{"none"}}, nil},
	} {
		if got := ids("news.*", tc.q); !slices.Equal(got, tc.want) {
			t.Errorf("%+v: %d events, not %d", tc.q, len(got), len(tc.want))
		}
	}
	if got := ids("news.*", &client.Query{Types: []string{"x"}}); len(got) != 1250 {
		t.Errorf("of one type: %d", len(got))
	}
	for range c.Events(t.Context(), "news.a", nil) {
		break // which asks for nothing more
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n, last := 0, error(nil)
	for _, err := range c.Events(ctx, "news.a", &client.Query{Page: 10}) {
		if n, last = n+1, err; n == 5 {
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) || n != 11 {
		t.Errorf("after the context had ended came %d, %v", n, last)
	}
}

func TestAPersonMarksWhatIsRead(t *testing.T) {
	_, base := serve(t, &eventsource.Settings{History: eventsource.History{Events: 3000}}, nil)
	c := newClient(t, base, nil)
	ctx := t.Context()
	var ids []string
	for i := range 1500 {
		ids = append(ids, fmt.Sprint("e", i))
	}
	for i := 0; i < len(ids); i += 500 {
		var batch []client.Event
		for _, id := range ids[i : i+500] {
			batch = append(batch, client.Event{ID: id, Data: "x"})
		}
		must[client.Receipt](t)(c.Publish(ctx, "users.ann", batch...))
	}
	number := must[int](t)
	if n := number(c.Unread(ctx, "users.ann")); n != 1500 {
		t.Errorf("unread are %d", n)
	}
	if n := number(c.Mark(ctx, "users.ann", "e3", "e4")); n != 1498 {
		t.Errorf("then %d", n)
	}
	if n := number(c.Unmark(ctx, "users.ann", "e3")); n != 1499 {
		t.Errorf("then %d", n)
	}
	if n := number(c.MarkUpTo(ctx, "users.ann", "e9")); n != 1490 {
		t.Errorf("then %d", n)
	}
	read := collect(t, c.Events(ctx, "users.ann", &client.Query{Status: "read"}))
	if len(read) != 10 || !read[0].Read {
		t.Errorf("read are %+v", read)
	}
	if n := number(c.Mark(ctx, "users.ann", ids...)); n != 0 {
		t.Errorf("of all, %d are unread", n)
	}
	if _, err := c.Mark(ctx, "users.ann"); err == nil {
		t.Error("nothing was marked")
	}
	_, err := c.Mark(ctx, "news", "e1")
	refused(t, err, 404, "users.joe")
}

func TestAnAdministratorSeesAndEndsWhatThereIs(t *testing.T) {
	s, base := serve(t, &eventsource.Settings{AuthToken: "s3cret"}, nil)
	c := newClient(t, base, &client.Options{Token: " s3cret\n"})
	ctx := t.Context()
	for i := range 1200 {
		s.Publish(ctx, fmt.Sprintf("a.%04d", i), eventsource.Event{ID: fmt.Sprint(i)})
	}
	s.Publish(ctx, "b", eventsource.Event{ID: "first"}, eventsource.Event{ID: "last"})
	all := collect(t, c.Channels(ctx, ""))
	if len(all) != 1201 || all[1200].Name != "b" || all[7].Name != "a.0007" {
		t.Errorf("there are %d channels", len(all))
	}
	if some := collect(t, c.Channels(ctx, "a.000")); len(some) != 10 {
		t.Errorf("by prefix there are %d channels", len(some))
	}
	b := must[client.Channel](t)(c.Channel(ctx, "b"))
	if b.Name != "b" || b.Events != 2 || b.Oldest.ID != "first" || b.Newest.ID != "last" || b.Newest.Time.IsZero() {
		t.Errorf("%+v", b)
	}
	follow, cancel := context.WithCancel(ctx)
	defer cancel()
	r, _ := http.NewRequestWithContext(follow, http.MethodGet, base+"/b", nil)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	who := collect(t, c.Consumers(ctx, "b"))
	if len(who) != 1 || !slices.Equal(who[0].Channels, []string{"b"}) || who[0].Connected.IsZero() {
		t.Fatalf("%+v", who)
	}
	if one := must[client.Consumer](t)(c.Consumer(ctx, "b", who[0].ID)); one.ID != who[0].ID {
		t.Errorf("%+v", one)
	}
	if err := c.Disconnect(ctx, "b", who[0].ID); err != nil {
		t.Error(err)
	}
	if stream, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(stream), `{"reason":"closed"}`) {
		t.Errorf("the stream was %s, %v", stream, err)
	}
	refused(t, c.Disconnect(ctx, "b", "0"), 404, "no consumer")
	if removed := must[client.Removal](t)(c.Delete(ctx, "b")); !slices.Equal(removed.Channels, []string{"b"}) {
		t.Errorf("%+v", removed)
	}
	for range 1000 { // until who followed it has gone
		if _, err = c.Channel(ctx, "b"); err != nil {
			break
		}
		<-time.After(time.Millisecond)
	}
	refused(t, err, 404, "there is no channel")
	st := must[client.Stats](t)(c.Stats(ctx))
	if st.Publishes != 1201 || st.Published != 1202 || st.Refusals[404] != 2 || st.Disconnects["closed"] != 1 {
		t.Errorf("%+v", st)
	}
	// What the server says of itself, nothing is left out of.
	own, _ := json.Marshal(s.Stats())
	theirs, _ := json.Marshal(must[client.Stats](t)(c.Stats(ctx)))
	members := func(text []byte) map[string]any {
		var m map[string]any
		json.Unmarshal(text, &m)
		return m
	}
	for name := range members(own) {
		if _, ok := members(theirs)[name]; !ok {
			t.Errorf("Stats has no %s", name)
		}
	}
	nodes := must[[]client.Node](t)(c.Nodes(ctx))
	if len(nodes) != 1 || nodes[0].Status != "ok" || nodes[0].Name == "" {
		t.Errorf("%+v", nodes)
	}
	nobody := newClient(t, base, nil)
	if h := must[client.Health](t)(nobody.Health(ctx)); !h.Ready || h.Status != "ok" {
		t.Errorf("%+v", h)
	}
	_, err = nobody.Stats(ctx)
	refused(t, err, 401, "a token is needed")
	s.Stop()
	if h := must[client.Health](t)(nobody.Health(ctx)); h.Ready || h.Status != "draining" {
		t.Errorf("while it drains: %+v", h)
	}
}

// A faulty stands before a server and spoils the first answers.
type faulty struct {
	spoil []func(w http.ResponseWriter, r *http.Request, next http.Handler)
	next  http.Handler
	asked atomic.Int32
}

func (f *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := int(f.asked.Add(1)) - 1
	if n < len(f.spoil) {
		f.spoil[n](w, r, f.next)
		return
	}
	f.next.ServeHTTP(w, r)
}

// lost lets the server do it, and loses the answer.
func lost(_ http.ResponseWriter, r *http.Request, next http.Handler) {
	next.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// away does nothing.
func away(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// busy refuses with what will pass.
func busy(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, `{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"come back later"}`)
}

// gateway answers as a proxy whose server is away.
func gateway(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	http.Error(w, "bad gateway", http.StatusBadGateway)
}

func TestAPublishHappensOnceHoweverOftenItIsTried(t *testing.T) {
	for _, channel := range []string{"news", "news,sport"} {
		for _, tc := range []struct {
			name     string
			attempts int
			spoil    []func(http.ResponseWriter, *http.Request, http.Handler)
			status   int // 0: it succeeds; -1: there is no answer
			asked    int
		}{
			{"all is well", 0, nil, 0, 1},
			{"the answer is lost", 0, []func(http.ResponseWriter, *http.Request, http.Handler){lost}, 0, 2},
			{"two answers are lost", 0, []func(http.ResponseWriter, *http.Request, http.Handler){lost, lost}, 0, 3},
			{"lost, then busy", 0, []func(http.ResponseWriter, *http.Request, http.Handler){lost, busy}, 0, 3},
			{"away, then busy behind a proxy", 0, []func(http.ResponseWriter, *http.Request, http.Handler){away, gateway}, 0, 3},
			{"busy for good", 0, []func(http.ResponseWriter, *http.Request, http.Handler){busy, busy, busy, busy}, 503, 3},
			{"one attempt", 1, []func(http.ResponseWriter, *http.Request, http.Handler){busy}, 503, 1},
			{"one attempt, whose answer is lost", 1, []func(http.ResponseWriter, *http.Request, http.Handler){lost}, -1, 1},
		} {
			t.Run(channel+" "+tc.name, func(t *testing.T) {
				var f *faulty
				s, base := serve(t, nil, func(h http.Handler) http.Handler {
					f = &faulty{spoil: tc.spoil, next: h}
					return f
				})
				c := newClient(t, base, &client.Options{Attempts: tc.attempts, HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}})
				r, err := c.Publish(t.Context(), channel, client.Event{Data: "x"})
				switch {
				case tc.status > 0:
					refused(t, err, tc.status, "later")
				case tc.status < 0:
					if _, ok := errors.AsType[*client.UnreachableError](err); !ok {
						t.Errorf("it was told %v", err)
					}
				case err != nil || len(r.IDs) != 1:
					t.Errorf("%+v, %v", r, err)
				}
				if n := s.Stats().Published; tc.status <= 0 && n != 1 || tc.status > 0 && n != 0 || int(f.asked.Load()) != tc.asked {
					t.Errorf("%d events were published, of %d requests", n, f.asked.Load())
				}
			})
		}
	}
}

func TestWhatWontPassIsNotTriedAgain(t *testing.T) {
	var f *faulty
	_, base := serve(t, &eventsource.Settings{AuthToken: "s3cret"}, func(h http.Handler) http.Handler {
		f = &faulty{next: h}
		return f
	})
	_, err := newClient(t, base, nil).Publish(t.Context(), "news", client.Event{Data: "x"})
	if p := refused(t, err, 401, "a token is needed"); !p.Document || f.asked.Load() != 1 {
		t.Errorf("%+v after %d requests", p, f.asked.Load())
	}
}

func TestAKeyOfOnesOwnMakesARepeatTheSame(t *testing.T) {
	s, base := serve(t, nil, nil)
	c := newClient(t, base, nil)
	first := must[client.Receipt](t)(c.PublishOnce(t.Context(), "k", "news", client.Event{Data: "x"}))
	again := must[client.Receipt](t)(c.PublishOnce(t.Context(), "k", "news", client.Event{Data: "x"}))
	if first.IDs[0] != again.IDs[0] || s.Stats().Published != 1 {
		t.Errorf("%+v, %+v", first, again)
	}
	_, err := c.PublishOnce(t.Context(), "k", "news", client.Event{Data: "y"})
	refused(t, err, 422, "another body")
}

func TestBodiesAndLinesGoAsTheyAre(t *testing.T) {
	_, base := serve(t, nil, nil)
	c := newClient(t, base, nil)
	answer := must[json.RawMessage](t)(c.PublishBody(t.Context(), "a,b/c", client.Body{ContentType: "text/plain", Query: url.Values{"id": {"7"}}, Data: []byte("x")}))
	if got := strings.TrimSpace(string(answer)); got != `{"id":"7","channels":["a","b.c"],"consumers":0}` {
		t.Errorf("answered %s", got)
	}
	_, err := c.PublishBody(t.Context(), "a", client.Body{ContentType: "image/png", Data: []byte("x")})
	refused(t, err, 415, "image/png")
	in, out := io.Pipe()
	n := 0
	for answer, err := range func() func(func(json.RawMessage, error) bool) {
		go io.WriteString(out, `{"id":"0"}`+"\n")
		return c.PublishLines(t.Context(), "a", in)
	}() {
		if n == 3 {
			refused(t, err, 400, "no member")
			if l, ok := errors.AsType[*client.LineError](err); !ok || l.Line != 4 {
				t.Errorf("it is told as %v", err)
			}
			break
		}
		if want := fmt.Sprintf(`{"id":"%d","channels":["a"],"consumers":0}`, n); err != nil || string(answer) != want {
			t.Fatalf("%s, %v", answer, err)
		}
		n++
		go io.WriteString(out, []string{"", `{"id":"1"}`, `{"id":"2"}`, `{"x":"3"}`}[n]+"\n")
	}
	out.Close()
	for _, err := range c.PublishLines(t.Context(), "a b", strings.NewReader("{}\n")) {
		refused(t, err, 404, "a channel name is")
	}
}

func TestTheServerIsFoundBelowABasePathAndBehindAProxy(t *testing.T) {
	_, base := serve(t, &eventsource.Settings{BasePath: "/es"}, nil)
	_, behind := serve(t, nil, func(h http.Handler) http.Handler { return http.StripPrefix("/events", h) })
	for _, url := range []string{base + "/es", base + "/es/", behind + "/events"} {
		c := newClient(t, url, nil)
		var wg sync.WaitGroup
		for range 8 { // at once, before it is known where the API is
			wg.Go(func() {
				if _, err := c.Publish(t.Context(), "news", client.Event{Data: "x"}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		must[client.Receipt](t)(c.Publish(t.Context(), "a,b", client.Event{}, client.Event{NoData: true, ID: "x"}))
		if h := must[client.Health](t)(c.Health(t.Context())); !h.Ready {
			t.Errorf("%s: %+v", url, h)
		}
		if n := len(collect(t, c.Events(t.Context(), "news", &client.Query{Page: 3}))); n < 8 {
			t.Errorf("%s: %d events", url, n)
		}
		if n := len(collect(t, c.Events(t.Context(), "a", nil))); n < 2 {
			t.Errorf("%s: %d events of a batch", url, n)
		}
	}
}

func TestWhatIsNoServerIsToldOf(t *testing.T) {
	for _, base := range []string{"", "localhost:8080", "ftp://a", "http://", "http://user:geheim@\x00"} {
		if _, err := client.New(base, nil); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", base, err)
		}
	}
	if _, err := client.New("http://a", &client.Options{Token: "a\nb"}); err == nil {
		t.Error("a token of two lines")
	}
	_, err := newClient(t, "http://user:geheim@127.0.0.1:1", &client.Options{Attempts: 1}).Stats(t.Context())
	if u, ok := errors.AsType[*client.UnreachableError](err); !ok || u.URL != "http://127.0.0.1:1" || strings.Contains(err.Error(), "geheim") {
		t.Errorf("%v", err)
	}
	token := ""
	odd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/nodes":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/elsewhere":
			token = r.Header.Get("Auth-Token")
		case "/api/v1/stats":
			w.Write([]byte(`{"started":`))
		case "/api/v1/channels":
			io.WriteString(w, `{"channels":[],"more":true}`+strings.Repeat(" ", 65<<20))
		case "/api/v1/channels/a/events":
			io.WriteString(w, `{"events":[],"more":true}`)
		default:
			http.Error(w, "no", http.StatusTeapot)
		}
	}))
	t.Cleanup(odd.Close)
	c := newClient(t, odd.URL, &client.Options{Token: "s3cret"})
	_, err = c.Nodes(t.Context())
	refused(t, err, 302, "give the URL that it redirects to, /elsewhere")
	if token != "" {
		t.Error("the token went to where the server redirects to")
	}
	_, err = c.Stats(t.Context())
	refused(t, err, 200, "is an EventSource server at this URL?")
	_, err = c.Unread(t.Context(), "users.a")
	if p := refused(t, err, 418, "is an EventSource server at this URL?"); p.Document {
		t.Error("it takes that for a document")
	}
	_, err = c.Health(t.Context())
	refused(t, err, 418, "is an EventSource server at this URL?")
	for _, err := range c.Channels(t.Context(), "") {
		if err == nil || !strings.Contains(err.Error(), "longer than") {
			t.Errorf("an answer without end: %v", err)
		}
	}
	for _, err := range c.Events(t.Context(), "a", nil) {
		if err == nil || !strings.Contains(err.Error(), "where the next page is") {
			t.Errorf("more without a link: %v", err)
		}
	}
}

// net/http may take a connection that the server is about to close, as at the end of a
// stream: a DELETE, or a mark, that went over it failed.
func TestWhatMayBeRepeatedIsWhereAConnectionWasClosed(t *testing.T) {
	_, base := serve(t, nil, func(h http.Handler) http.Handler {
		f := &faulty{next: h}
		whole := func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) }
		f.spoil = append(f.spoil, whole, away, whole, away)
		return f
	})
	sender := &http.Client{Transport: &http.Transport{}}
	defer sender.CloseIdleConnections()
	c := newClient(t, base, &client.Options{HTTPClient: sender})
	must[client.Receipt](t)(c.Publish(t.Context(), "users.b", client.Event{ID: "x"}))
	must[int](t)(c.Mark(t.Context(), "users.b", "x"))
	must[client.Removal](t)(c.Delete(t.Context(), "users.b"))
}

func TestConsumersYieldsAllOfThem(t *testing.T) {
	s, base := serve(t, nil, nil)
	for range 1100 {
		s.Subscribe(t.Context(), "news", nil)
	}
	seen := map[string]bool{}
	for _, one := range collect(t, newClient(t, base, nil).Consumers(t.Context(), "news")) {
		seen[one.ID] = true
	}
	if len(seen) != 1100 {
		t.Errorf("there are %d consumers", len(seen))
	}
}
