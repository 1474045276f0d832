package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource/internal/check"
)

// httpServer returns the URL of a server that is no EventSource.
func httpServer(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestPublishSendsWhatItIsGiven(t *testing.T) {
	srv := serving(t, nil, "-c", quick(t, ""), "--port", "0")
	env := []string{"EVENTSOURCE_URL=" + srv.url}
	channels := 0
	for _, test := range []struct {
		name  string
		stdin string
		args  []string
		out   string // a pattern with … for the ids that the server gives
		got   []string
	}{
		{"data", "", []string{"CH", "a\nb"}, "…\n", []string{`"" "a\nb"`}},
		{"nothing at all", "", []string{"CH", ""}, "…\n", []string{`"" ""`}},
		{"standard input", "a\n", []string{"CH"}, "…\n", []string{`"" "a\n"`}},
		{"a dash", "-", []string{"CH", "-"}, "…\n", []string{`"" "-"`}},
		{"fields", "", []string{"CH", "x", "--event", "e", "--id", "7", "--retry", "1s", "--ttl", "1m"}, "7\n", []string{`"e" "x"`}},
		{"several channels", "", []string{"CH,CH.b", "x", "--id", "8"}, "8\n", []string{`"" "x"`}},
		{"the answer", "", []string{"CH", "x", "--id", "9", "--json"}, `{"id":"9","channels":["CH"],"consumers":0}` + "\n", []string{`"" "x"`}},
		{"nothing told", "", []string{"CH", "x", "-q"}, "", []string{`"" "x"`}},
		{"raw", "", []string{"CH", ` {"a": 1}`, "--raw", "-e", "e"}, "…\n", []string{`"e" " {\"a\": 1}"`}},
		{"a batch", "", []string{"CH", `[{"data": "a", "id": 1}, {"data": {"b": 1}, "id": 2}]`, "--content-type", "application/json"}, "1\n2\n", []string{`"" "a"`, `"" "{\"b\":1}"`}},
		{"lines", "a\r\nb\n\n<é>", []string{"CH", "--lines", "-e", "e", "--ttl", "1m"}, "…\n…\n…\n…\n", []string{`"e" "a"`, `"e" "b"`, `"e" ""`, `"e" "<é>"`}},
		{"lines of events", `{"data": "a", "id": "x"}` + "\n" + `{"data": "b", "id": "y"}`, []string{"CH", "--lines", "--content-type", "application/x-ndjson", "--json"},
			`{"id":"x","channels":["CH"],"consumers":0}` + "\n" + `{"id":"y","channels":["CH"],"consumers":0}` + "\n", []string{`"" "a"`, `"" "b"`}},
		{"no lines", "", []string{"CH", "--lines"}, "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			channels++
			name := fmt.Sprintf("ch%d", channels)
			args := []string{"publish"}
			for _, a := range test.args {
				args = append(args, strings.ReplaceAll(a, "CH", name))
			}
			r := run(t, env, test.stdin, args...)
			if r.status != 0 || r.stderr != "" {
				t.Fatalf("%+v", r)
			}
			got, want := strings.Split(r.stdout, "\n"), strings.Split(strings.ReplaceAll(test.out, "CH", name), "\n")
			if len(got) != len(want) {
				t.Fatalf("printed %q", r.stdout)
			}
			for i := range want {
				if want[i] == "…" && len(got[i]) == 36 {
					continue
				}
				if got[i] != want[i] {
					t.Errorf("printed %q, want %q", got[i], want[i])
				}
			}
			if len(test.got) == 0 {
				return
			}
			r = run(t, env, "", "subscribe", name, "--json", "--history", "10", "-n", fmt.Sprint(len(test.got)))
			var came []string
			for line := range strings.Lines(r.stdout) {
				var e envelope
				if err := json.Unmarshal([]byte(line), &e); err != nil || e.Channel != name || e.ID == "" {
					t.Fatal(line, err)
				}
				if _, err := time.Parse(time.RFC3339Nano, e.Time); err != nil {
					t.Error(err)
				}
				came = append(came, fmt.Sprintf("%q %q", e.Event, e.Data))
			}
			if !slices.Equal(came, test.got) {
				t.Errorf("came %v, want %v", came, test.got)
			}
		})
	}
}

func TestPublishTellsWhyItWasRefused(t *testing.T) {
	srv := serving(t, []string{"EVENTSOURCE_AUTH_TOKEN=geheim"}, "-c", quick(t, "limits: {body: 100}\n"), "--port", "0")
	env := []string{"EVENTSOURCE_URL=" + srv.url}
	known := append(env, "EVENTSOURCE_AUTH_TOKEN=geheim")
	for _, test := range []struct {
		env   []string
		stdin string
		args  []string
		out   int // lines
		want  string
	}{
		{env, "", []string{"publish", "a", "x"}, 0, "to publish to a a token is needed"},
		{env, "", []string{"publish", "a", "x", "--token", "wrong"}, 0, "the token is not known"},
		{known, "", []string{"publish", "a b", "x"}, 0, "a channel name is 1 to 255 bytes"},
		{known, "", []string{"publish", "a?b#c", "x"}, 0, "a channel name is 1 to 255 bytes"},
		{known, "", []string{"publish", "a", "x", "--event", "eventsource.gap"}, 0, "kept for the server's own"},
		{known, "", []string{"publish", "a", "{", "--raw"}, 0, "JSON"},
		{known, strings.Repeat("x", 101), []string{"publish", "a"}, 0, "longer than 100 bytes"},
		{known, "a\nb\xff\nc\n", []string{"publish", "a", "--lines"}, 1, "line 2 is not valid UTF-8: the lines before it were published"},
		{known, "a\n" + strings.Repeat("x", 200) + "\nc\n", []string{"publish", "a", "--lines"}, 1, "line 2: "},
		{known, "{\"data\": 1}\n{\"dta\": 2}\n", []string{"publish", "a", "--lines", "--content-type", "application/x-ndjson"}, 1, "line 2: "},
		{env, "a\n", []string{"publish", "a", "--lines"}, 0, "a token is needed"},
		{env, "", []string{"channels"}, 0, "the server wants a token that it knows: give --token or EVENTSOURCE_AUTH_TOKEN"},
		{env, "", []string{"subscribe", "a", "--token", "wrong"}, 0, "the token is not known"},
		{env, "", []string{"subscribe", "users.5"}, 0, "a token is needed"},
		{known, "", []string{"subscribe", "all"}, 0, `"all" reaches every consumer`},
		{known, "", []string{"subscribe", "a", "b c"}, 0, "a channel name is 1 to 255 bytes"},
	} {
		r := run(t, test.env, test.stdin, test.args...)
		if r.status != statusFailed || !strings.HasPrefix(r.stderr, "eventsource: ") || !strings.Contains(r.stderr, test.want) || strings.Count(r.stdout, "\n") != test.out {
			t.Errorf("%q: %+v, want %q", test.args, r, test.want)
		}
	}
	if strings.Contains(srv.stderr.String(), "geheim") {
		t.Error("the token is in the log")
	}
}

func TestARepeatWithTheSameKeyPublishesNothing(t *testing.T) {
	srv := serving(t, nil, "-c", quick(t, ""), "--port", "0")
	env := []string{"EVENTSOURCE_URL=" + srv.url}
	first := run(t, env, "", "publish", "a", "x", "--idempotency-key", "k")
	run(t, env, "", "publish", "a", "x", "--idempotency-key", "k").wants(t, 0, first.stdout, "")
}

func TestLinesArePublishedAsTheyCome(t *testing.T) {
	srv := serving(t, nil, "-c", quick(t, ""), "--port", "0")
	env := []string{"EVENTSOURCE_URL=" + srv.url}
	sub := start(t, env, "subscribe", "a", "-n", "2")
	followed(t, srv.url+"/a", 1)
	in, out := io.Pipe()
	var answers check.Log
	done := make(chan int, 1)
	go func() {
		m := &Main{Stdin: in, Stdout: &answers, Stderr: &answers, Env: env}
		done <- m.Run(t.Context(), []string{"publish", "a", "--lines"})
	}()
	for i, line := range []string{"one", "two"} {
		io.WriteString(out, line+"\n")
		if got := sub.line(t); got != line {
			t.Fatalf("got %q", got)
		}
		until(t, "the line is answered while the input goes on", func() bool { return strings.Count(answers.String(), "\n") == i+1 })
	}
	out.Close()
	if status := <-done; status != 0 {
		t.Errorf("ended with %d: %s", status, &answers)
	}
}

func TestSubscribePrintsForPeopleAndFilters(t *testing.T) {
	srv := serving(t, nil, "-c", quick(t, "base_path: /es\n"), "--port", "0")
	env := []string{"EVENTSOURCE_URL=" + srv.url + "/es/"}
	first := strings.TrimSpace(run(t, env, "", "publish", "pets.cats", "meow", "--event", "cat").stdout)
	run(t, env, "", "publish", "pets.dogs", "wuff\nwuff", "--id", "d1")
	r := run(t, env, "", "subscribe", "pets.*", "--history", "5", "-n", "2", "-v")
	lines := strings.Split(r.stdout, "\n")
	if len(lines) != 6 || !strings.HasSuffix(lines[0], " pets.cats cat "+first) || lines[1] != "  meow" ||
		!strings.HasSuffix(lines[2], " pets.dogs message d1") || lines[3] != "  wuff" || lines[4] != "  wuff" {
		t.Errorf("%+v", r)
	}
	run(t, env, "", "subscribe", "pets.cats", "pets.dogs", "--history", "5", "-n", "1", "-e", "message").wants(t, 0, "wuff\nwuff\n", "")
	run(t, env, "", "subscribe", "pets.*", "--last-event-id", first, "-n", "1").wants(t, 0, "wuff\nwuff\n", "")
	r = run(t, env, "", "subscribe", "pets.*", "--last-event-id", "unknown", "-n", "1")
	if r.stdout != "meow\n" || !strings.HasPrefix(r.stderr, "Events are missing: the server does not keep all that came after unknown; the oldest that it keeps is ") {
		t.Errorf("%+v", r)
	}
	run(t, env, "", "channels").wants(t, 0, "pets.cats\npets.dogs\n", "")
	want := `{"channels":["pets.cats","pets.dogs"],"count":2,"consumers":0,"truncated":false}` + "\n"
	until(t, "the last subscriber is seen to have gone", func() bool {
		return run(t, env, "", "channels", "--json").stdout == want
	})
}

// What HEAD on "all" has room for ended the list before.
func TestChannelsListsAllOrAsManyAsAreWanted(t *testing.T) {
	srv := serving(t, nil, "-c", quick(t, ""), "--port", "0")
	env := []string{"EVENTSOURCE_URL=" + srv.url}
	long := strings.Repeat("x", 240)
	for i := range 20 {
		run(t, env, "", "publish", fmt.Sprintf("%s%02d", long, i), "-q", "x").wants(t, 0, "", "")
	}
	run(t, env, "", "publish", "y", "-q", "x").wants(t, 0, "", "")
	if r := run(t, env, "", "channels"); r.status != 0 || strings.Count(r.stdout, "\n") != 21 || r.stderr != "" {
		t.Errorf("%d: %s", strings.Count(r.stdout, "\n"), r.stderr)
	}
	run(t, env, "", "channels", "--prefix", "y").wants(t, 0, "y\n", "")
	run(t, env, "", "channels", "--prefix", "z").wants(t, 0, "", "")
	if r := run(t, env, "", "channels", "--limit", "3"); strings.Count(r.stdout, "\n") != 3 || r.stderr != "These are the first 3 channels: there are others.\n" {
		t.Errorf("%+v", r)
	}
	if r := run(t, env, "", "channels", "--limit", "21"); strings.Count(r.stdout, "\n") != 21 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	if r := run(t, env, "", "channels", "--json", "--limit", "20"); !strings.Contains(r.stdout, `"count":20,"consumers":0,"truncated":true`) {
		t.Errorf("%.100s", r.stdout)
	}
	if r := run(t, env, "", "channels", "--limit", "0"); r.status != statusUsage || !strings.Contains(r.stderr, "--limit must be at least 1") {
		t.Errorf("%+v", r)
	}
}

// A stream that is cut off within an event, with a clean end, as HTTP/1.0 and
// proxies can make it: go-sse's client took what was there for the event, and
// its id for the last one, so that the event was lost.
func TestSubscribeLosesNoEventThatWasCutOff(t *testing.T) {
	var mu sync.Mutex // over what follows
	var lastIDs []string
	url := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		lastIDs = append(lastIDs, r.Header.Get("Last-Event-ID"))
		n := len(lastIDs)
		mu.Unlock()
		head := "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\nretry: 10\n\n"
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		event := func(id, data string) string {
			return fmt.Sprintf("id: %s\ndata: {\"channel\":\"a\",\"id\":%q,\"event\":\"\",\"data\":%q,\"time\":\"\"}\n\n", id, id, data)
		}
		switch n {
		case 1:
			io.WriteString(conn, head+event("1", "one")+"id: 2\ndata: {\"cha")
		case 2:
			io.WriteString(conn, head+"id: 2\n")
		case 3:
			io.WriteString(conn, head+strings.TrimSuffix(event("2", "two"), "\n"))
		case 4:
			io.WriteString(conn, "HTTP/1.0 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		default:
			io.WriteString(conn, head+event("2", "two"))
		}
	})
	r := run(t, []string{"EVENTSOURCE_URL=" + url}, "", "subscribe", "a", "-n", "2")
	if r.status != 0 || r.stdout != "one\ntwo\n" {
		t.Errorf("%+v", r)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(lastIDs, []string{"", "1", "1", "1", "1"}) {
		t.Errorf("it came back with %q", lastIDs)
	}
	if !strings.Contains(r.stderr, "The stream ended; trying again in ") || !strings.Contains(r.stderr, "The server answered 502 Bad Gateway; trying again in ") {
		t.Errorf("it said: %s", r.stderr)
	}
}

func TestWhatIsNoEventSourceServerIsToldOf(t *testing.T) {
	url := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "https://elsewhere.example/moved", http.StatusMovedPermanently)
		}
	})
	env := []string{"EVENTSOURCE_URL=" + url}
	run(t, env, "", "publish", "a", "x").wants(t, 1, "", "eventsource: the server answered 200 OK: is an EventSource server at this URL?\n")
	run(t, env, "", "publish", "moved", "x").wants(t, 1, "",
		"eventsource: the server answered 301 Moved Permanently: give the URL that it redirects to, https://elsewhere.example/moved\n")
	run(t, env, "", "channels").wants(t, 1, "", "eventsource: the server answered 200 OK: is an EventSource server at this URL?\n")
	if r := run(t, env, "", "subscribe", "a"); r.status != 1 || !strings.Contains(r.stderr, "text/event-stream") {
		t.Errorf("%+v", r)
	}
	r := run(t, []string{"EVENTSOURCE_URL=http://user:geheim@127.0.0.1:1/"}, "", "publish", "a", "x")
	if r.status != 1 || !strings.HasPrefix(r.stderr, "eventsource: can't reach http://127.0.0.1:1: ") || strings.Contains(r.stderr, "geheim") {
		t.Errorf("%+v", r)
	}
}

// subscribe went on for ever with a certificate that it did not trust, and nothing
// said what to do about it.
func TestAClientSaysWhatToDoAboutTLS(t *testing.T) {
	cert, key := certificateFiles(t, t.TempDir(), "localhost")
	srv := serving(t, nil, "-c", quick(t, fmt.Sprintf("tls: {cert: %s, key: %s}\n", cert, key)), "--port", "0")
	_, port, _ := strings.Cut(srv.url, "localhost:")
	for _, command := range [][]string{{"publish", "a", "x"}, {"subscribe", "a"}, {"channels"}} {
		r := run(t, []string{"EVENTSOURCE_URL=https://localhost:" + port}, "", command...)
		if r.status != 1 || !strings.HasPrefix(r.stderr, "eventsource: can't trust https://localhost:"+port+": ") ||
			!strings.HasSuffix(r.stderr, ": if the certificate is your own, name its file in SSL_CERT_FILE\n") || strings.Contains(r.stderr, "trying again") {
			t.Errorf("%s: %+v", command[0], r)
		}
	}
	for _, command := range [][]string{{"publish", "a", "x"}, {"subscribe", "a"}} {
		run(t, []string{"EVENTSOURCE_URL=http://localhost:" + port}, "", command...).
			wants(t, 1, "", "eventsource: the server speaks TLS: give a URL that begins with https://\n")
	}
}

// A refusal that will pass is a stream with a comment, of which subscribe said only
// that it had ended.
func TestSubscribeSaysWhyItHasToWait(t *testing.T) {
	asked := 0
	url := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked > 1 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "retry: 1\n: no more than 3 may\n\n")
	})
	r := run(t, []string{"EVENTSOURCE_URL=" + url}, "", "subscribe", "a")
	if r.status != 1 || !strings.HasPrefix(r.stderr, `The server answered "no more than 3 may"; trying again in `) {
		t.Errorf("%+v", r)
	}
}

func TestChannelsWantsAnAdministrator(t *testing.T) {
	srv := serving(t, nil, "-c", quick(t, "keys: [{token: a, publish: [a]}, {token: b, admin: true}]\n"), "--port", "0")
	env := []string{"EVENTSOURCE_URL=" + srv.url}
	run(t, env, "", "channels").wants(t, 1, "", "eventsource: the server wants a token that it knows: give --token or EVENTSOURCE_AUTH_TOKEN\n")
	run(t, env, "", "channels", "--token", "a").wants(t, 1, "", "eventsource: the token is not an administrator's: give one that is\n")
	run(t, env, "", "channels", "--token", "b").wants(t, 0, "", "")
}
