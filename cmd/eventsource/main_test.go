package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource/internal/check"
)

// TestMain runs the tests; or, where a test started this very binary as the
// program, the program. It fails when goroutines are left over.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_AS_EVENTSOURCE") != "" {
		main()
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP) // begins a goroutine that never ends
	signal.Stop(signals)
	before := runtime.NumGoroutine()
	status := m.Run()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	tick := time.NewTicker(10 * time.Millisecond)
	for range 500 {
		if runtime.NumGoroutine() <= before {
			os.Exit(status)
		}
		<-tick.C
	}
	fmt.Fprintln(os.Stderr, "goroutines are left over:")
	pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
	os.Exit(1)
}

// A result is what a run in this process ended with.
type result struct {
	status         int
	stdout, stderr string
}

// run runs the program in this process, with no configuration file of the
// machine's.
func run(t *testing.T, env []string, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	m := &Main{Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr, Env: env}
	status := m.Run(t.Context(), args)
	return result{status, stdout.String(), stderr.String()}
}

// wants fails the test unless the run ended so and printed this.
func (r result) wants(t *testing.T, status int, stdout, stderr string) {
	t.Helper()
	if r.status != status || r.stdout != stdout || r.stderr != stderr {
		t.Fatalf("ended with %d\nstdout: %q\nstderr: %q\nwant %d\nstdout: %q\nstderr: %q", r.status, r.stdout, r.stderr, status, stdout, stderr)
	}
}

// write returns the path of a new file with the content.
func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A process is the program in a process of its own.
type process struct {
	*exec.Cmd
	url    string        // of a server
	lines  <-chan string // of its standard output; closed at its end
	stderr *check.Log
	ended  chan struct{} // closed when the process has
}

// start starts the program. It is killed when the test ends.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return launch(t, append(env, "RUN_AS_EVENTSOURCE=1"), program, args...)
}

// bareEnvironment is the environment without what would configure the program.
func bareEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "EVENTSOURCE_") })
}

// launch starts any program likewise.
func launch(t *testing.T, env []string, program string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(program, args...), stderr: &check.Log{}, ended: make(chan struct{})}
	p.Env = append(bareEnvironment(), env...)
	p.Stderr = p.stderr
	pipe, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	p.lines = lines
	go func() {
		for scanner := bufio.NewScanner(pipe); scanner.Scan(); {
			lines <- scanner.Text()
		}
		close(lines)
		p.Wait() // its status is in ProcessState
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("%s wrote: %s", strings.Join(args, " "), p.stderr)
		}
	})
	return p
}

// serving starts a server and waits until it listens.
func serving(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := start(t, env, append([]string{"serve"}, args...)...)
	line := p.line(t)
	url, ok := strings.CutPrefix(line, "Listening on ")
	if !ok {
		t.Fatalf("the first line is %q", line)
	}
	p.url = url
	return p
}

// line returns the next line of the standard output.
func (p *process) line(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			t.Fatalf("it ended: %s", p.stderr)
		}
		return line
	case <-time.After(20 * time.Second):
		t.Fatalf("no line came; on standard error: %s", p.stderr)
	}
	return ""
}

// status waits for the end and returns the exit status.
func (p *process) status(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		t.Fatalf("it did not end: %s", p.stderr)
	}
	return -1
}

// until waits for something to become so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it never came to this: %s", what)
		}
	}
}

// get returns the status and body of a page.
func get(t *testing.T, url string, header ...string) (*http.Response, string) {
	t.Helper()
	return request(t, http.MethodGet, url, header...)
}

// ask sends a request and returns the answer, whose body is still to be read.
func ask(t *testing.T, method, url string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func request(t *testing.T, method, url string, header ...string) (*http.Response, string) {
	t.Helper()
	res := ask(t, method, url, header...)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// followed waits until so many consumers follow a channel.
func followed(t *testing.T, url string, n int, header ...string) {
	t.Helper()
	until(t, fmt.Sprintf("%d consumers at %s", n, url), func() bool {
		res, _ := request(t, http.MethodHead, url, header...)
		return res.Header.Get("X-Consumer-Count") == fmt.Sprint(n)
	})
}
