package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// quick has consumers come back soon, and no file of the machine's read.
func quick(t *testing.T, more string) string {
	return write(t, "config.yml", "retry: 50ms\n"+more)
}

func TestSubscribeComesBackAfterAKillAndTellsOfTheGap(t *testing.T) {
	file := quick(t, "")
	srv := serving(t, nil, "-c", file, "--port", "0")
	env := []string{"EVENTSOURCE_URL=" + srv.url}
	sub := start(t, env, "subscribe", "updates", "-n", "3")
	followed(t, srv.url+"/updates", 1)

	r := run(t, env, "", "publish", "updates", "one")
	if !regexp.MustCompile(`^[0-9a-f-]{36}\n$`).MatchString(r.stdout) || r.status != 0 {
		t.Fatalf("publish: %+v", r)
	}
	if got := sub.line(t); got != "one" {
		t.Fatalf("got %q", got)
	}

	srv.Process.Kill()
	<-srv.ended
	if r := run(t, env, "", "publish", "updates", "lost"); r.status != statusFailed || !strings.HasPrefix(r.stderr, "eventsource: can't reach "+srv.url+": ") {
		t.Fatalf("publish to nobody: %+v", r)
	}
	again := serving(t, nil, "-c", file, "--port", srv.url[strings.LastIndexByte(srv.url, ':')+1:])
	if again.url != srv.url {
		t.Fatalf("it listens on %s, not %s", again.url, srv.url)
	}
	run(t, env, "two", "publish", "updates")
	run(t, env, "three\n", "publish", "updates", "-")
	for _, want := range []string{"two", "three"} {
		if got := sub.line(t); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if status := sub.status(t); status != 0 {
		t.Errorf("subscribe ended with %d", status)
	}
	said := sub.stderr.String()
	if !strings.Contains(said, "; trying again in ") || strings.Count(said, "Events are missing: the server does not keep all that came after "+strings.TrimSpace(r.stdout)) != 1 {
		t.Errorf("subscribe said: %s", said)
	}
}

func TestSIGTERMDrainsAndEndsWithZero(t *testing.T) {
	srv := serving(t, nil, "-c", quick(t, ""), "--port", "0")
	res, err := http.Get(srv.url + "/updates")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	srv.Process.Signal(syscall.SIGHUP) // which must not end it
	until(t, "SIGHUP is logged", func() bool { return strings.Contains(srv.stderr.String(), "msg=reloaded") })
	srv.Process.Signal(syscall.SIGTERM)
	stream := bufio.NewScanner(res.Body)
	last := ""
	for stream.Scan() {
		if stream.Text() != "" {
			last = stream.Text()
		}
	}
	if last != `data: {"reason":"draining"}` {
		t.Errorf("the stream ended with %q", last)
	}
	if status := srv.status(t); status != 0 {
		t.Errorf("ended with %d: %s", status, srv.stderr)
	}
	if log := srv.stderr.String(); !strings.Contains(log, "msg=stopping signal=terminated") || !strings.Contains(log, "msg=stopped\n") {
		t.Errorf("it logged: %s", log)
	}
}

func TestASecondSignalEndsItAtOnce(t *testing.T) {
	srv := serving(t, nil, "-c", quick(t, "drain: 10m\n"), "--port", "0")
	// Who has sent half a request keeps the server from its end.
	conn, err := net.Dial("tcp", strings.Replace(strings.TrimPrefix(srv.url, "http://"), "localhost", "127.0.0.1", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "POST /updates HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatal(line, err)
	}
	srv.Process.Signal(syscall.SIGTERM)
	until(t, "it drains", func() bool { return strings.Contains(srv.stderr.String(), "msg=draining") })
	srv.Process.Signal(os.Interrupt)
	if status := srv.status(t); status != 1 {
		t.Errorf("ended with %d: %s", status, srv.stderr)
	}
	if !strings.Contains(srv.stderr.String(), "stopped at once") {
		t.Errorf("it logged: %s", srv.stderr)
	}
}

func TestLogsCanBeJSON(t *testing.T) {
	srv := serving(t, []string{"EVENTSOURCE_LOG__FORMAT=json"}, "-c", quick(t, ""), "--port", "0", "--log-level", "debug")
	srv.Process.Signal(os.Interrupt)
	if status := srv.status(t); status != 0 {
		t.Fatalf("ended with %d: %s", status, srv.stderr)
	}
	seen := map[any]bool{}
	for line := range strings.Lines(srv.stderr.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		seen[entry["msg"]] = true
		if n, _ := entry["descriptors"].(float64); entry["msg"] == "listening" && n <= 0 && runtime.GOOS == "linux" {
			t.Errorf("it does not say how many descriptors it may open: %s", line)
		}
	}
	if !seen["listening"] || !seen["stopped"] {
		t.Errorf("it logged: %v", seen)
	}
}

func TestAnAddressThatIsTakenIsToldWithWhatToDo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	run(t, nil, "", "serve", "--port", port).wants(t, 1, "",
		"eventsource: can't listen on 127.0.0.1:"+port+": another program listens there; stop it, or give another --host and --port, or --port 0 for any free one\n")
	run(t, []string{"EVENTSOURCE_OPERATIONS=" + port}, "", "--port", "0").wants(t, 1, "",
		"eventsource: can't listen on 127.0.0.1:"+port+": another program listens there; stop it, or give another address as operations\n")
	run(t, nil, "", "serve", "--host", "192.0.2.1").wants(t, 1, "",
		"eventsource: can't listen on 192.0.2.1:8080: it is no address of this machine; give one that is, or 0.0.0.0 for all of them\n")
}

func TestHealthcheckKnowsTheConfiguration(t *testing.T) {
	srv := serving(t, nil, "-c", quick(t, "host: 0.0.0.0\nbase_path: /subscribe\n"), "--port", "0")
	port := srv.url[strings.LastIndexByte(srv.url, ':')+1:]
	env := []string{"EVENTSOURCE_HOST=0.0.0.0", "EVENTSOURCE_PORT=" + port, "EVENTSOURCE_BASE_PATH=/subscribe"}
	run(t, env, "", "healthcheck").wants(t, 0, "ok\n", "")
	run(t, nil, "", "healthcheck", "--url", srv.url).wants(t, 0, "ok\n", "")
	run(t, nil, "", "healthcheck", "--port", "0").wants(t, 2, "", "eventsource: port 0 is any free one, which only the server knows: give --url\n")

	srv.Process.Kill()
	<-srv.ended
	if r := run(t, env, "", "healthcheck"); r.status != 1 || !strings.HasPrefix(r.stderr, "eventsource: can't reach http://127.0.0.1:"+port+": ") {
		t.Errorf("without a server: %+v", r)
	}
	other := httpServer(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("hello")) })
	run(t, nil, "", "healthcheck", "--url", other).wants(t, 1, "", "eventsource: /health answered 200 OK and no document of this server\n")
	draining := httpServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		w.Write([]byte(`{"status":"draining","ready":false}`))
	})
	run(t, nil, "", "healthcheck", "--url", draining).wants(t, 1, "", "eventsource: the server is not ready: draining\n")
}

func TestPagesOfOperators(t *testing.T) {
	srv := serving(t, []string{"EVENTSOURCE_AUTH_TOKEN=geheim"}, "-c", quick(t, ""), "--port", "0")
	env := []string{"EVENTSOURCE_URL=" + srv.url, "EVENTSOURCE_AUTH_TOKEN=geheim"}
	run(t, env, "", "publish", "updates", "-q", "hello").wants(t, 0, "", "")
	for _, page := range []string{"/metrics", "/debug/vars"} {
		if res, body := get(t, srv.url+page); res.StatusCode != 401 || res.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s without a token: %s %s", page, res.Status, body)
		}
		if res, body := request(t, "POST", srv.url+page, "Auth-Token", "geheim"); res.StatusCode != 405 || res.Header.Get("Allow") != "GET, HEAD" ||
			!strings.Contains(body, "POST is not possible here: use GET or HEAD") {
			t.Errorf("POST %s: %s %s", page, res.Status, body)
		}
	}
	_, metrics := get(t, srv.url+"/metrics", "Auth-Token", "geheim")
	for _, want := range []string{
		"\neventsource_events_published_total 1\n", "\neventsource_channels 1\n", "\neventsource_backend_available 1\n",
		"\neventsource_refusals_total{status=\"401\"} ", "\neventsource_disconnects_total{reason=\"slow\"} 0\n",
		"\ngo_goroutines ", "\neventsource_build_info{",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %q", want)
		}
	}
	_, body := get(t, srv.url+"/debug/vars", "Auth-Token", "geheim")
	var vars struct {
		EventSource map[string]any
		MemStats    map[string]any
		CmdLine     any
	}
	if err := json.Unmarshal([]byte(body), &vars); err != nil || vars.EventSource["published"] != 1.0 || vars.MemStats["HeapAlloc"] == nil || vars.CmdLine != nil {
		t.Errorf("/debug/vars: %v %.300s", err, body)
	}
	if strings.Contains(metrics+body+srv.stderr.String(), "geheim") || strings.Contains(metrics, "updates") {
		t.Error("a page shows the token or a channel")
	}
}

func TestTheStatusPageSaysWhatRuns(t *testing.T) {
	file := write(t, "events.yml", "base_path: /subscribe\nauth_token: geheim\nbackend: sqlite:"+filepath.Join(t.TempDir(), "geheim.db")+"\n")
	srv := serving(t, nil, "-c", file, "--port", "0")
	if res, body := get(t, srv.url+"/admin"); res.StatusCode != 200 || res.Request.URL.Path != "/admin/" || !strings.Contains(body, "<title>EventSource</title>") {
		t.Errorf("/admin: %s %.200s", res.Status, body)
	}
	if res, body := get(t, srv.url+"/admin/status.json"); res.StatusCode != 401 {
		t.Errorf("without a token: %s %s", res.Status, body)
	}
	consumer := ask(t, "GET", srv.url+"/subscribe/details/2665")
	defer consumer.Body.Close()
	_, body := get(t, srv.url+"/admin/status.json", "Auth-Token", "geheim")
	var status struct {
		Node, Status string
		Build        struct{ Version, Go string }
		Backend      struct{ Kind, State string }
		Connections  []struct {
			Path      string `json:"request_path"`
			Namespace string
		}
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if status.Node == "" || status.Status != "OK" || status.Build.Version == "" || status.Build.Go != runtime.Version() || status.Backend.Kind != "sqlite" ||
		status.Backend.State != "ok" || len(status.Connections) != 1 || status.Connections[0].Path != "/subscribe/details.2665" || status.Connections[0].Namespace != "/details.2665" {
		t.Errorf("it says %s", body)
	}
	if strings.Contains(body, "geheim") {
		t.Errorf("it shows a secret: %s", body)
	}
}

func TestOperationsHasAnAddressOfItsOwn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	env := []string{"EVENTSOURCE_AUTH_TOKEN=geheim", "EVENTSOURCE_OPERATIONS=:" + port}
	srv := serving(t, env, "-c", quick(t, ""), "--port", "0")
	operators := "http://127.0.0.1:" + port
	for url, want := range map[string]int{
		operators + "/health": 200, operators + "/health/live": 200, operators + "/health/ready": 200,
		operators + "/metrics": 200, operators + "/debug/vars": 200, operators + "/updates": 404, operators + "/": 404,
		operators + "/admin": 200, operators + "/admin/": 200, operators + "/admin/page.js": 200, operators + "/admin/status.json": 200, operators + "/admin/x": 404,
		srv.url + "/health": 200, srv.url + "/metrics": 404, srv.url + "/debug/vars": 404, srv.url + "/admin/": 404, srv.url + "/admin/status.json": 404,
	} {
		res, body := get(t, url)
		if res.StatusCode != want || want == 404 && res.Header.Get("Content-Type") != "application/problem+json" || res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %s %v %.200s", url, res.Status, res.Header, body)
		}
	}
	run(t, env, "", "healthcheck").wants(t, 0, "ok\n", "")
	stream := ask(t, "GET", operators+"/admin/stream")
	defer stream.Body.Close()
	srv.Process.Signal(syscall.SIGTERM)
	if text, err := io.ReadAll(stream.Body); err != nil || !strings.HasSuffix(string(text), "event: eventsource.end\ndata: {\"reason\":\"draining\"}\n\n") {
		t.Errorf("the stream of the status page: %v %.100q", err, text)
	}
	if status := srv.status(t); status != 0 {
		t.Errorf("ended with %d: %s", status, srv.stderr)
	}
}

func TestTheTwoLinesThatAreShownWork(t *testing.T) {
	needs(t, "curl")
	for _, test := range []struct{ name, file string }{
		{"open", ""},
		{"below a path", "base_path: /subscribe/\n"},
		{"with a token", "auth_token: geheim\npublic: []\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := quick(t, test.file)
			srv := serving(t, nil, "-c", file, "--port", "0")
			m := &Main{}
			cmd := m.serveCommand()
			cmd.ParseFlags([]string{"-c", file})
			c, err := m.configure(cmd.Flags())
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for line := range strings.Lines(tryLines(c, srv.url)) {
				if strings.HasPrefix(line, "  curl") {
					lines = append(lines, strings.TrimSpace(strings.ReplaceAll(line, "TOKEN", "geheim")))
				}
			}
			if len(lines) != 2 {
				t.Fatalf("%q", lines)
			}
			follow := launch(t, nil, "sh", "-c", "exec "+lines[0])
			for line := follow.line(t); !strings.HasPrefix(line, "id:"); line = follow.line(t) {
			}
			if out, err := exec.Command("sh", "-c", lines[1]).CombinedOutput(); err != nil || !strings.Contains(string(out), `"channels":["updates"]`) {
				t.Fatalf("%s: %v %s", lines[1], err, out)
			}
			for line := follow.line(t); line != "data: hello, world"; line = follow.line(t) {
			}
		})
	}
}

// curlHome has curl connect to url where a page says http://localhost:8080.
func curlHome(t *testing.T, url string) string {
	path := write(t, ".curlrc", "silent\nconnect-to = \"localhost:8080:"+strings.Replace(strings.TrimPrefix(url, "http://"), "localhost", "127.0.0.1", 1)+"\"\n")
	return "CURL_HOME=" + filepath.Dir(path)
}

// sh runs what a page says to type.
func sh(t *testing.T, env, line string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
	cmd.Env = append(bareEnvironment(), env)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

func needs(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI has to install %s", program)
		}
		t.Skipf("%s is not installed", program)
	}
}

// The lines are those of pillarbox-event-dispatcher's page, and shorter ones.
func TestThePageOfPillarbox(t *testing.T) {
	needs(t, "curl")
	srv := serving(t, nil, "-c", "../../examples/pillarbox.yml", "--port", "0")
	home := curlHome(t, srv.url)
	one := launch(t, []string{home}, "sh", "-c", "exec curl -n http://localhost:8080/events")
	two := launch(t, []string{home}, "sh", "-c", "exec curl http://localhost:8080/events")
	followed(t, srv.url+"/events", 2)

	id := regexp.MustCompile(`^\{"id":"[0-9a-f-]{36}"\}\n$`)
	for _, line := range []string{
		`curl -X POST http://localhost:8080/api/events -H 'Content-Type: application/json' -d '{"msg":"data"}'`,
		`curl -X POST http://localhost:8080/api/events \
     -H 'Content-Type: application/json' \
     -d "{\"msg\": \"data\", \"timestamp\": \"1700000000\"}"`,
	} {
		if got := sh(t, home, line); !id.MatchString(got) {
			t.Errorf("%s: %s", line, got)
		}
	}
	if got := sh(t, home, `curl http://localhost:8080/health`); !strings.Contains(got, `"ready":true`) || !strings.Contains(got, "webhook") {
		t.Errorf("health: %s", got)
	}
	if res, _ := get(t, srv.url+"/health", "Origin", "https://a.example"); res.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("no CORS: %v", res.Header)
	}
	// Nothing is stored: who comes later gets nothing of it.
	if r := run(t, []string{"EVENTSOURCE_URL=" + srv.url}, "", "channels"); r.stdout != "events\n" {
		t.Errorf("channels: %+v", r)
	}

	// curl without -N shows what it has at the end.
	srv.Process.Signal(syscall.SIGTERM)
	for _, p := range []*process{one, two} {
		var data []string
		for line := range p.lines {
			if d, ok := strings.CutPrefix(line, "data: {\"msg"); ok {
				data = append(data, d)
			}
		}
		if len(data) != 2 || data[0] != `":"data"}` || data[1] != `": "data", "timestamp": "1700000000"}` {
			t.Errorf("a consumer got %q", data)
		}
	}
}

// The lines are those of the page of railsmechanic/eventsource.
func TestThePageOfRailsmechanic(t *testing.T) {
	needs(t, "curl")
	srv := serving(t, nil, "-c", "../../examples/railsmechanic.yml", "--port", "0")
	home := curlHome(t, srv.url)
	follow := launch(t, []string{home}, "sh", "-c", "exec curl http://localhost:8080/updates")
	followed(t, srv.url+"/updates", 1)
	for _, line := range []string{
		`curl -H "Content-Type: application/json" -d '{"id":123, "event":"my-event", "data": "Hello World!"}' http://localhost:8080/updates`,
		`curl -H "Content-Type: application/json" -d '{"id":456, "event":"my-event", "data": "Hello Again!"}' http://localhost:8080/updates`,
		`curl -X POST -H "Content-Type: application/json" -d '{"id":1, "event":"event", "data": "hello"}' http://localhost:8080/all`,
	} {
		if got := sh(t, home, line); !strings.Contains(got, `"consumers":1`) {
			t.Errorf("%s: %s", line, got)
		}
	}
	// curl waits for a body after HEAD, so -i shows the head and -m ends it.
	head := sh(t, home, `curl -i -m 2 -X HEAD -H "Connection: close" http://localhost:8080/updates || true`)
	if !strings.Contains(head, "X-Consumer-Count: 1\r\n") || !strings.Contains(head, "X-Channel-Exists: true\r\n") {
		t.Errorf("HEAD: %s", head)
	}
	head = sh(t, home, `curl -i -m 2 -X HEAD -H "Connection: close" http://localhost:8080/all || true`)
	if !strings.Contains(head, "X-Available-Channels: [updates]\r\n") {
		t.Errorf("HEAD all: %s", head)
	}
	if got := sh(t, home, `curl -X DELETE http://localhost:8080/updates`); !strings.Contains(got, `"disconnected":1`) {
		t.Errorf("DELETE: %s", got)
	}
	var got strings.Builder
	for line := range follow.lines {
		got.WriteString(line + "\n")
	}
	for _, want := range []string{"id: 123\nevent: my-event\ndata: Hello World!\n\n", "id: 456\nevent: my-event\ndata: Hello Again!\n\n", "id: 1\nevent: event\ndata: hello\n\n"} {
		if !strings.Contains(got.String(), want) {
			t.Errorf("the consumer got\n%s\nwithout\n%s", &got, want)
		}
	}
}

func TestCommandLinesThatAreWrongEndWithTwo(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"pubish"}, "eventsource: unknown command \"pubish\" for \"eventsource\"\n\nDid you mean this?\n\tpublish\n\nTry: eventsource --help\n"},
		{[]string{"serve", "x"}, "eventsource: unknown command \"x\" for \"eventsource serve\"\nTry: eventsource --help\n"},
		{[]string{"serve", "--prot", "1"}, "eventsource: unknown flag: --prot\nTry: eventsource --help\n"},
		{[]string{"publish"}, "eventsource: accepts between 1 and 2 arg(s), received 0\nTry: eventsource --help\n"},
		{[]string{"publish", "a", "b", "--url", "localhost:8080"}, "eventsource: --url: no URL such as http://localhost:8080\n"},
		{[]string{"publish", "a", "b", "--lines"}, "eventsource: --lines reads the standard input: leave DATA out\n"},
		{[]string{"publish", "a", "b", "--id", ""}, "eventsource: --id is empty: leave it out and the server gives one\n"},
		{[]string{"publish", "a", "b", "--event", "e", "--content-type", "application/json"},
			"eventsource: --event: with --content-type application/json the data says this itself\n"},
		{[]string{"subscribe"}, "eventsource: requires at least 1 arg(s), only received 0\nTry: eventsource --help\n"},
		{[]string{"subscribe", "a", "-n", "0"}, "eventsource: --count must be at least 1: leave it out to follow without end\n"},
		{[]string{"subscribe", "a", "-v", "--json"}, "eventsource: --verbose and --json exclude each other: give one of them\n"},
	} {
		run(t, nil, "", test.args...).wants(t, statusUsage, "", test.want)
	}
}

func TestEveryCommandHasHelpWithExamples(t *testing.T) {
	m := &Main{}
	for _, cmd := range m.root().Commands() {
		r := run(t, nil, "", cmd.Name(), "--help")
		if r.status != 0 || r.stderr != "" || !strings.Contains(r.stdout, cmd.Short) && !strings.Contains(r.stdout, "Usage:") {
			t.Errorf("%s: %+v", cmd.Name(), r)
		}
		if cmd.Name() != "version" && !strings.Contains(r.stdout, "Examples:\n") {
			t.Errorf("%s has no examples", cmd.Name())
		}
	}
	if r := run(t, nil, "", "version"); !regexp.MustCompile(`^eventsource \S+\ncommit .+\ngo1\.\S+ \w+/\w+\n$`).MatchString(r.stdout) {
		t.Errorf("version: %+v", r)
	}
}
