package eventsource_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sse "github.com/tmaxmax/go-sse"

	"github.com/railsmechanic/eventsource"
)

// A cutter stands between a client and a server, and cuts connections where it
// is told to.
type cutter struct {
	net.Listener
	to string

	mu    sync.Mutex
	conns map[net.Conn]bool
	after int // of the next connection's answer, bytes until it is cut; 0: never
	count int // connections so far
	shut  bool
	wait  sync.WaitGroup
}

// newCutter returns a cutter in front of an address. The first connection is cut
// after so many bytes of its answer, 0 being never.
func newCutter(t *testing.T, to string, after int) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &cutter{Listener: l, to: to, conns: map[net.Conn]bool{}, after: after}
	p.wait.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.cut()
		p.wait.Wait()
	})
	return p
}

func (p *cutter) accept() {
	for {
		c, err := p.Accept()
		if err != nil {
			return
		}
		p.wait.Go(func() { p.pass(c) })
	}
}

// pass carries one connection.
func (p *cutter) pass(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer up.Close()
	p.mu.Lock()
	if p.shut {
		p.mu.Unlock()
		return
	}
	p.conns[c], p.conns[up] = true, true
	after := p.after
	p.after = 0
	p.count++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, c)
		delete(p.conns, up)
		p.mu.Unlock()
	}()
	p.wait.Go(func() {
		io.Copy(up, c)
		up.Close()
	})
	if after > 0 {
		io.CopyN(c, up, int64(after))
		return
	}
	io.Copy(c, up)
}

// refuse lets no connection through from now on, or lets them again.
func (p *cutter) refuse(shut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = shut
}

// cut cuts every connection.
func (p *cutter) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// connections returns how many there have been.
func (p *cutter) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// A program is another program that runs until the test ends, and what it
// writes.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string // closed at its end
}

func run(t *testing.T, cmd *exec.Cmd) *program {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: cmd, lines: make(chan string, 1000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(p.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.lines <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		cmd.Wait()
	})
	return p
}

// expect reads lines until one is want.
func (p *program) expect(want string) {
	p.t.Helper()
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	var before []string
	for {
		select {
		case line, ok := <-p.lines:
			if line == want && ok {
				return
			}
			if before = append(before, line); !ok {
				p.t.Fatalf("it ended without %q, after %q", want, before)
			}
		case <-timeout.C:
			p.t.Fatalf("it did not write %q within ten seconds, but %q", want, before)
		}
	}
}

func needed(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		skip(t, name+" is not installed")
	}
	return path
}

func TestCurlPublishesAndFollows(t *testing.T) {
	curl := needed(t, "curl")
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		following := run(t, exec.CommandContext(t.Context(), curl, "-sSN", n.url+"/updates"))
		following.expect(": welcome")
		publish := func(args ...string) string {
			t.Helper()
			out, err := exec.CommandContext(t.Context(), curl, append([]string{"-sS"}, args...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return string(out)
		}
		got := publish("-H", "Content-Type: application/json", "-d", `{"id":"1","event":"news","data":"hello"}`, n.url+"/updates")
		if want := `{"id":"1","channels":["updates"],"consumers":1}` + "\n"; got != want {
			t.Errorf("it was answered %q, not %q", got, want)
		}
		for _, line := range []string{"id: 1", "event: news", "data: hello", ""} {
			following.expect(line)
		}
		publish("-d", "data=from+a+form", n.url+"/updates") // what curl sends by itself
		following.expect("data: from a form")
		publish("-H", "Content-Type: text/plain", "--data-binary", "two\nlines", n.url+"/updates")
		following.expect("data: two")
		following.expect("data: lines")
		if got := publish("-I", n.url+"/updates"); !strings.Contains(got, "X-Consumer-Count: 1\r\n") {
			t.Errorf("HEAD was answered %q", got)
		}
		publish("-X", "DELETE", n.url+"/updates")
		following.expect(`data: {"reason":"closed"}`)
		if following.cmd.Wait() != nil || following.cmd.ProcessState.ExitCode() != 0 {
			t.Errorf("curl took the end for an error: %v", following.cmd.ProcessState)
		}
	})
}

func TestAnIndependentGoClientMissesNothingOverACut(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Retry: 20 * time.Millisecond})
		// Cut in the middle of an event, some way into the stream.
		proxy := newCutter(t, n.addr, 3000)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+proxy.Addr().String()+"/news,sport", nil)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		client := sse.Client{HTTPClient: &http.Client{Transport: transport},
			Backoff: sse.Backoff{InitialInterval: 20 * time.Millisecond, MaxInterval: 100 * time.Millisecond}}
		connection := client.NewConnection(request)
		events := make(chan sse.Event, 1000)
		connection.SubscribeToAll(func(e sse.Event) {
			if e.Data != "" { // it dispatches what has an id only, too, which the standard forbids
				events <- e
			}
		})
		ended := make(chan error, 1)
		go func() { ended <- connection.Connect() }()
		eventually(t, "it follows", func() bool { return n.ConsumerCount("news") == 1 })
		const count = 200
		ids := make([]string, count)
		for i := range count {
			channel := []string{"/news", "/sport"}[i%2]
			ids[i] = n.post(t, channel, "text/plain", fmt.Sprintf("event %d\nin two lines", i)).receipt(t).ID
			if i == count/2 {
				eventually(t, "it has been cut off and is back", func() bool {
					return proxy.connections() == 2 && n.ConsumerCount("news") == 1
				})
				proxy.cut()
			}
		}
		for i := range count {
			select {
			case e := <-events:
				if want := fmt.Sprintf("event %d\nin two lines", i); e.Data != want || e.LastEventID != ids[i] {
					t.Fatalf("event %d is %+v, not %q with the id %s", i, e, want, ids[i])
				}
			case err := <-ended:
				t.Fatal("the client gave up:", err)
			case <-time.After(10 * time.Second):
				t.Fatalf("event %d did not come", i)
			}
		}
		if proxy.connections() < 3 {
			t.Errorf("it made %d connections: it was not cut off twice", proxy.connections())
		}
		cancel()
		<-ended
	})
}

// npmPackage is the package of npm that follows streams in Node.
const npmPackage = `{"name": "follow", "private": true, "dependencies": {"eventsource": "4.1.0"}}`

// npmProgram follows with it and prints what comes.
const npmProgram = `
const { EventSource } = require('eventsource');
const es = new EventSource(process.argv[2]);
es.onopen = () => console.log('open');
es.onmessage = (e) => console.log('message ' + e.lastEventId + ' ' + JSON.stringify(e.data));
es.addEventListener('goal', (e) => console.log('goal ' + e.data));
es.addEventListener('eventsource.gap', (e) => console.log('gap ' + e.data));
es.onerror = (e) => console.log('error ' + (e.code || '') + ' ' + es.readyState);
`

func TestTheEventSourceOfNodeMissesNothingOverACut(t *testing.T) {
	nodejs, npm := needed(t, "node"), needed(t, "npm")
	dir := t.TempDir()
	for name, text := range map[string]string{"package.json": npmPackage, "follow.js": npmProgram} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--silent")
	install.Dir = dir
	install.WaitDelay = time.Second
	if out, err := install.CombinedOutput(); err != nil {
		skip(t, fmt.Sprintf("npm can't install the package eventsource: %v: %s", err, out))
	}
	n := newNode(t, &eventsource.Settings{Retry: 50 * time.Millisecond})
	proxy := newCutter(t, n.addr, 0)
	cmd := exec.CommandContext(t.Context(), nodejs, "follow.js", "http://"+proxy.Addr().String()+"/news")
	cmd.Dir = dir
	p := run(t, cmd)
	p.expect("open")
	n.post(t, "/news", "application/json", `{"id":"1","data":"one\n two\n"}`)
	p.expect(`message 1 "one\n two\n"`)
	n.post(t, "/news", "application/json", `{"id":"2","event":"goal","data":{"by":"us"}}`)
	p.expect(`goal {"by":"us"}`)
	proxy.cut()
	n.post(t, "/news", "application/json", `{"id":"3","data":"while it was away"}`)
	p.expect(`message 3 "while it was away"`)
	if a := n.do(t, http.MethodDelete, "/news", nil); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	p.expect("open") // it comes back; what was deleted is behind it
	n.post(t, "/news", "application/json", `{"id":"4","data":"after the delete"}`)
	p.expect(`message 4 "after the delete"`)
}
