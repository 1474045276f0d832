package eventsource_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
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
	const stream = "GET /news HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, test := range map[string]struct {
		pieces []string
		want   string // what the answer begins with
	}{
		"whole":                  {[]string{stream}, "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n"},
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
					io.WriteString(c, piece)
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

// The front takes no request that net/http would read in another way.
func FuzzFront(f *testing.F) {
	for _, seed := range [][2]string{
		{"/news", "Host: x"},
		{"/a,b?history=3&event=x%20y", "Host: [::1]:80\r\nCookie: a=b; c=d\r\nLast-Event-ID: 7"},
		{"//x/y", "host:  x \r\nConnection: keep-alive\r\nA:\r\nA: 2"},
		{"/news", "Host: x\r\nContent-Length: 0"},
		{"/news", "Host: x\r\nTransfer-Encoding: chunked"},
		{"/news HTTP/1.1 ", "Host: x\r\nTrailer: a"},
		{"/%41%2f", "Host: x\r\nPragma: no-cache\r\nConnection: close"},
	} {
		f.Add(seed[0], seed[1])
	}
	requests := make(chan *http.Request, 1)
	h := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { requests <- r }))
	f.Cleanup(h.Close)
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, target, header string) {
		head := []byte("GET " + target + " HTTP/1.1\r\n" + header + "\r\n\r\n")
		got := eventsource.FrontRequest(s, head)
		if got == nil {
			return
		}
		c, err := net.Dial("tcp", h.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(head)
		select {
		case want := <-requests:
			type request struct {
				Method, URL, Path, RawQuery, Host, Proto, Target string
				Header                                           http.Header
				Length                                           int64
				Close                                            bool
			}
			of := func(r *http.Request) request {
				return request{r.Method, r.URL.String(), r.URL.Path, r.URL.RawQuery, r.Host, r.Proto, r.RequestURI, r.Header, r.ContentLength, r.Close}
			}
			if got, want := of(got), of(want); !reflect.DeepEqual(got, want) {
				t.Errorf("%q is read as\n%+v\nand by net/http as\n%+v", head, got, want)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("net/http refuses %q", head)
		}
	})
}
