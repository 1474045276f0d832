package eventsource_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// A reverseProxy is a program that stands in front of the server, by a configuration
// in examples/proxy.
type reverseProxy struct {
	name   string // of the program
	config string // its file
	// Where the file's own ports and paths stand, and what replaces them: {front} and
	// {redirect} are free ports, {server} is the server's address, {dir} a directory.
	replace [][2]string
	args    []string
}

var reverseProxies = []reverseProxy{
	{
		name: "nginx", config: "nginx.conf",
		replace: [][2]string{
			{"user www-data;", "user root;"}, // who is not root is not asked
			{"pid /run/", "pid {dir}/"},
			{"error_log /var/log/nginx/", "error_log {dir}/"},
			{"access_log /var/log/nginx/", "access_log {dir}/"},
			{"http {\n", "http {\n client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3; uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;\n"},
			{"listen [::]:80;", ""},
			{"listen [::]:443 ssl http2;", ""},
			{"listen 80;", "listen 127.0.0.1:{redirect};"},
			{"listen 443 ssl http2;", "listen 127.0.0.1:{front} ssl http2;"},
			{"events.example.org;", "localhost;"},
			{"/etc/letsencrypt/live/events.example.org/fullchain.pem", "{dir}/certificate.pem"},
			{"/etc/letsencrypt/live/events.example.org/privkey.pem", "{dir}/key.pem"},
			{"\t\tserver 127.0.0.1:8080;", "server {server};"},
			{"grpc://127.0.0.1:8080", "grpc://{server}"},
		},
		args: []string{"-p", "{dir}", "-c", "{dir}/nginx.conf", "-g", "daemon off;"},
	},
	{
		name: "caddy", config: "Caddyfile",
		replace: [][2]string{
			{"\n{\n", "\n{\n\tadmin off\n\tauto_https off\n\tdefault_bind 127.0.0.1\n"},
			{"\nevents.example.org {", "\nhttps://localhost:{front} {\n\ttls {dir}/certificate.pem {dir}/key.pem"},
			{"reverse_proxy 127.0.0.1:8080", "reverse_proxy {server}"},
		},
		args: []string{"run", "--config", "{dir}/Caddyfile", "--adapter", "caddyfile"},
	},
}

// A proxied is a server behind a proxy. What the embedded node does goes through it.
type proxied struct {
	node         // by the proxy
	server *node // straight
	proxy  reverseProxy
	http2  bool
}

// onEachProxy runs a test behind every proxy, over both versions of HTTP. The server
// trusts what the proxies say of addresses.
func onEachProxy(t *testing.T, settings eventsource.Settings, test func(t *testing.T, p *proxied)) {
	settings.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	for _, proxy := range reverseProxies {
		for _, http2 := range []bool{false, true} {
			name := proxy.name + " HTTP/1.1"
			if http2 {
				name = proxy.name + " HTTP/2"
			}
			t.Run(name, func(t *testing.T) {
				program := needed(t, proxy.name)
				server := newNode(t, &settings)
				p := &proxied{server: server, proxy: proxy, http2: http2}
				p.node = node{Server: server.Server, addr: proxy.start(t, program, server.addr)}
				_, port, _ := net.SplitHostPort(p.addr)
				p.url = "https://localhost:" + port
				p.client = p.from(t, "127.0.0.1")
				test(t, p)
			})
		}
	}
}

// from returns a client with an address of its own.
func (p *proxied) from(t *testing.T, address string) *http.Client {
	transport := servingPath{tls: true, http2: p.http2}.transport()
	transport.DialContext = dialFrom(address, p.addr)
	transport.ResponseHeaderTimeout = 10 * time.Second // a proxy that buffers sends none
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// dialFrom connects to an address from another.
func dialFrom(from, to string) func(context.Context, string, string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "tcp", to) }
}

// start runs the proxy in front of a server until the test ends, and returns its
// address.
func (p reverseProxy) start(t *testing.T, program, server string) string {
	t.Helper()
	dir, front := t.TempDir(), freePort(t)
	fill := strings.NewReplacer("{dir}", dir, "{front}", front, "{redirect}", freePort(t), "{server}", server)
	text, err := os.ReadFile(filepath.Join("examples", "proxy", p.config))
	if err != nil {
		t.Fatal(err)
	}
	config := string(text)
	for _, r := range p.replace {
		if !strings.Contains(config, r[0]) {
			t.Fatalf("%s has no %q: say here what is to be replaced", p.config, r[0])
		}
		config = strings.ReplaceAll(config, r[0], fill.Replace(r[1]))
	}
	if left := regexp.MustCompile(`(?m)^[^#\n]*(example\.org|/etc/|/var/|/run/|:8080).*$`).FindString(config); left != "" {
		t.Fatalf("%s still has %q", p.config, left)
	}
	certificate, key := testCertificatePEM(t)
	for name, content := range map[string][]byte{p.config: []byte(config), "certificate.pem": certificate, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	for _, a := range p.args {
		args = append(args, fill.Replace(a))
	}
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) // nginx ends its workers then
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error(p.name + " does not end")
			cmd.Process.Kill()
			<-ended
		}
		log.Close()
		if t.Failed() {
			for _, name := range []string{"log", "error.log"} {
				said, _ := os.ReadFile(filepath.Join(dir, name))
				t.Logf("%s, %s:\n%s", p.name, name, said)
			}
		}
	})
	address := net.JoinHostPort("127.0.0.1", front)
	eventually(t, p.name+" listens", func() bool {
		select {
		case <-ended:
			t.Fatal(p.name + " has ended")
		default:
		}
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return address
}

// freePort returns a port that is free at the moment.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// testCertificatePEM returns the test's certificate and its key as files have them.
func testCertificatePEM(t *testing.T) (certificate, key []byte) {
	t.Helper()
	c, _ := testCertificate()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestAProxyPassesEachEventAndHeartbeatAtOnce(t *testing.T) {
	onEachProxy(t, eventsource.Settings{Heartbeat: 200 * time.Millisecond}, func(t *testing.T, p *proxied) {
		s := p.stream(t, "/news", "Accept-Encoding", "gzip, deflate, br, zstd", "Accept", "text/event-stream")
		if want := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[p.http2]; s.proto != want {
			t.Errorf("the front speaks %s, not %s", s.proto, want)
		}
		if s.header.Get("Content-Type") != "text/event-stream" || s.header.Get("Cache-Control") != "no-cache" || s.header.Get("Content-Encoding") != "" {
			t.Errorf("the stream has the headers %v", s.header)
		}
		if b := s.next(); b.retry != "3000" || !b.hasID {
			t.Errorf("the stream begins with %q", b.raw)
		}
		for i := range 5 {
			data := fmt.Sprintf("event %d", i)
			p.server.post(t, "/news", asText, data)
			s.expect(data)
		}
		for range 3 {
			if b := s.next(); b.hasData || !strings.HasPrefix(b.raw, ":\n") {
				t.Errorf("%q came, not a heartbeat", b.raw)
			}
		}
		big := strings.Repeat("x", 1<<19)
		p.server.post(t, "/news", asText, big)
		s.expect(big)
	})
}

func TestAStreamResumesThroughAProxy(t *testing.T) {
	onEachProxy(t, eventsource.Settings{}, func(t *testing.T, p *proxied) {
		s := p.follow(t, "/news")
		p.post(t, "/news", asText, "one")
		s.expect("one")
		s.close()
		p.post(t, "/news", asText, "two")
		p.post(t, "/news", asText, "three")
		again := p.follow(t, "/news", "Last-Event-ID", s.lastID)
		again.expect("two", "three")
		p.post(t, "/news", asText, "four")
		again.expect("four")
		p.follow(t, "/news?last_event_id="+s.lastID).expect("two", "three", "four")
	})
}

func TestPublishesPassAProxy(t *testing.T) {
	onEachProxy(t, eventsource.Settings{}, func(t *testing.T, p *proxied) {
		s := p.server.follow(t, "/news")
		if r := p.post(t, "/news", "application/json", `{"id":"1","data":"one"}`).receipt(t); r.ID != "1" || r.Consumers != 1 {
			t.Errorf("answered %+v", r)
		}
		// A page of the front itself: the Host is the one that its browser knows.
		p.post(t, "/news", asText, "two", "Origin", p.url).receipt(t)
		p.post(t, "/news", asText, "x", "Origin", "https://evil.example").refused(t, 403)
		// Length and words of a refusal are the server's.
		p.post(t, "/news", asText, strings.Repeat("x", 1<<20+1)).refused(t, 413, "1048576 bytes")
		big := strings.Repeat("x", 1<<20)
		p.post(t, "/news", asText, big).receipt(t)
		s.expect("one", "two", big)
		if head := p.do(t, http.MethodHead, "/news", nil); head.header.Get("X-Consumer-Count") != "1" {
			t.Errorf("HEAD: %v", head.header)
		}
		p.do(t, http.MethodDelete, "/news", nil)
		if data, _ := s.ended(); data != `{"reason":"closed"}` {
			t.Errorf("it ended with %s", data)
		}
	})
}

// sendLines begins a POST of NDJSON through the proxy.
func (p *proxied) sendLines(t *testing.T, query string) (body *io.PipeWriter, answers func() string) {
	t.Helper()
	r, w := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/news"+query, r)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", asLines)
	request.Header.Set("Origin", p.url)
	type answer struct {
		resp *http.Response
		err  error
	}
	come := make(chan answer, 1)
	go func() {
		resp, err := p.client.Do(request)
		come <- answer{resp, err}
	}()
	var lines *bufio.Scanner
	begin := func() {
		a := <-come
		if a.err != nil {
			t.Fatal(a.err)
		}
		t.Cleanup(func() { a.resp.Body.Close() })
		if a.resp.StatusCode != http.StatusOK {
			t.Fatalf("answered %d", a.resp.StatusCode)
		}
		lines = bufio.NewScanner(a.resp.Body)
	}
	t.Cleanup(func() { w.Close(); cancel() })
	return w, func() string {
		t.Helper()
		if lines == nil {
			begin()
		}
		if !lines.Scan() {
			if lines.Err() != nil {
				t.Fatal("the answers ended:", lines.Err())
			}
			return ""
		}
		return lines.Text()
	}
}

func TestNDJSONPassesAProxyInBothDirectionsAtOnce(t *testing.T) {
	onEachProxy(t, eventsource.Settings{}, func(t *testing.T, p *proxied) {
		if p.proxy.name == "caddy" && !p.http2 {
			// It would lose lines. It must say so, whatever the length and case.
			for _, contentType := range []string{asLines, "APPLICATION/x-ndjson; charset=utf-8"} {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url+"/news", strings.NewReader(`{"data":"x"}`))
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Content-Type", contentType)
				resp, err := p.client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				said, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 505 || resp.Header.Get("Content-Type") != "application/problem+json" {
					t.Errorf("%s is answered %d %v %s", contentType, resp.StatusCode, resp.Header, said)
				}
				checkProblem(t, contentType, 505, string(said))
			}
			p.publishedNothing(t, "NDJSON", 0)
			return
		}
		s := p.server.follow(t, "/news")
		body, answer := p.sendLines(t, "")
		for i := range 3 {
			fmt.Fprintf(body, `{"id":%d,"data":"x%[1]d"}`+"\n", i)
			if got, want := answer(), fmt.Sprintf(`{"id":"%d","channels":["news"],"consumers":1}`, i); got != want {
				t.Fatalf("answered %s, not %s", got, want)
			}
			s.expect(fmt.Sprintf("x%d", i))
		}
		body.Close()
		if got := answer(); got != "" {
			t.Errorf("after the end: %s", got)
		}
		s.close()

		// More than all connections in between hold.
		const count = 12_000
		line := `{"data":"` + strings.Repeat("x", 1000) + `"}` + "\n"
		for _, query := range []string{"", "?answers=errors"} {
			body, answer := p.sendLines(t, query)
			go func() {
				for range count / 100 {
					if _, err := io.WriteString(body, strings.Repeat(line, 100)); err != nil {
						return
					}
				}
				body.Close()
			}()
			last, n := "", 0
			for {
				got := answer()
				if got == "" {
					break
				}
				last = got
				n++
			}
			if want := fmt.Sprintf(`{"published":%d}`, count); query != "" && last != want || query == "" && n != count {
				t.Errorf("%q: of %d lines %d were answered, the last %s", query, count, n, last)
			}
		}
	})
}

// A heartbeat that fails would tell it as well, after 15 s.
func TestAConsumerThatLeavesAProxyLeavesTheServer(t *testing.T) {
	onEachProxy(t, eventsource.Settings{}, func(t *testing.T, p *proxied) {
		stays, goes := p.follow(t, "/news"), p.follow(t, "/news")
		if n := p.ConsumerCount("news"); n != 2 {
			t.Fatalf("there are %d consumers", n)
		}
		goes.close()
		eventually(t, "the server knows", func() bool { return p.ConsumerCount("news") == 1 })
		p.server.post(t, "/news", asText, "x")
		stays.expect("x")
	})
}

// forged are headers with which a client says that it is somebody else.
func forged(i int) []string {
	return []string{"X-Forwarded-For", fmt.Sprintf("203.0.113.%d", i), "Forwarded", fmt.Sprintf("for=203.0.113.%d", i),
		"X-Real-Ip", fmt.Sprintf("203.0.113.%d", i)}
}

func TestTheAddressThatCountsBehindAProxyIsTheClients(t *testing.T) {
	if l, err := net.Listen("tcp", "127.0.0.2:0"); err != nil {
		skip(t, "this machine has one address of its own only")
	} else {
		l.Close()
	}
	for name, tc := range map[string]struct {
		limits eventsource.Limits
		words  string
	}{
		"consumers": {eventsource.Limits{ConsumersPerAddress: 1}, "from one address"},
		"connects":  {eventsource.Limits{ConnectsPerSecond: 0.001}, "connects a second"},
	} {
		t.Run(name, func(t *testing.T) {
			onEachProxy(t, eventsource.Settings{Limits: tc.limits}, func(t *testing.T, p *proxied) {
				for _, address := range []string{"127.0.0.2", "127.0.0.3"} {
					client := p.node
					client.client = p.from(t, address)
					client.client.Timeout = 10 * time.Second // who is not refused gets a stream
					client.follow(t, "/news", forged(1)...)
					for i := range 3 {
						client.do(t, http.MethodGet, "/news", nil, forged(i)...).refused(t, 429, tc.words)
					}
				}
				// Straight to the server, from where no proxy is trusted.
				straight := *p.server
				transport := &http.Transport{DialContext: dialFrom("127.0.0.4", p.server.addr)}
				t.Cleanup(transport.CloseIdleConnections)
				straight.client = &http.Client{Transport: transport, Timeout: 10 * time.Second}
				straight.follow(t, "/news", forged(1)...)
				for i := range 3 {
					straight.do(t, http.MethodGet, "/news", nil, forged(i)...).refused(t, 429, tc.words)
				}
				// What a trusted one says counts: the test is one, too.
				for i := range 3 {
					p.server.follow(t, "/news", forged(i)...)
				}
			})
		})
	}
}

func TestTheEndOfAServerReachesConsumersBehindAProxy(t *testing.T) {
	onEachProxy(t, eventsource.Settings{}, func(t *testing.T, p *proxied) {
		s := p.follow(t, "/news")
		p.server.post(t, "/news", asText, "last")
		if err := p.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.expect("last")
		if data, retry := s.ended(); data != `{"reason":"draining"}` || retry == "" {
			t.Errorf("the stream ended with %q and the retry %q", data, retry)
		}
	})
}
