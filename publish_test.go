package eventsource_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

const (
	asJSON  = "application/json"
	asText  = "text/plain"
	asForm  = "application/x-www-form-urlencoded"
	asCloud = "application/cloudevents+json"
	asLines = "application/x-ndjson"
)

// publishedNothing fails the test when more events than before were published.
func (n *node) publishedNothing(t testing.TB, what string, mark uint64) {
	t.Helper()
	if st := n.Stats(); st.Mark != mark {
		t.Errorf("%s: it was refused, and yet the mark moved from %d to %d", what, mark, st.Mark)
	}
}

func TestEveryContentTypePublishes(t *testing.T) {
	n := newNode(t, nil)
	s := n.follow(t, "/news")
	for _, tc := range []struct {
		contentType, query, body string
		want                     block
	}{
		{asJSON, "", `{"data":"hello"}`, block{data: "hello"}},
		{asJSON + "; charset=utf-8", "", `{"id":"a","event":"e","data":"d","retry":7}`, block{id: "a", event: "e", data: "d", retry: "7"}},
		{"Application/JSON", "", ` {"id":0,"data":{ "b":1.0, "a":[1e400] }} `, block{id: "0", data: `{"b":1.0,"a":[1e400]}`}},
		{asJSON, "", `{"id":9007199254740993,"data":null}`, block{id: "9007199254740993", data: "null"}},
		{asJSON, "?raw=1", `{"id": 5}`, block{data: `{"id": 5}`}},
		{asJSON, "?raw=1&id=q&event=t", ` [1] `, block{id: "q", event: "t", data: ` [1] `}},
		{asForm, "", "data=a+b%0Ac&event=e&id=f", block{id: "f", event: "e", data: "a b\nc"}},
		{asText, "", "line 1\r\nline 2", block{data: "line 1\nline 2"}},
		{"text/markdown", "?event=md&id=m&retry=0", "# x", block{id: "m", event: "md", data: "# x", retry: "0"}},
		{asText, "", "", block{}},
		{asText, "", " leading", block{data: " leading"}},
		{asCloud, "", `{"specversion":"1.0","id":"c","source":"/s","type":"t","data":{"a": 1}}`, block{id: "c", event: "t", data: `{"a":1}`}},
		{asCloud, "", `{"specversion":"1.0","type":"t","data_base64":"aGk="}`, block{event: "t", data: "hi"}},
	} {
		r := n.post(t, "/news"+tc.query, tc.contentType, tc.body).receipt(t)
		if tc.want.id != "" && r.ID != tc.want.id || r.ID == "" {
			t.Errorf("%s %s: the id is %q", tc.contentType, tc.body, r.ID)
		}
		got := s.event()
		if got.id != r.ID || got.event != tc.want.event || got.data != tc.want.data || got.retry != tc.want.retry {
			t.Errorf("%s %s arrived as %+v", tc.contentType, tc.body, got)
		}
	}
}

func TestTheAnswerOfAPublishIsExact(t *testing.T) {
	n := newNode(t, nil)
	n.follow(t, "/updates")
	n.follow(t, "/*")
	for _, tc := range []struct{ path, body, want string }{
		{"/updates", `{"id":"1","data":"x"}`, `{"id":"1","channels":["updates"],"consumers":2}`},
		{"/updates", `{"id":"<é>","data":"x"}`, `{"id":"\u003cé\u003e","channels":["updates"],"consumers":2}`},
		{"/updates,other", `{"id":"2","data":"x"}`, `{"id":"2","channels":["updates","other"],"consumers":3}`},
		{"/all", `{"id":"3","data":"x"}`, `{"id":"3","channels":["all"],"consumers":2}`},
		{"/updates", `[{"id":"4","data":"x"},{"id":"5","data":"x"}]`,
			`[{"id":"4","channels":["updates"],"consumers":2},{"id":"5","channels":["updates"],"consumers":2}]`},
		{"/updates", `[{"id":"6","data":"x"}]`, `[{"id":"6","channels":["updates"],"consumers":2}]`},
	} {
		a := n.post(t, tc.path, asJSON, tc.body)
		if a.status != 201 || a.body != tc.want+"\n" || a.header.Get("Content-Type") != asJSON {
			t.Errorf("%s to %s: %d %s %v", tc.body, tc.path, a.status, a.body, a.header)
		}
	}
}

func TestABatchIsAllOrNothing(t *testing.T) {
	n := newNode(t, nil)
	s := n.follow(t, "/news")
	mark := n.Stats().Mark
	for _, body := range []string{`[]`, `[{"data":"1"},{"data":"2","dta":"3"}]`, `[{"data":"1"},2]`, `[{"data":"1"},{}]`, `[{"data":"1"}`, `[{"data":"1"},[]]`} {
		n.post(t, "/news", asJSON, body).refused(t, 400)
		n.publishedNothing(t, body, mark)
	}
	n.post(t, "/news", asJSON, `[{"data":"1"},{"data":"2"},{"data":"3"}]`)
	s.expect("1", "2", "3")
}

func TestWhatCantBePublishedIsRefusedAndPublishesNothing(t *testing.T) {
	n := newNode(t, nil)
	long := strings.Repeat("x", 256)
	mark := n.Stats().Mark
	for _, tc := range []struct {
		status            int
		contentType, path string
		body, words       string
	}{
		{415, "", "/news", "x", "no Content-Type"},
		{415, "image/png", "/news", "x", "application/json"},
		{415, "multipart/form-data; boundary=x", "/news", "x", "text/*"},
		{415, ";", "/news", "x", "can't be read"},
		{415, "text/plain; charset=iso-8859-1", "/news", "x", "UTF-8"},
		{400, asJSON, "/news", ``, "empty"},
		{400, asJSON, "/news", `{`, "at byte"},
		{400, asJSON, "/news", `{}`, "at least one"},
		{400, asJSON, "/news", `5`, "a number"},
		{400, asJSON, "/news", `{"Data":"x"}`, `did you mean \"data\"`},
		{400, asJSON, "/news", `{"data":"x","nonsense":1}`, `nonsense`},
		{400, asJSON, "/news", `{"data":"x","data":"y"}`, "twice"},
		{400, asJSON, "/news", `{"id":"","data":"x"}`, "id: it is empty"},
		{400, asJSON, "/news", `{"id":" a","data":"x"}`, "space at an end"},
		{400, asJSON, "/news", `{"id":"a\u0000","data":"x"}`, "control characters"},
		{400, asJSON, "/news", `{"id":"a\u007f","data":"x"}`, "control characters"},
		{400, asJSON, "/news", `{"id":"` + long + `","data":"x"}`, "at most 255"},
		{400, asJSON, "/news", `{"id":{},"data":"x"}`, "an object"},
		{400, asJSON, "/news", `{"event":"a\n","data":"x"}`, "control characters"},
		{400, asJSON, "/news", `{"event":"eventsource.end","data":"x"}`, "eventsource."},
		{400, asJSON, "/news", "{\"data\":\"\xff\"}", "UTF-8"},
		{400, asJSON, "/news", `{"data":"\ud800"}`, "surrogate"},
		{400, asJSON, "/news", `{"retry":-1}`, "retry"},
		{400, asJSON, "/news", `{"data":"x","ttl":"1"}`, "ttl"},
		{400, asJSON, "/news?raw=2", `{}`, "raw=1"},
		{400, asJSON, "/news?raw=1", `{`, "at byte"},
		{400, asText, "/news?id=", "x", "id: it is empty"},
		{400, asText, "/news?id=%0A", "x", "control characters"},
		{400, asText, "/news", "\xff", "UTF-8"},
		{400, asText, "/news?retry=soon", "x", "retry"},
		{400, asForm, "/news", "", "at least one"},
		{400, asForm, "/news", "data=x&id=", "id: it is empty"},
		{400, asForm, "/news", "data=x&dat=y", "did you mean"},
		{400, asForm, "/news", "data=%zz", "escape"},
		{400, asCloud, "/news", `{"type":"t","data":"x"}`, "specversion"},
		{400, asCloud, "/news", `{"specversion":"0.3","type":"t","data":"x"}`, "1.0"},
		{400, asCloud, "/news", `{"specversion":"1.0","type":"t","data":"x","data_base64":"eA=="}`, "one of them"},
		{400, asCloud, "/news", `{"specversion":"1.0","type":"t","data_base64":"/w=="}`, "UTF-8"},
		{400, asLines, "/news?answers=none", `{"data":"x"}`, "answers=errors"},
	} {
		var a answer
		if tc.contentType == "" {
			a = n.do(t, "POST", tc.path, strings.NewReader(tc.body))
		} else {
			a = n.post(t, tc.path, tc.contentType, tc.body)
		}
		a.refused(t, tc.status, tc.words)
		n.publishedNothing(t, tc.contentType+" "+tc.body, mark)
	}
	if n.ChannelExists("news") {
		t.Error("the channel exists")
	}
}

func TestOtherVerbsAreRefusedWithThoseThatAreRight(t *testing.T) {
	n := newNode(t, nil)
	for path, allow := range map[string]string{
		"/news": "GET, POST, DELETE, HEAD, OPTIONS", "/all": "GET, POST, DELETE, HEAD, OPTIONS", "/health": "GET, HEAD", "/": "GET, HEAD",
	} {
		for _, verb := range []string{"PUT", "PATCH", "TRACE", "PROPFIND"} {
			a := n.do(t, verb, path, nil)
			a.refused(t, 405, allow)
			if got := a.header.Get("Allow"); got != allow {
				t.Errorf("%s %s: Allow is %q", verb, path, got)
			}
		}
	}
	n.post(t, "/health", asText, "x").refused(t, 405)
	n.do(t, "DELETE", "/", nil).refused(t, 405)
	if a := n.do(t, "OPTIONS", "/news", nil); a.status != 204 || a.header.Get("Allow") == "" {
		t.Errorf("OPTIONS: %d %v", a.status, a.header)
	}
}

func TestAListIsOneEventWithOneID(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		both, one := n.follow(t, "/news,sport"), n.follow(t, "/sport")
		before := n.Stats().Mark
		r := n.post(t, "/news,sport", asText, "x").receipt(t)
		if r.Consumers != 3 { // counted in each log
			t.Errorf("%d consumers", r.Consumers)
		}
		if got := n.Stats().Mark - before; got != 1 {
			t.Errorf("it took %d places", got)
		}
		n.post(t, "/news,sport", asText, "y")
		for _, s := range []*stream{both, one} {
			if b := s.event(); b.id != r.ID || b.data != "x" {
				t.Errorf("got %+v", b)
			}
			s.expect("y")
		}
	})
}

func TestARepeatWithItsKeyPublishesNothing(t *testing.T) {
	n := newNode(t, nil)
	post := func(path, contentType, body, key string) answer {
		return n.post(t, path, contentType, body, "Idempotency-Key", key)
	}
	first := post("/news", asText, "x", "k")
	id := first.receipt(t).ID
	n.follow(t, "/news")
	mark := n.Stats().Mark
	if r := post("/news", asText, "x", "k").receipt(t); r.ID != id || r.Consumers != 1 || r.Channels[0] != "news" {
		t.Errorf("the repeat: %+v", r)
	}
	post("/news", asText, "y", "k").refused(t, 422, "another body")
	post("/news", "text/html", "x", "k").refused(t, 422)
	post("/news?event=e", asText, "x", "k").refused(t, 422)
	n.publishedNothing(t, "the repeats", mark)
	for _, path := range []string{"/sport", "/news,sport", "/all"} {
		if got := post(path, asText, "x", "k").receipt(t).ID; got == id {
			t.Errorf("the key was taken for that of %s", path)
		}
	}
	// The same channels in another order are the same channels.
	if a, b := post("/a,b", asText, "x", "k").receipt(t), post("/b,a", asText, "x", "k").receipt(t); a.ID != b.ID {
		t.Error("the order of the channels made another key")
	}
	batch := post("/news", asJSON, `[{"data":"1"},{"data":"2"}]`, "batch")
	if again := post("/news", asJSON, `[{"data":"1"},{"data":"2"}]`, "batch"); again.body != batch.body {
		t.Errorf("the batch: %s, then %s", batch.body, again.body)
	}
}

func TestARefusalIsNotRememberedWithItsKey(t *testing.T) {
	n := newNode(t, nil)
	n.post(t, "/news", asJSON, "{", "Idempotency-Key", "k").refused(t, 400)
	n.post(t, "/news", asJSON, `{"data":"x"}`, "Idempotency-Key", "k").receipt(t)
	mark := n.Stats().Mark
	for _, keys := range [][]string{{""}, {strings.Repeat("k", 256)}, {"a", "b"}} {
		var header []string
		for _, k := range keys {
			header = append(header, "Idempotency-Key", k)
		}
		n.post(t, "/news", asText, "x", header...).refused(t, 400, "Idempotency-Key")
	}
	n.publishedNothing(t, "bad keys", mark)
}

func TestTwoWithOneKeyAtOnceAreOne(t *testing.T) {
	n := newNode(t, nil)
	var wg sync.WaitGroup
	ids := make([]string, 16)
	for i := range ids {
		wg.Go(func() { ids[i] = n.post(t, "/news", asText, "x", "Idempotency-Key", "k").receipt(t).ID })
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("the answers differ: %v", ids)
		}
	}
	if got := n.Stats().Published; got != 1 {
		t.Errorf("%d events were published", got)
	}
}

func TestABodyBeyondItsLimitIsRefused(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 100}})
	n.post(t, "/news", asText, strings.Repeat("x", 100)).receipt(t)
	mark := n.Stats().Mark
	n.post(t, "/news", asText, strings.Repeat("x", 101)).refused(t, 413, "100 bytes")
	n.do(t, "POST", "/news", io.MultiReader(strings.NewReader(strings.Repeat("x", 101))), "Content-Type", asText).refused(t, 413, "100 bytes")
	n.do(t, "POST", "/news", io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20))), "Content-Type", asText).refused(t, 413, "100 bytes")
	n.publishedNothing(t, "a long body", mark)
	n.do(t, "POST", "/news", io.MultiReader(strings.NewReader(strings.Repeat("x", 100))), "Content-Type", asText).receipt(t)
}

// raw sends text on a connection of its own.
func (n *node) raw(t testing.TB, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// hungUp fails the test unless the server closes the connection.
func hungUp(t testing.TB, what string, c io.Reader) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Errorf("%s: the server keeps the connection: %v", what, err)
	}
}

// readAnswer reads one response.
func readAnswer(t testing.TB, r *bufio.Reader, method string) answer {
	t.Helper()
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{resp.StatusCode, resp.Header, string(b)}
	checkAnswer(t, method, "raw", a)
	return a
}

// A body that never comes, or stops, must hold neither a goroutine nor a
// connection for longer than ten timeouts, whatever the answer is.
func TestASlowBodyIsCutOff(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Timeout: 20 * time.Millisecond, AuthToken: "secret", Limits: eventsource.Limits{Body: 1000}})
	for _, tc := range []struct {
		head   string
		status int
	}{
		{"POST /news HTTP/1.1\r\nHost: x\r\nAuth-Token: secret\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nx", 408},
		{"POST /news HTTP/1.1\r\nHost: x\r\nAuth-Token: secret\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx", 408},
		{"POST /news HTTP/1.1\r\nHost: x\r\nAuth-Token: secret\r\nContent-Type: text/plain\r\nContent-Length: 1001\r\n\r\nx", 413},
		{"POST /news HTTP/1.1\r\nHost: x\r\nAuth-Token: secret\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + strings.Repeat("x", 1020), 413},
		{"POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nx", 401},
		{"DELETE /news HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", 401},
		{"PUT /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", 405},
	} {
		c := n.raw(t, tc.head)
		r := bufio.NewReader(c)
		if a := readAnswer(t, r, "POST"); a.status != tc.status {
			t.Errorf("%.60q: %d %s", tc.head, a.status, a.body)
		}
		hungUp(t, tc.head[:20], r)
	}
	if n.Stats().Mark != 0 {
		t.Error("half a body was published")
	}
}

func TestABodyThatIsAbortedPublishesNothing(t *testing.T) {
	n := newNode(t, nil)
	c := n.raw(t, "POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nhalf")
	c.(*net.TCPConn).CloseWrite()
	r := bufio.NewReader(c)
	readAnswer(t, r, "POST").refused(t, 400, "ended before its length")
	hungUp(t, "an aborted body", r)
	n.publishedNothing(t, "an aborted body", 0)
}

func TestHeadsAreBoundedInTimeAndLength(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Timeout: 50 * time.Millisecond, Limits: eventsource.Limits{Head: 4096}})
	hungUp(t, "half a head", n.raw(t, "GET /news HTTP/1.1\r\nHost: x\r\nX-Slow: "))
	hungUp(t, "nothing at all", n.raw(t, ""))
	c := n.raw(t, "GET /news HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("x", 16<<10)+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 431 {
		t.Errorf("a long head: %v %v", resp, err)
	}
}

func TestWhileItDrainsPublishesAreRefused(t *testing.T) {
	s, err := eventsource.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	h := s.Handler()
	for _, contentType := range []string{asText, asLines} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/news", strings.NewReader("{}"))
		r.Header.Set("Content-Type", contentType)
		h.ServeHTTP(w, r)
		a := answer{w.Code, w.Header(), w.Body.String()}
		checkAnswer(t, "POST", contentType, a)
		if a.refused(t, 503, "shutting down"); a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("DELETE", "/news", nil))
	if w.Code != 503 {
		t.Errorf("DELETE: %d", w.Code)
	}
	for path, want := range map[string]int{"/health": 503, "/health/ready": 503, "/health/live": 200} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		var doc struct{ Ready, Draining bool }
		if want == 503 && (json.Unmarshal(w.Body.Bytes(), &doc) != nil || doc.Ready || !doc.Draining) {
			t.Errorf("%s: %s", path, w.Body)
		}
	}
}

// lines is a POST of NDJSON whose body is still being written.
type lines struct {
	t       testing.TB
	c       net.Conn
	answers *bufio.Scanner
	resp    *http.Response
}

// lines begins one, and waits for the answer to begin.
func (n *node) lines(t testing.TB, query string, header ...string) *lines {
	t.Helper()
	var more strings.Builder
	for i := 0; i < len(header); i += 2 {
		more.WriteString(header[i] + ": " + header[i+1] + "\r\n")
	}
	c := n.raw(t, "POST /news"+query+" HTTP/1.1\r\nHost: x\r\n"+more.String()+"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != asLines {
		t.Fatalf("answered %d %v", resp.StatusCode, resp.Header)
	}
	l := &lines{t, c, bufio.NewScanner(resp.Body), resp}
	l.answers.Buffer(nil, 1<<20)
	return l
}

// send sends text as a chunk; "" is the end.
func (l *lines) send(text string) {
	l.t.Helper()
	if _, err := fmt.Fprintf(l.c, "%x\r\n%s\r\n", len(text), text); err != nil {
		l.t.Fatal(err)
	}
}

// answer returns the next line, "" at the end.
func (l *lines) answer() string {
	l.t.Helper()
	if !l.answers.Scan() {
		return ""
	}
	return l.answers.Text()
}

func TestALineIsAnsweredBeforeTheBodyEnds(t *testing.T) {
	n := newNode(t, nil)
	s := n.follow(t, "/news")
	l := n.lines(t, "")
	for i := range 3 {
		l.send(fmt.Sprintf(`{"id":%d,"data":"x%[1]d"}`+"\n", i))
		if got, want := l.answer(), fmt.Sprintf(`{"id":"%d","channels":["news"],"consumers":1}`, i); got != want {
			t.Fatalf("answered %s, not %s", got, want)
		}
		s.expect("x" + strconv.Itoa(i))
	}
	// Lines that come together, empty ones, half of one, and none at the end.
	l.send("{\"id\":\"a\",\"data\":1}\r\n\n  \n{\"id\":\"b\",\"data\":2}\n{\"id\":\"c\",")
	if a, b := l.answer(), l.answer(); !strings.Contains(a, `"a"`) || !strings.Contains(b, `"b"`) {
		t.Errorf("answered %s and %s", a, b)
	}
	l.send(`"data":3}`)
	l.send("")
	if got := l.answer(); !strings.Contains(got, `"c"`) {
		t.Errorf("the last line, without an end: %s", got)
	}
	if got := l.answer(); got != "" {
		t.Errorf("after the end: %s", got)
	}
	s.expect("1", "2", "3")
}

func TestAConnectionServesAnotherRequestAfterLines(t *testing.T) {
	n := newNode(t, nil)
	l := n.lines(t, "")
	l.send("{\"data\":1}\n")
	l.send("")
	for l.answer() != "" {
	}
	fmt.Fprintf(l.c, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
	if a := readAnswer(t, bufio.NewReader(l.c), "GET"); a.status != 200 {
		t.Errorf("the next request: %d %s", a.status, a.body)
	}
}

func TestABadLineEndsTheLinesWithAProblem(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 1000}})
	for line, words := range map[string]string{
		"{":                       "can't be read",
		"[{\"data\":1}]":          "an array",
		"{\"dta\":1}":             "did you mean",
		"{}":                      "at least one",
		"\"x\"":                   "a string",
		strings.Repeat("x", 1010): "longer than 1000",
	} {
		for _, first := range []bool{true, false} {
			l := n.lines(t, "")
			if !first {
				l.send("{\"id\":\"good\",\"data\":1}\n")
				if got := l.answer(); !strings.Contains(got, "good") {
					t.Errorf("the good line: %s", got)
				}
			}
			mark := n.Stats().Mark
			l.send(line + "\n{\"data\":\"after\"}\n")
			got := l.answer()
			status := 400
			if len(line) > 1000 {
				status = 413
			}
			checkProblem(t, line, status, got)
			if !strings.Contains(got, words) {
				t.Errorf("%.40s: %s does not say %q", line, got, words)
			}
			if got := l.answer(); got != "" {
				t.Errorf("%.40s: after the problem came %s", line, got)
			}
			n.publishedNothing(t, line, mark)
			l.c.Close()
		}
	}
}

func TestALineMayHaveTheLimitsLength(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 100}})
	line := `{"data":"` + strings.Repeat("x", 89) + `"}`
	if a := n.post(t, "/news", asLines, strings.Repeat(line+"\n", 5)); a.status != 200 || strings.Count(a.body, `"channels"`) != 5 {
		t.Errorf("%d %s", a.status, a.body)
	}
	a := n.post(t, "/news", asLines, line+" \n")
	checkProblem(t, "a line of 101 bytes", 413, a.body)
}

func TestAnswersOfErrorsOnlyEndWithACount(t *testing.T) {
	n := newNode(t, nil)
	if a := n.post(t, "/news?answers=errors", asLines, strings.Repeat("{\"data\":1}\n", 1000)); a.body != `{"published":1000}`+"\n" {
		t.Errorf("answered %s", a.body)
	}
	a := n.post(t, "/news?answers=errors", asLines, "{\"data\":1}\n{\"data\":2}\n{\n{\"data\":3}\n")
	problem, rest, _ := strings.Cut(a.body, "\n")
	checkProblem(t, "a bad line", 400, problem)
	if rest != `{"published":2}`+"\n" {
		t.Errorf("the count: %s", rest)
	}
	if a := n.post(t, "/news", asLines, ""); a.status != 200 || a.body != "" {
		t.Errorf("no line at all: %d %s", a.status, a.body)
	}
}

func TestLinesTakeNoKey(t *testing.T) {
	n := newNode(t, nil)
	n.post(t, "/news", asLines, "{\"data\":1}\n", "Idempotency-Key", "k").refused(t, 400, "Idempotency-Key")
	n.publishedNothing(t, "lines with a key", 0)
}

func TestLinesOverHTTP2(t *testing.T) {
	n := servingPath{tls: true, http2: true}.node(t, &eventsource.Settings{Timeout: 20 * time.Millisecond, Heartbeat: 100 * time.Millisecond})
	clock := n.follow(t, "/other")
	r, w := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", n.url+"/news", r)
	req.Header.Set("Content-Type", asLines)
	resp, err := n.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answers := bufio.NewScanner(resp.Body)
	for range 3 {
		io.WriteString(w, "{\"data\":1}\n")
		if !answers.Scan() || !strings.Contains(answers.Text(), `"channels":["news"]`) {
			t.Fatalf("answered %s, %v", answers.Text(), answers.Err())
		}
		clock.next() // the timeout passes, and the stream is not reset for it
	}
	w.Close()
	if answers.Scan() || answers.Err() != nil {
		t.Errorf("at the end: %s, %v", answers.Text(), answers.Err())
	}
}

func TestWhoDoesNotReadTheAnswersIsCutOff(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Timeout: 100 * time.Millisecond})
	l := n.lines(t, "")
	text := strings.Repeat("{\"data\":1}\n", 5000)
	line := fmt.Appendf(nil, "%x\r\n%s\r\n", len(text), text)
	for {
		if _, err := l.c.Write(line); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the server neither reads nor hangs up")
			}
			return
		}
	}
}

func TestLinesThatAreAbortedSaySo(t *testing.T) {
	n := newNode(t, nil)
	l := n.lines(t, "")
	l.send("{\"id\":1,\"data\":1}\n{\"id\":2,")
	if got := l.answer(); !strings.Contains(got, `"1"`) {
		t.Errorf("the whole line: %s", got)
	}
	l.c.(*net.TCPConn).CloseWrite()
	checkProblem(t, "an aborted body", 400, l.answer())
	if got := n.Stats().Published; got != 1 {
		t.Errorf("%d events were published", got)
	}
}

func TestLinesEndWhenTheServerDrains(t *testing.T) {
	n := newNode(t, nil)
	quiet, waiting := n.lines(t, "?answers=errors"), n.lines(t, "")
	waiting.send("{\"id\":1,\"data\":1}\n")
	waiting.answer()
	done := make(chan struct{})
	go func() { n.Stop(); close(done) }()
	checkProblem(t, "draining", 503, waiting.answer())
	checkProblem(t, "draining", 503, quiet.answer())
	if got := quiet.answer(); got != `{"published":0}` {
		t.Errorf("the count: %s", got)
	}
	<-done
}

// Programs that ask before they send (RFC 9110, 10.1.1), as curl does with
// -T -, wait for a 100.
func TestLinesMayExpectAContinue(t *testing.T) {
	n := newNode(t, nil)
	c := n.raw(t, "POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("before the body came %q, %v", line, err)
	}
	for line := "-"; line != "\r\n"; {
		line, _ = r.ReadString('\n')
	}
	fmt.Fprint(c, "b\r\n{\"data\":1}\n\r\n0\r\n\r\n")
	if a := readAnswer(t, r, "POST"); a.status != 200 || !strings.Contains(a.body, `"channels"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
}
