package eventsource_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/check"
)

// runAddress is the environment variable that makes the test binary a program
// that serves there, by the classic interface.
const runAddress = "EVENTSOURCE_TEST_RUN"

// TestMain fails the package when goroutines or descriptors are left over.
func TestMain(m *testing.M) {
	if port := os.Getenv(runAddress); port != "" {
		classicProgram(port)
		return
	}
	check.Main(m)
}

// A servingPath is one of the ways in which a consumer is served.
type servingPath struct {
	name     string
	portable bool // by net/http, though the reactor could
	hijacked bool // by a program's own http.Server, from which the reactor takes connections
	foreign  bool // hijacked, but no TCP connection
	tls      bool
	http2    bool // by ALPN with tls, else with prior knowledge
}

// paths are the two implementations that everything has to work on; everyPath
// are the others that lead to one of them, too.
var (
	paths = []servingPath{
		{name: "reactor"},
		{name: "portable", portable: true},
	}
	everyPath = append(slices.Clone(paths),
		servingPath{name: "hijacked", hijacked: true},
		servingPath{name: "foreign", foreign: true},
		servingPath{name: "tls", tls: true},
		servingPath{name: "http2", http2: true, tls: true},
		servingPath{name: "cleartext http2", http2: true})
)

// testCertificate is a certificate for this machine, and who trusts it.
var testCertificate = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
})

// transport is a client's, as the path wants it.
func (p servingPath) transport() *http.Transport {
	t := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP1(!p.http2)
	t.Protocols.SetHTTP2(p.http2 && p.tls)
	t.Protocols.SetUnencryptedHTTP2(p.http2 && !p.tls)
	if p.tls {
		_, pool := testCertificate()
		t.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return t
}

// settings returns a copy of what is given for the path.
func (p servingPath) settings(given *eventsource.Settings) *eventsource.Settings {
	if p.portable {
		return eventsource.Portable(given)
	}
	return given
}

// onEach runs a test on each of paths.
func onEach(t *testing.T, paths []servingPath, test func(t *testing.T, path servingPath)) {
	for _, path := range paths {
		t.Run(path.name, func(t *testing.T) { test(t, path) })
	}
}

// A foreignListener hands out connections that are not exactly TCP's.
type foreignListener struct{ net.Listener }

func (l foreignListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{c}, nil
}

// A node is a server that serves on a port of its own until the test ends.
type node struct {
	*eventsource.Server
	url    string
	addr   string
	client *http.Client
}

// node serves settings on the path, after what is to be done before.
func (p servingPath) node(t testing.TB, settings *eventsource.Settings, before ...func(*eventsource.Server)) *node {
	t.Helper()
	if p.tls {
		certificate, _ := testCertificate()
		with := eventsource.Settings{}
		if settings != nil {
			with = *settings
		}
		with.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		settings = &with
	}
	s, err := eventsource.Open(p.settings(settings))
	if err != nil {
		t.Fatal(err)
	}
	for _, do := range before {
		do(s)
	}
	shutdown := func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error("shutdown:", err)
		}
	}
	if p.hijacked {
		h := httptest.NewServer(s.Handler())
		t.Cleanup(func() { shutdown(); h.CloseClientConnections(); h.Close() })
		return &node{s, h.URL, h.Listener.Addr().String(), h.Client()}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if p.foreign {
		l = foreignListener{l}
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	client := &http.Client{Transport: p.transport()}
	t.Cleanup(func() {
		shutdown()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error("serve:", err)
		}
		client.CloseIdleConnections()
	})
	scheme := "http://"
	if p.tls {
		scheme = "https://"
	}
	return &node{s, scheme + addr, addr, client}
}

// newNode serves settings on the first path.
func newNode(t testing.TB, settings *eventsource.Settings) *node {
	t.Helper()
	return paths[0].node(t, settings)
}

// An answer is a response that has been read.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request with headers, given as names and values, and checks what
// holds for every answer. A refusal is a problem document.
func (n *node) do(t testing.TB, method, path string, body io.Reader, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, n.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	setHeader(r, header)
	resp, err := n.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{resp.StatusCode, resp.Header, string(b)}
	checkAnswer(t, method, path, a)
	return a
}

func setHeader(r *http.Request, header []string) {
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Add(header[i], header[i+1])
	}
}

// checkAnswer checks what holds for every answer.
func checkAnswer(t testing.TB, method, path string, a answer) {
	t.Helper()
	if got := a.header.Get("X-Content-Type-Options"); got != "nosniff" {
		t.Errorf("%s %s: X-Content-Type-Options is %q", method, path, got)
	}
	if a.status < 400 {
		return
	}
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("%s %s: %d as %q: %s", method, path, a.status, got, a.body)
		return
	}
	if method == http.MethodHead {
		return
	}
	checkProblem(t, method+" "+path, a.status, a.body)
}

// checkProblem checks that body is a problem document of a status (RFC 9457).
func checkProblem(t testing.TB, what string, status int, body string) {
	t.Helper()
	var p struct {
		Type, Title, Detail, Outcome string
		Status                       int
	}
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		t.Errorf("%s: %q is no problem document: %v", what, body, err)
		return
	}
	if p.Type != "about:blank" || p.Title != http.StatusText(status) || p.Status != status || p.Detail == "" {
		t.Errorf("%s: %d is told as %+v", what, status, p)
	}
}

// post publishes a body of a content type.
func (n *node) post(t testing.TB, path, contentType, body string, header ...string) answer {
	t.Helper()
	return n.do(t, http.MethodPost, path, strings.NewReader(body), append([]string{"Content-Type", contentType}, header...)...)
}

// refused fails the test unless a is a refusal with a status and words.
func (a answer) refused(t testing.TB, status int, words ...string) {
	t.Helper()
	if a.status != status {
		t.Errorf("answered %d %s, not %d", a.status, a.body, status)
		return
	}
	for _, w := range words {
		if !strings.Contains(a.body, w) {
			t.Errorf("the refusal %s does not say %q", a.body, w)
		}
	}
}

// A receipt is the answer to a publish.
type receipt struct {
	ID        string   `json:"id"`
	Channels  []string `json:"channels"`
	Consumers int      `json:"consumers"`
}

// receipt fails the test unless a is a single one.
func (a answer) receipt(t testing.TB) receipt {
	t.Helper()
	var r receipt
	if a.status != http.StatusCreated || json.Unmarshal([]byte(a.body), &r) != nil {
		t.Fatalf("answered %d %s, not 201 and a receipt", a.status, a.body)
	}
	return r
}

// A block is what a parser of streams reads up to an empty line (WHATWG HTML,
// 9.2.6).
type block struct {
	id, event, data, retry, comment string
	hasID, hasData                  bool
	raw                             string
}

// A stream is a consumer's end of one.
type stream struct {
	t      testing.TB
	status int
	header http.Header
	proto  string
	blocks chan block // closed at the end
	lastID string     // of what next has returned
	close  func()
}

// stream follows path with headers, given as names and values.
func (n *node) stream(t testing.TB, path string, header ...string) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	setHeader(r, header)
	resp, err := n.client.Do(r)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	s := readStream(t, resp, cancel)
	if s.status != http.StatusOK {
		t.Fatalf("GET %s: %d %+v", path, s.status, <-s.blocks)
	}
	return s
}

// follow is stream without what every stream begins with.
func (n *node) follow(t testing.TB, path string, header ...string) *stream {
	t.Helper()
	s := n.stream(t, path, header...)
	s.next()
	return s
}

// readStream reads a response's body block by block.
func readStream(t testing.TB, resp *http.Response, stop func()) *stream {
	s := &stream{t: t, status: resp.StatusCode, header: resp.Header, proto: resp.Proto, blocks: make(chan block, 4096)}
	done := make(chan struct{})
	quit := make(chan struct{})
	go func() {
		defer close(done)
		defer resp.Body.Close()
		defer close(s.blocks)
		in := bufio.NewReader(resp.Body)
		var b block
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				if b.raw += line; b.raw != "" {
					b.comment += "\nUNFINISHED" // no parser may see it
					s.blocks <- b
				}
				return
			}
			b.raw += line
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			value = strings.TrimPrefix(value, " ")
			switch {
			case line == "\n":
				b.data = strings.TrimSuffix(b.data, "\n")
				select {
				case s.blocks <- b:
				case <-quit:
					return
				}
				b = block{}
			case name == "":
				b.comment += value
			case name == "id":
				b.id, b.hasID = value, true
			case name == "event":
				b.event = value
			case name == "data":
				b.data, b.hasData = b.data+value+"\n", true
			case name == "retry":
				b.retry = value
			}
		}
	}()
	closed := false
	s.close = func() {
		if !closed {
			closed = true
			close(quit)
			stop()
			resp.Body.Close()
			<-done
		}
	}
	t.Cleanup(s.close)
	return s
}

// nextOrEnd returns the next block, false at the end.
func (s *stream) nextOrEnd() (block, bool) {
	s.t.Helper()
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	select {
	case b, ok := <-s.blocks:
		if b.hasID {
			s.lastID = b.id
		}
		return b, ok
	case <-timeout.C:
		s.t.Fatal("nothing came on a stream for ten seconds")
		panic("unreachable")
	}
}

// next returns the next block.
func (s *stream) next() block {
	s.t.Helper()
	b, ok := s.nextOrEnd()
	if !ok {
		s.t.Fatal("the stream has ended")
	}
	return b
}

// event returns the next block that a browser would dispatch.
func (s *stream) event() block {
	s.t.Helper()
	for {
		if b := s.next(); b.hasData {
			return b
		}
	}
}

// expect reads as many events as there are data, and fails the test unless they
// are these.
func (s *stream) expect(data ...string) {
	s.t.Helper()
	for i, want := range data {
		if b := s.event(); b.data != want {
			s.t.Fatalf("event %d is %q, not %q", i+1, b.data, want)
		}
	}
}

// ended reads up to the end, and fails the test when an event but
// eventsource.end comes before. It returns the end's data, and the last retry.
func (s *stream) ended() (data, retry string) {
	s.t.Helper()
	for {
		b, ok := s.nextOrEnd()
		if !ok {
			return data, retry
		}
		if b.retry != "" {
			retry = b.retry
		}
		if b.hasData && b.event != "eventsource.end" || strings.HasSuffix(b.comment, "UNFINISHED") {
			s.t.Fatalf("before the end came %q", b.raw)
		}
		if b.hasData {
			data = b.data
		}
	}
}

// What the tests of several packages share.
var settled, eventually, skip = check.Settled, check.Eventually, check.Skip
