package admin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/admin"
	"github.com/railsmechanic/eventsource/internal/check"
)

// TestMain fails the package when goroutines or descriptors are left over.
func TestMain(m *testing.M) {
	check.Main(m)
}

// A node is a server with its status page, until the test ends.
type node struct {
	*eventsource.Server
	pages   *admin.Pages
	address string
	url     string
	stop    func() // shuts it down, once
}

// serve serves on any port.
func serve(t testing.TB, settings *eventsource.Settings, options *admin.Options) *node {
	t.Helper()
	return serveAt(t, "127.0.0.1:0", settings, options)
}

// serveAt serves at an address.
func serveAt(t testing.TB, address string, settings *eventsource.Settings, options *admin.Options) *node {
	t.Helper()
	s, err := eventsource.Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Server: s, pages: admin.New(s, options)}
	n.pages.AddTo()
	var l net.Listener
	eventually(t, "the port is free", func() bool { l, err = net.Listen("tcp", address); return err == nil })
	n.address = l.Addr().String()
	n.url = "http://" + n.address
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error("shutdown:", err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error("serve:", err)
		}
	}
	t.Cleanup(n.stop)
	return n
}

// get asks for a page with headers, and returns the answer and its body.
func get(t testing.TB, method, url string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(r) // which follows no redirect
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// document returns what status.json says.
func document(t testing.TB, url string, header ...string) (status admin.Status) {
	t.Helper()
	res, body := get(t, "GET", url+"/admin/status.json", header...)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("status.json: %s %s", res.Status, body)
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		t.Fatal(err)
	}
	return status
}

// A following is a stream that a test reads.
type following struct {
	t     testing.TB
	lines *bufio.Scanner
	close func()
}

// follow opens a stream.
func follow(t testing.TB, url string, header ...string) *following {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{}
	res, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s: %s %v", url, res.Status, res.Header)
	}
	f := &following{t, bufio.NewScanner(res.Body), func() { cancel(); res.Body.Close(); transport.CloseIdleConnections() }}
	f.lines.Buffer(nil, 1<<20)
	t.Cleanup(f.close)
	deadline := time.AfterFunc(20*time.Second, f.close) // so that nothing hangs
	t.Cleanup(func() { deadline.Stop() })
	return f
}

// event returns the next event's type and data, "" at the end.
func (f *following) event() (typ, data string) {
	for f.lines.Scan() {
		line := f.lines.Text()
		switch {
		case line == "" && typ != "":
			return typ, data
		case strings.HasPrefix(line, "event: "):
			typ = line[len("event: "):]
		case strings.HasPrefix(line, "data: "):
			data = line[len("data: "):]
		}
	}
	return "", ""
}

// status returns the next document.
func (f *following) status() (status admin.Status) {
	f.t.Helper()
	typ, data := f.event()
	if err := json.Unmarshal([]byte(data), &status); typ != "status" || err != nil {
		f.t.Fatalf("got %q %.200q: %v", typ, data, err)
	}
	return status
}

// What the tests of several packages share.
var settled, eventually = check.Settled, check.Eventually
