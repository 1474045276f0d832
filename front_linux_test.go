package eventsource_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/check"
)

// The stream that the reactor begins by itself has the head that net/http's
// handler gives it.
func TestTheFrontAnswersAsNetHTTPDoes(t *testing.T) {
	for name, test := range map[string]struct {
		settings eventsource.Settings
		header   []string
	}{
		"plain":        {},
		"own headers":  {settings: eventsource.Settings{Headers: map[string]string{"X-Own": "1"}}},
		"no origin":    {settings: eventsource.Settings{CorsAllowOrigin: "*"}},
		"any origin":   {settings: eventsource.Settings{CorsAllowOrigin: "*"}, header: []string{"Origin", "http://a.example"}},
		"this origin":  {settings: eventsource.Settings{CorsAllowOrigin: "http://a.example", CorsAllowCredentials: true}, header: []string{"Origin", "http://a.example"}},
		"other origin": {settings: eventsource.Settings{CorsAllowOrigin: "http://a.example"}, header: []string{"Origin", "http://b.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			var heads [2]http.Header
			for i, path := range []servingPath{{}, {hijacked: true}} {
				n := path.node(t, &test.settings)
				resp := rawGet(t, n.addr, "/news?history=1", test.header...)
				if resp.StatusCode != http.StatusOK {
					t.Fatal(resp.Status)
				}
				resp.Header.Del("Date")
				heads[i] = resp.Header
			}
			if !reflect.DeepEqual(heads[0], heads[1]) {
				t.Errorf("the front's head is\n%v\nand net/http's\n%v", heads[0], heads[1])
			}
		})
	}
}

// The answer that the reactor gives to a publish is the one of net/http's handler.
func TestAPublishIsAnsweredAsNetHTTPDoes(t *testing.T) {
	for name, test := range map[string]struct {
		settings     eventsource.Settings
		target, body string
		header       string // lines
	}{
		"text":          {target: "/news", body: "hello", header: "Content-Type: text/plain\r\n"},
		"no body":       {target: "/news", header: "Content-Type: text/plain\r\n"},
		"JSON":          {target: "/news,sports?ttl=5", body: `{"data":{"a":1},"id":"<7>\u00e4","type":"x"}`, header: "Content-Type: application/json; charset=utf-8\r\n"},
		"a batch":       {target: "/news", body: `[{"data":"a"},{"data":"b"}]`, header: "Content-Type: application/json\r\n"},
		"an empty one":  {target: "/news", body: `[]`, header: "Content-Type: application/json\r\n"},
		"a form":        {target: "/news", body: "data=x&id=7", header: "Content-Type: application/x-www-form-urlencoded\r\n"},
		"NDJSON":        {target: "/news", body: "{\"data\":\"a\"}\n", header: "Content-Type: application/x-ndjson\r\n"},
		"to all":        {target: "/all", body: "hello", header: "Content-Type: text/plain\r\n"},
		"an own id":     {target: "/news?id=x%22%3Cy", body: "hello", header: "Content-Type: text/plain\r\nIdempotency-Key: k\r\n"},
		"no type":       {target: "/news", body: "hello"},
		"a wrong type":  {target: "/news", body: "hello", header: "Content-Type: image/png\r\n"},
		"a wrong query": {target: "/news?ttl=x", body: "hello", header: "Content-Type: text/plain\r\n"},
		"a wrong name":  {target: "/a..b", body: "hello", header: "Content-Type: text/plain\r\n"},
		"a page":        {target: "/health", body: "hello", header: "Content-Type: text/plain\r\n"},
		"a wildcard":    {target: "/news.*", body: "hello", header: "Content-Type: text/plain\r\n"},
		"no token":      {settings: eventsource.Settings{AuthToken: "t"}, target: "/news", body: "hello", header: "Content-Type: text/plain\r\n"},
		"a wrong token": {settings: eventsource.Settings{AuthToken: "t"}, target: "/news", body: "hello", header: "Content-Type: text/plain\r\nAuth-Token: u\r\n"},
		"the token":     {settings: eventsource.Settings{AuthToken: "t"}, target: "/news", body: "hello", header: "Content-Type: text/plain\r\nAuthorization: Bearer t\r\n"},
		"too long":      {settings: eventsource.Settings{Limits: eventsource.Limits{Body: 4}}, target: "/news", body: "hello", header: "Content-Type: text/plain\r\n"},
		"from a page":   {settings: eventsource.Settings{CorsAllowOrigin: "http://a.example"}, target: "/news", body: "hello", header: "Content-Type: text/plain\r\nOrigin: http://a.example\r\n"},
		"another page":  {settings: eventsource.Settings{CorsAllowOrigin: "http://a.example"}, target: "/news", body: "hello", header: "Content-Type: text/plain\r\nOrigin: http://b.example\r\nSec-Fetch-Site: cross-site\r\n"},
		"with a base":   {settings: eventsource.Settings{BasePath: "/events"}, target: "/events/news", body: "hello", header: "Content-Type: text/plain\r\n"},
		"beside it":     {settings: eventsource.Settings{BasePath: "/events"}, target: "/news", body: "hello", header: "Content-Type: text/plain\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			type answer struct {
				Status int
				Header http.Header
				Body   string
			}
			var answers [2][2]answer
			for i, path := range []servingPath{{}, {hijacked: true}} {
				n := path.node(t, &test.settings)
				c := dial(t, n.addr)
				read := bufio.NewReader(c)
				for j := range 2 { // over one connection
					fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s", test.target, test.header, len(test.body), test.body)
					resp, err := http.ReadResponse(read, nil)
					if err != nil {
						t.Fatal(err)
					}
					body, err := io.ReadAll(resp.Body)
					if err != nil {
						t.Fatal(err)
					}
					resp.Header.Del("Date")
					text := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`).ReplaceAllString(string(body), "ID")
					answers[i][j] = answer{resp.StatusCode, resp.Header, text}
					if resp.Close { // as after a body that is too long
						break
					}
				}
			}
			if !reflect.DeepEqual(answers[0], answers[1]) {
				t.Errorf("the reactor answers\n%+v\nand net/http\n%+v", answers[0], answers[1])
			}
		})
	}
}

// rawGet sends a request in one piece, as a browser does, and reads the head of
// the answer. Its body must not be closed, which would read to its end.
func rawGet(t *testing.T, addr, target string, header ...string) *http.Response {
	t.Helper()
	c := dial(t, addr)
	var head strings.Builder
	head.WriteString("GET " + target + " HTTP/1.1\r\nHost: " + addr + "\r\n")
	for i := 0; i < len(header); i += 2 {
		head.WriteString(header[i] + ": " + header[i+1] + "\r\n")
	}
	io.WriteString(c, head.String()+"\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// What comes over a new connection in other pieces, or is no plain GET, is
// answered all the same.
func TestTheFrontPassesOnWhatIsNotForIt(t *testing.T) {
	const (
		stream  = "GET /news HTTP/1.1\r\nHost: x\r\n\r\n"
		publish = "POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
	)
	for name, test := range map[string]struct {
		pieces []string
		want   string // what the answer begins with
	}{
		"whole":                  {[]string{stream}, "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n"},
		"a publish":              {[]string{publish}, "HTTP/1.1 201"},
		"a publish in two":       {[]string{publish[:9], publish[9:]}, "HTTP/1.1 201"},
		"its body later":         {[]string{publish[:len(publish)-1], publish[len(publish)-1:]}, "HTTP/1.1 201"},
		"its body never":         {[]string{publish[:len(publish)-1], ""}, "HTTP/1.1 400"},
		"two publishes":          {[]string{publish + publish}, "HTTP/1.1 201"},
		"a publish and a stream": {[]string{publish + stream}, "HTTP/1.1 201"},
		"a publish and rubbish":  {[]string{publish + "x"}, "HTTP/1.1 201"},
		"two lengths":            {[]string{"POST /news HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"}, "HTTP/1.1 400"},
		"a signed length":        {[]string{"POST /news HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx"}, "HTTP/1.1 400"},
		"no length":              {[]string{"POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n\r\n"}, "HTTP/1.1 201"},
		"a body in chunks":       {[]string{"POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"}, "HTTP/1.1 201"},
		"asked to go on":         {[]string{"POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", "x"}, "HTTP/1.1 100"},
		"a long publish":         {[]string{"POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("x", 9000)}, "HTTP/1.1 201"},
		"in two":                 {[]string{stream[:9], stream[9:]}, "HTTP/1.1 200"},
		"between the last":       {[]string{stream[:len(stream)-2], stream[len(stream)-2:]}, "HTTP/1.1 200"},
		"with another":           {[]string{stream + stream}, "HTTP/1.1 200"},
		"another verb":           {[]string{"HEAD /news HTTP/1.1\r\nHost: x\r\n\r\n"}, "HTTP/1.1 200"},
		"another page":           {[]string{"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"}, "HTTP/1.1 200"},
		"HTTP/1.0":               {[]string{"GET /news HTTP/1.0\r\nHost: x\r\n\r\n"}, "HTTP/1.0 200 OK\r\nConnection: close\r\n"},
		"no host":                {[]string{"GET /news HTTP/1.1\r\n\r\n"}, "HTTP/1.1 400"},
		"two hosts":              {[]string{"GET /news HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"}, "HTTP/1.1 400"},
		"a bad host":             {[]string{"GET /news HTTP/1.1\r\nHost: x y\r\n\r\n"}, "HTTP/1.1 400"},
		"a bad name":             {[]string{"GET /news HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n"}, "HTTP/1.1 400"},
		"a folded line":          {[]string{"GET /news HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n"}, "HTTP/1.1 200"},
		"bare line ends":         {[]string{"GET /news HTTP/1.1\nHost: x\n\n"}, "HTTP/1.1 200"},
		"a control character":    {[]string{"GET /news HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n"}, "HTTP/1.1 400"},
		"UTF-8":                  {[]string{"GET /news HTTP/1.1\r\nHost: x\r\nA: \u00e4\r\n\r\n"}, "HTTP/1.1 200"},
		"a body":                 {[]string{"GET /news HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n", "x"}, "HTTP/1.1 200"},
		"a length and chunks":    {[]string{"GET /news HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}, "HTTP/1.1 "},
		"a proxy's target":       {[]string{"GET http://x/news HTTP/1.1\r\nHost: x\r\n\r\n"}, "HTTP/1.1 200"},
		"a wrong name":           {[]string{"GET /a..b HTTP/1.1\r\nHost: x\r\n\r\n"}, "HTTP/1.1 404"},
		"a wrong query":          {[]string{"GET /news?history=x HTTP/1.1\r\nHost: x\r\n\r\n"}, "HTTP/1.1 400"},
		"no HTTP":                {[]string{"\x16\x03\x01\x00\x05hello\r\n\r\n"}, "HTTP/1.1 400"},
		"many headers":           {[]string{"GET /news HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: "+strings.Repeat("b", 90)+"\r\n", 80) + "\r\n"}, "HTTP/1.1 200"},
		"more than there may be": {[]string{"GET /news HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: "+strings.Repeat("b", 90)+"\r\n", 400) + "\r\n"}, "HTTP/1.1 431"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []servingPath{{name: "front"}, {name: "hijacked", hijacked: true}} {
				if path.hijacked && strings.HasSuffix(test.want, "431") {
					continue // the limit is the program's own
				}
				n := path.node(t, nil)
				c := dial(t, n.addr)
				for i, piece := range test.pieces {
					if i > 0 {
						time.Sleep(20 * time.Millisecond)
					}
					if io.WriteString(c, piece); piece == "" {
						c.(*net.TCPConn).CloseWrite()
					}
				}
				got := make([]byte, len(test.want))
				if _, err := io.ReadFull(c, got); err != nil {
					t.Fatalf("%s: %v after %q", path.name, err, got)
				}
				if string(got) != test.want {
					t.Errorf("%s: the answer begins with %q, not %q", path.name, got, test.want)
				}
			}
		})
	}
}

// A connection that says nothing at first is served when it does.
func TestWhoIsSilentAtFirstIsServed(t *testing.T) {
	n := newNode(t, nil)
	c := dial(t, n.addr)
	time.Sleep(1500 * time.Millisecond)
	io.WriteString(c, "GET /news HTTP/1.1\r\nHost: x\r\n\r\n")
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") {
		t.Errorf("%q, %v", line, err)
	}
}

// Serve ends when its listener is closed by somebody else, and leaves nothing.
func TestServeEndsWithItsListener(t *testing.T) {
	s := openWith(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	rawGet(t, l.Addr().String(), "/news")
	l.Close()
	select {
	case err := <-served:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Serve did not end")
	}
}

// A plain publish does not reach net/http, which writes the headers in another
// order.
func TestAPlainPublishIsAnsweredByTheReactor(t *testing.T) {
	n := newNode(t, nil)
	c := dial(t, n.addr)
	io.WriteString(c, "POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx")
	const want = "HTTP/1.1 201 Created\r\nDate: "
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}

// The requests of one connection are answered one after the other, whatever they
// ask for, by whoever answers them.
func TestAConnectionIsAnsweredInTurn(t *testing.T) {
	n := newNode(t, nil)
	c := dial(t, n.addr)
	read := bufio.NewReader(c)
	ask := func(request string, status int) {
		t.Helper()
		io.WriteString(c, request)
		resp, err := http.ReadResponse(read, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status {
			t.Errorf("%.40q is answered with %s", request, resp.Status)
		}
		if status != http.StatusOK {
			io.Copy(io.Discard, resp.Body)
		}
	}
	publish := func(data string) string {
		return fmt.Sprintf("POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(data), data)
	}
	ask(publish("1"), http.StatusCreated)
	ask(publish(strings.Repeat("2", 3000)), http.StatusCreated)
	ask(publish("3"), http.StatusCreated)
	ask("GET /nowhere..there HTTP/1.1\r\nHost: x\r\n\r\n", http.StatusNotFound)
	ask(publish("4"), http.StatusCreated) // by net/http
	ask("GET /news?history=4 HTTP/1.1\r\nHost: x\r\n\r\n", http.StatusOK)

	c = dial(t, n.addr)
	read = bufio.NewReader(c)
	ask(publish("5"), http.StatusCreated)
	ask("GET /news?history=1 HTTP/1.1\r\nHost: x\r\n\r\n", http.StatusOK)
	if text, err := read.Peek(1); err != nil {
		t.Errorf("after a publish, a stream begins with %q, %v", text, err)
	}
}

// Who closes its half after a request still gets the answer, and the end of the
// connection.
func TestAPublisherMayCloseItsHalf(t *testing.T) {
	n := newNode(t, nil)
	for _, wait := range []time.Duration{0, 20 * time.Millisecond} {
		c := dial(t, n.addr)
		io.WriteString(c, "POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx")
		time.Sleep(wait)
		c.(*net.TCPConn).CloseWrite()
		text, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 201") {
			t.Errorf("%q, %v", text, err)
		}
	}
}

// Who publishes without ever reading the answers is cut off, and nobody else
// waits for it.
func TestWhoReadsNoAnswersIsCutOff(t *testing.T) {
	n := newNode(t, nil)
	c := dial(t, n.addr).(*net.TCPConn)
	c.SetReadBuffer(4 << 10)
	batch := "[" + strings.Repeat(`{"data":""},`, 30) + `{"data":""}]` // which is answered at length
	one := fmt.Sprintf("POST /noise HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(batch), batch)
	for published := uint64(1); ; published++ {
		if _, err := io.WriteString(c, one); errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		settled(func() bool { return n.Stats().Publishes >= published || gone(c) })
	}
	n.post(t, "/news", "text/plain", "hello").receipt(t)
}

// gone reports whether the other side has reset a connection.
func gone(c *net.TCPConn) (reset bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	raw.Control(func(fd uintptr) {
		state, _ := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		reset = state == nil || state.State != 1 // established
	})
	return reset
}

// Connections without a request are closed when their time is over, and their
// places are used again.
func TestIdleClientsAreClosed(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Timeout: 300 * time.Millisecond})
	for range 3 {
		conns := make([]net.Conn, 20)
		for i := range conns {
			conns[i] = dial(t, n.addr)
		}
		for _, c := range conns {
			if text, err := io.ReadAll(c); len(text) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%q, %v", text, err)
			}
		}
	}
	n.post(t, "/news", "text/plain", "hello").receipt(t)
}

// A storm of publishers and consumers that come, go, and are reset in the middle
// of a request leaves nothing behind.
func TestClientsThatComeAndGoLeaveNothing(t *testing.T) {
	n := newNode(t, nil)
	one := "POST /news HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
	n.post(t, "/news", "text/plain", "first").receipt(t)
	n.client.CloseIdleConnections()
	before := len(check.Descriptors())
	var wait sync.WaitGroup
	for w := range 8 {
		wait.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 150 {
				c, err := net.Dial("tcp", n.addr)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(20 * time.Second))
				for range r.IntN(3) {
					io.WriteString(c, one)
					if _, err := c.Read(make([]byte, 1<<10)); err != nil {
						t.Error(err)
					}
				}
				switch r.IntN(4) {
				case 0:
					io.WriteString(c, one[:r.IntN(len(one))])
				case 1:
					io.WriteString(c, one+one)
				case 2:
					io.WriteString(c, "GET /news HTTP/1.1\r\nHost: x\r\n\r\n")
				}
				if r.IntN(2) == 0 {
					c.(*net.TCPConn).SetLinger(0)
				}
				c.Close()
			}
		})
	}
	wait.Wait()
	n.client.CloseIdleConnections()
	if !settled(func() bool { return len(check.Descriptors()) <= before+1 }) {
		t.Errorf("%d descriptors are left, %v", len(check.Descriptors())-before, check.Descriptors())
	}
}

// The reactor takes no request that net/http would read in another way.
func FuzzFront(f *testing.F) {
	for _, seed := range [][3]string{
		{"GET /news", "Host: x", ""},
		{"GET /a,b?history=3&event=x%20y", "Host: [::1]:80\r\nCookie: a=b; c=d\r\nLast-Event-ID: 7", ""},
		{"GET //x/y", "host:  x \r\nConnection: keep-alive\r\nA:\r\nA: 2", ""},
		{"GET /news", "Host: x\r\nContent-Length: 0", ""},
		{"GET /news", "Host: x\r\nTransfer-Encoding: chunked", ""},
		{"GET /news HTTP/1.1 ", "Host: x\r\nTrailer: a", ""},
		{"GET /%41%2f", "Host: x\r\nPragma: no-cache\r\nConnection: close", ""},
		{"POST /news", "Host: x\r\nContent-Length: 5", "hello"},
		{"POST /news?a=b", "Host: x\r\ncontent-length:   05\r\nContent-Type: text/plain", "hello"},
		{"POST /news", "Host: x\r\nContent-Length: 5\r\nContent-Length: 5", "hello"},
		{"POST /news", "Host: x\r\nContent-Length: 0x5\r\nExpect: 100-continue", "hello"},
		{"POST /news", "Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	type request struct {
		Method, URL, Path, RawQuery, Host, Proto, Target, Body string
		Header                                                 http.Header
		Length                                                 int64
		Close                                                  bool
	}
	of := func(r *http.Request, body []byte) request {
		return request{r.Method, r.URL.String(), r.URL.Path, r.URL.RawQuery, r.Host, r.Proto, r.RequestURI, string(body), r.Header, r.ContentLength, r.Close}
	}
	requests := make(chan request, 1)
	h := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- of(r, body)
	}))
	f.Cleanup(h.Close)
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, line, header, body string) {
		text := []byte(line + " HTTP/1.1\r\n" + header + "\r\n\r\n" + body)
		r, read := eventsource.FrontRequest(s, text)
		if r == nil {
			return
		}
		c, err := net.Dial("tcp", h.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(text)
		select {
		case want := <-requests:
			if got := of(r, read); !reflect.DeepEqual(got, want) {
				t.Errorf("%q is read as\n%+v\nand by net/http as\n%+v", text, got, want)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("net/http refuses %q", text)
		}
	})
}

// The kernel gives up a consumer that acknowledges nothing, and holds little that it
// can't send. A listener may not hand that down, so it is read from the sockets.
func TestConsumersHaveTheLimitsOfTheKernel(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Heartbeat: 7 * time.Second})
	n.follow(t, "/news")
	found := 0
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		fd, _ := strconv.Atoi(f.Name())
		local, err := unix.Getsockname(fd)
		in, ok := local.(*unix.SockaddrInet4)
		if err != nil || !ok || !strings.HasSuffix(n.addr, ":"+strconv.Itoa(in.Port)) {
			continue
		}
		if _, err := unix.Getpeername(fd); err != nil {
			continue // the listener
		}
		found++
		for option, want := range map[int]int{unix.TCP_NODELAY: 1, unix.TCP_NOTSENT_LOWAT: 32 << 10, unix.TCP_USER_TIMEOUT: 14_000} {
			if got, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, option); got != want {
				t.Errorf("option %d of a consumer's socket is %d, not %d: %v", option, got, want, err)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d sockets of consumers were found", found)
	}
}
