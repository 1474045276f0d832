//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource/internal/brokertest"
)

// A rabbit is a connection to RabbitMQ of a test's own, and the names of its queues.
type rabbit struct {
	t       *testing.T
	url     string
	prefix  string
	channel *amqp.Channel
}

// openRabbit connects to RabbitMQ, or skips the test. The queues of the ids are deleted
// when it ends.
func openRabbit(t *testing.T, ids ...string) *rabbit {
	t.Helper()
	r := &rabbit{t: t, url: strings.TrimSuffix(brokertest.RabbitMQ(t), "/") + "/", prefix: "test-" + uuid.NewString()[:8] + "-"}
	conn, err := amqp.Dial(r.url)
	if err != nil {
		t.Fatal(err)
	}
	if r.channel, err = conn.Channel(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, id := range ids {
			r.channel.QueueDelete(r.prefix+id, false, false, false)
		}
		conn.Close()
	})
	return r
}

func (r *rabbit) publish(id, payload string) {
	r.t.Helper()
	if err := r.channel.PublishWithContext(r.t.Context(), "", r.prefix+id, true, false, amqp.Publishing{Body: []byte(payload)}); err != nil {
		r.t.Fatal(err)
	}
}

// A queueStream is what comes from a queue.
type queueStream struct {
	t     *testing.T
	res   *http.Response
	lines *bufio.Scanner
}

// consume asks for a queue, and waits until it has it.
func consume(t *testing.T, url string, header ...string) queueStream {
	t.Helper()
	res := ask(t, http.MethodGet, url, header...)
	t.Cleanup(func() { res.Body.Close() })
	s := queueStream{t, res, bufio.NewScanner(res.Body)}
	if res.StatusCode != http.StatusOK || !s.lines.Scan() || !strings.HasPrefix(s.lines.Text(), "retry: ") {
		t.Fatalf("%s: %s %q", url, res.Status, s.lines.Text())
	}
	return s
}

// gets fails the test unless this is the data of the next event.
func (s queueStream) gets(want string) {
	s.t.Helper()
	for s.lines.Scan() {
		if data, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok {
			if data != want {
				s.t.Fatalf("got %q, want %q", data, want)
			}
			return
		}
	}
	s.t.Fatalf("the stream ended before %q: %v", want, s.lines.Err())
}

// brokersUp waits until so many of a server's brokers are connected.
func brokersUp(t *testing.T, srv *process, n int) {
	t.Helper()
	until(t, fmt.Sprintf("%d brokers are connected", n), func() bool {
		return strings.Count(srv.stderr.String(), "a broker of queues is connected") == n
	})
}

// Every command of the chapter on eventsourced in docs/migrating.md is run as it stands
// there, but for the port, the broker and the names of the queues, and prints what the
// chapter says.
func TestThePageOfEventsourced(t *testing.T) {
	needs(t, "curl")
	needs(t, "amqp-publish")
	r := openRabbit(t, "alice", "bob")
	dir := folderWithProgram(t)
	if err := os.Mkdir(filepath.Join(dir, "examples"), 0o700); err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../../examples/eventsourced.yml")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(freePorts(t, 1)[0])
	here := strings.NewReplacer("2069", port, "amqp://guest:guest@localhost:5672/", r.url,
		"--server localhost", "-u "+strings.TrimSuffix(r.url, "/"), "id=alice", "id="+r.prefix+"alice", "-r alice", "-r "+r.prefix+"alice",
		"id=bob", "id="+r.prefix+"bob", "-r bob", "-r "+r.prefix+"bob", "localhost:5672/", strings.TrimPrefix(r.url, "amqp://guest:guest@"))
	if err := os.WriteFile(filepath.Join(dir, "examples/eventsourced.yml"), []byte(here.Replace(string(example))), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openShell(t, dir, "RUN_AS_EVENTSOURCE=1")
	if blocks := s.follow(migration(t, "eventsourced"), here); blocks < 10 {
		t.Errorf("%d blocks are few", blocks)
	}
}

// folderWithProgram returns a folder with the program in it, beside which it finds
// config.yml.
func folderWithProgram(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, "eventsource"), os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What the page of eventsourced documents besides, of the configuration that stands in
// for it.
func TestTheExampleDoesWhatEventsourcedDid(t *testing.T) {
	r := openRabbit(t, "A", "B")
	nodes := fmt.Sprintf("EVENTSOURCE_QUEUES__NODES=%s, %s", r.url, r.url) // the same one, repeated
	srv := serving(t, []string{nodes}, "-c", "../../examples/eventsourced.yml", "--port", "0")
	brokersUp(t, srv, 2)
	a, b := consume(t, srv.url+"/?id="+r.prefix+"A"), consume(t, srv.url+"/?id="+r.prefix+"B")
	for k, want := range map[string]string{
		"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET, OPTIONS",
		"Access-Control-Allow-Headers": "Content-Type, Accept, Cache-Control",
		"Content-Type":                 "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no",
	} {
		if got := a.res.Header.Values(k); len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q", k, got)
		}
	}
	preflight, _ := request(t, http.MethodOptions, srv.url+"/", "Origin", "https://a.example",
		"Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "cache-control")
	if preflight.StatusCode >= 300 || preflight.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("a preflight got %s %v", preflight.Status, preflight.Header)
	}
	r.publish("A", "for a")
	r.publish("B", "for b")
	a.gets("for a")
	b.gets("for b")
	if res, body := get(t, srv.url+"/?id="+r.prefix+"A"); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "has a consumer already") {
		t.Errorf("the second got %s %s", res.Status, body)
	}
	if _, err := r.channel.QueueDeclare(r.prefix+"A", true, false, false, false, amqp.Table{"x-expires": 1800 * 1000}); err != nil {
		t.Errorf("the queue has another expiry: %v", err)
	}

	_, body := get(t, srv.url+"/debug/vars")
	var vars struct {
		Queues struct {
			Events uint64
			Nodes  []struct {
				URL       string
				Connected bool
				Consumers int
			}
		}
		MemStats map[string]any
	}
	err := json.Unmarshal([]byte(body), &vars)
	if q := vars.Queues; err != nil || q.Events != 2 || len(q.Nodes) != 2 || q.Nodes[0].Consumers != 1 || q.Nodes[1].Consumers != 1 || vars.MemStats["HeapAlloc"] == nil {
		t.Errorf("/debug/vars: %v %.2000s", err, body)
	}
	_, metrics := get(t, srv.url+"/metrics")
	for _, want := range []string{"\neventsource_queue_events_total 2\n", `eventsource_queue_node_connected{node="2",url="`,
		"\neventsource_queue_turned_away_total{reason=\"busy\"} 1\n", `eventsource_queue_consumers{node="1",url="`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %q", want)
		}
	}
	if strings.Contains(metrics+srv.stderr.String(), r.prefix) || strings.Contains(metrics+body+srv.stderr.String(), "guest:guest") {
		t.Error("a page or the log names a queue or a password")
	}
	srv.Process.Signal(syscall.SIGTERM)
	var ending strings.Builder
	for a.lines.Scan() {
		ending.WriteString(a.lines.Text() + "\n")
	}
	if !strings.Contains(ending.String(), `data: {"reason":"draining"}`) || srv.status(t) != 0 {
		t.Errorf("it ends with %q", ending.String())
	}
}

func TestPatternsOfEventsourced(t *testing.T) {
	r := openRabbit(t, "1", "2", "queue-1-2-name")
	for _, test := range []struct{ pattern, query, id string }{
		{"${query:id}", "?id=PREFIX1", "1"},
		{"${cookie:sid}", "", "2"},
		{"PREFIXqueue-${query:n}-${cookie:n}-name", "?n=1", "queue-1-2-name"},
	} {
		named := strings.NewReplacer("PREFIX", r.prefix)
		// As text of a file without quotes, too.
		file := write(t, "config.yml", "queues:\n  nodes: "+r.url+"\n  pattern: "+named.Replace(test.pattern)+"\n")
		srv := serving(t, nil, "-c", file, "--port", "0")
		brokersUp(t, srv, 1)
		s := consume(t, srv.url+"/queue"+named.Replace(test.query), "Cookie", "sid="+r.prefix+"2; n=2")
		r.publish(test.id, "found")
		s.gets("found")
		srv.Process.Kill()
	}
}

func TestADashCAtTheEndPrintsTheSetUp(t *testing.T) {
	env := []string{"EVENTSOURCE_QUEUES__NODES=amqp://joe:geheim@a.example", "EVENTSOURCE_QUEUES__PATTERN=x-${query:id}", "EVENTSOURCE_QUEUES__EXPIRES=1800"}
	r := run(t, env, "", "-c")
	if r.status != 0 || strings.Contains(r.stdout, "geheim") || !strings.Contains(r.stdout, "- amqp://********@a.example\n") ||
		!strings.Contains(r.stdout, "  pattern: x-${query:id}\n") || !strings.Contains(r.stdout, "  expires: 30m\n") {
		t.Errorf("it printed %+v", r)
	}
	run(t, env, "", "config").wants(t, 0, r.stdout, "")
	file := write(t, "config.yml", "port: 1234\n")
	if r := run(t, nil, "", "--config", file, "-c"); r.status != 0 || !strings.Contains(r.stdout, "port: 1234\n") {
		t.Errorf("it printed %+v", r)
	}
	if r := run(t, nil, "", "subscribe", "a", "-c"); r.status != statusUsage {
		t.Errorf("a command took it: %+v", r)
	}
}

func TestQueuesThatCantBeAreToldWithTheirPlace(t *testing.T) {
	const nodes = "queues:\n  nodes: [amqp://localhost]\n"
	for _, test := range []struct{ file, want string }{
		{"queues: {nodes: [amqp://localhost, 'redis://u:geheim@h']}", "FILE:1: queues.nodes[1]: is no URL of a broker, such as amqp://guest:guest@localhost:5672/ or amqps://…; in a name or password write what is no letter and no digit as % and two hexadecimal digits"},
		{"queues: {nodes: {a: geheim}}", `FILE:1: queues.nodes: is no list of URLs; give one such as ["amqp://guest:guest@localhost:5672/"]`},
		{nodes + "  pattern: '${id}'\n", "FILE:3: queues.pattern: ${id} is neither ${query:NAME} nor ${cookie:NAME}"},
		{nodes + "  expires: 0\n", "FILE:3: queues.expires: 0 would have a queue go with its consumer; give a duration such as 30m, or a number of seconds"},
		{nodes + "  expires: 1200h\n", "FILE:3: queues.expires: 1200h0m0s is not between 1ms and 1193h2m47.295s; give one such as 30m"},
		{nodes + "  headers: {Transfer-Encoding: identity}\n", "FILE:3: queues.headers: Transfer-Encoding is the server's to set, which frames the response; leave it out"},
		{nodes + "  headers: {Content-Type: text/plain}\n", `FILE:3: queues.headers: Content-Type: "text/plain" is no stream of events; give text/event-stream, or text/event-stream; charset=utf-8`},
		{nodes + "  event: '{x}'\n", `FILE:3: queues.event: "{x}": there is no {x} here; there are {type}, {routing_key}, {app_id}, {header:NAME}`},
		{nodes + "  path: queue\n", `FILE:3: queues.path: "queue" does not begin with /; give one such as /queue`},
		{nodes + "  path: /admin\n", `FILE:3: queues.path: "/admin" can't be it: "admin" is reserved: the first tokens all, api, admin, debug, health, metrics, favicon.ico and @me are reserved; give one such as /queue`},
		{nodes + "  path: /in\nsources: [{type: webhook, channel: a, path: /in}]\n", `FILE:3: queues.path: "/in" is a source's; give another`},
	} {
		file := write(t, "config.yml", test.file)
		run(t, nil, "", "config", "--check", "-c", file).wants(t, statusUsage, "", "eventsource: configuration: "+strings.ReplaceAll(test.want, "FILE:", file+":")+"\n")
	}
	// A broker that is away is no mistake.
	srv := serving(t, []string{"EVENTSOURCE_QUEUES__NODES=amqp://127.0.0.1:1"}, "-c", quick(t, ""), "--port", "0")
	until(t, "it is logged", func() bool { return strings.Contains(srv.stderr.String(), "a broker of queues is not connected") })
	start := time.Now()
	if res, _ := get(t, srv.url+"/queue?id=1"); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || time.Since(start) > time.Second {
		t.Errorf("a request got %s", res.Status)
	}
	if res, _ := get(t, srv.url+"/health"); res.StatusCode != http.StatusOK {
		t.Errorf("/health is %s", res.Status)
	}
}
