package main

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A follower is who follows a channel with a token.
type follower struct{ lines <-chan string }

func follow(t *testing.T, url string, header ...string) follower {
	t.Helper()
	res := ask(t, http.MethodGet, url, header...)
	if res.StatusCode != 200 {
		t.Fatalf("following %s was answered %s", url, res.Status)
	}
	lines := make(chan string, 1000)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(lines)
		for stream := bufio.NewScanner(res.Body); stream.Scan(); {
			lines <- stream.Text()
		}
	}()
	t.Cleanup(func() { res.Body.Close(); <-ended })
	return follower{lines}
}

// rest returns what comes until the stream ends.
func (f follower) rest(t *testing.T) string {
	t.Helper()
	late := time.After(20 * time.Second)
	for all := ""; ; {
		select {
		case line, ok := <-f.lines:
			if !ok {
				return all
			}
			all += line + "\n"
		case <-late:
			t.Fatalf("the stream did not end; it got %q", all)
		}
	}
}

// rewrite changes a file, and has a server read it.
func rewrite(t *testing.T, srv *process, file, content string) {
	t.Helper()
	before := strings.Count(srv.stderr.String(), "reloaded")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	srv.Process.Signal(syscall.SIGHUP)
	until(t, "the configuration is read again", func() bool { return strings.Count(srv.stderr.String(), "reloaded") > before })
}

const revoked = "event: eventsource.end\ndata: {\"reason\":\"revoked\"}\n"

func TestAReloadEndsTheStreamsOfWhatIsGoneAndNoOther(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	url, reads := issuerServer(t, key)
	jwt := "jwt: {jwks_url: '" + url + "/?key=geheim'}\n"
	const rest = "auth_token: root\npublic: [open]\nretry: 50ms\n"
	const keys = "keys:\n  - {token: stays, subscribe: a}\n"
	file := write(t, "config.yml", rest+keys+"  - {token: goes, subscribe: a}\n  - {token: loses, subscribe: [a, b]}\n"+jwt)
	srv := serving(t, nil, "-c", file, "--port", "0")
	token := run(t, nil, "", "token", "-c", file, "--key-file", write(t, "key.pem", newPair(t, key).private), "--kid", "first", "--subscribe", "a")
	if token.status != 0 {
		t.Fatalf("%+v", token)
	}
	root := follow(t, srv.url+"/a", "Auth-Token", "root")
	open := follow(t, srv.url+"/open")
	stays := follow(t, srv.url+"/a", "Auth-Token", "stays")
	goes := follow(t, srv.url+"/a", "Auth-Token", "goes")
	loses := follow(t, srv.url+"/a,b", "Auth-Token", "loses")
	keeps := follow(t, srv.url+"/a", "Auth-Token", "loses")
	person := follow(t, srv.url+"/a", "Authorization", "Bearer "+strings.TrimSpace(token.stdout))

	rewrite(t, srv, file, rest+keys+"  - {token: loses, subscribe: a}\n"+jwt)
	for name, f := range map[string]follower{"goes": goes, "loses": loses} {
		if got := f.rest(t); !strings.HasSuffix(strings.TrimSpace(got)+"\n", revoked) {
			t.Errorf("%s got %q", name, got)
		}
	}
	if n := reads.Load(); n != 1 {
		t.Errorf("a set that stayed was read %d times", n)
	}
	rewrite(t, srv, file, rest+keys+"  - {token: loses, subscribe: a}\n"+strings.Replace(jwt, "?key", "?other", 1))
	if got := person.rest(t); !strings.HasSuffix(strings.TrimSpace(got)+"\n", revoked) {
		t.Errorf("as the keys come from elsewhere, the JWT's stream got %q", got)
	}
	person = follow(t, srv.url+"/a", "Authorization", "Bearer "+strings.TrimSpace(token.stdout))
	rewrite(t, srv, file, rest+keys+"  - {token: loses, subscribe: a}\n")
	if got := person.rest(t); !strings.HasSuffix(strings.TrimSpace(got)+"\n", revoked) {
		t.Errorf("without jwt, the JWT's stream got %q", got)
	}
	if res, _ := get(t, srv.url+"/a", "Auth-Token", "goes"); res.StatusCode != 401 {
		t.Errorf("a key that is gone is answered %s", res.Status)
	}
	log := srv.stderr.String()
	for _, want := range []string{`msg=reloaded changed=[keys] keys=2 jwt=1`, `msg=reloaded changed=[jwt] keys=2 jwt=0`} {
		if !strings.Contains(log, want) {
			t.Errorf("%q was not logged: %s", want, log)
		}
	}
	for _, secret := range []string{"root", "stays", "goes", "loses", "geheim", "restart"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q was logged: %s", secret, log)
		}
	}

	run(t, []string{"EVENTSOURCE_URL=" + srv.url, "EVENTSOURCE_AUTH_TOKEN=root"}, "", "publish", "a", "-q", "last").wants(t, 0, "", "")
	srv.Process.Signal(os.Interrupt)
	for name, f := range map[string]follower{"root": root, "open": open, "stays": stays, "keeps": keeps} {
		got := f.rest(t)
		if !strings.Contains(got, `"reason":"draining"`) || strings.Contains(got, "revoked") || strings.Contains(got, "data: last\n") != (name != "open") {
			t.Errorf("%s got %q", name, got)
		}
	}
}

func TestAReloadTakesOverTheLimitsAndNamesWhatWantsARestart(t *testing.T) {
	file := write(t, "config.yml", "retry: 50ms\n")
	srv := serving(t, nil, "-c", file, "--port", "0")
	rewrite(t, srv, file, "retry: 60ms\nlimits: {connects_per_second: 0.001, head: 32KiB}\nlog: {level: debug}\n"+
		"sources: [{type: webhook, channel: a, secret: geheim}]\ncors: {allow_origin: https://a.example}\n")
	first := follow(t, srv.url+"/a")
	res, _ := get(t, srv.url+"/a")
	if res.StatusCode != 429 {
		t.Errorf("the second connect is answered %s", res.Status)
	}
	if res, _ := get(t, srv.url+"/a", "Origin", "https://a.example"); res.Header.Get("Access-Control-Allow-Origin") != "https://a.example" {
		t.Errorf("CORS is not taken over: %v", res.Header)
	}
	log := func() string { return srv.stderr.String() }
	if !strings.Contains(log(), "changed=\"[cors.allow_origin limits.connects_per_second log.level]\"") {
		t.Errorf("it logged: %s", log())
	}
	for _, key := range []string{"retry", "limits.head", "sources"} {
		if n := strings.Count(log(), `msg="changed, but wants a restart to count" key=`+key+"\n"); n != 1 {
			t.Errorf("%s is named %d times: %s", key, n, log())
		}
	}
	if n := strings.Count(log(), "wants a restart"); n != 3 || strings.Contains(log(), "geheim") {
		t.Errorf("%d keys want a restart: %s", n, log())
	}
	_, metrics := get(t, srv.url+"/metrics")
	if !strings.Contains(metrics, `eventsource_limited_total{limit="connects_per_second"} 2`+"\n") {
		t.Errorf("the metrics are %s", metrics)
	}

	// What is wrong changes nothing.
	rewrite(t, srv, file, "keys: [{token: a}]\nprot: 1\n")
	if !strings.Contains(log(), "level=ERROR msg=\"not reloaded") || !strings.Contains(log(), `2: unknown key \"prot\"`) {
		t.Errorf("it logged: %s", log())
	}
	if res, _ := get(t, srv.url+"/a"); res.StatusCode != 429 {
		t.Errorf("after a wrong configuration it answers %s", res.Status)
	}
	run(t, []string{"EVENTSOURCE_URL=" + srv.url}, "", "publish", "a", "--id", "1", "last").wants(t, 0, "1\n", "")
	got := ""
	for got != "data: last" {
		line, ok := <-first.lines
		if !ok {
			t.Fatal("the consumer went")
		}
		got = line
	}

	// What is less urgent than the new level is not logged.
	if err := os.WriteFile(file, []byte("auth_token: a\nretry: 50ms\nlog: {level: error}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := log()
	srv.Process.Signal(syscall.SIGHUP)
	until(t, "a token is wanted", func() bool { res, _ := get(t, srv.url+"/metrics"); return res.StatusCode == 401 })
	rewrite(t, srv, file, "prot: 1\n")
	if logged := strings.TrimPrefix(log(), before); strings.Contains(logged, "INFO") || !strings.Contains(logged, "level=ERROR") {
		t.Errorf("with log.level error it logged: %s", logged)
	}
}

func TestMetricsCountTokens(t *testing.T) {
	env := []string{"EVENTSOURCE_JWT={key: 01234567890123456789012345678901}", "EVENTSOURCE_AUTH_TOKEN=root"}
	srv := serving(t, env, "-c", quick(t, ""), "--port", "0")
	token := strings.TrimSpace(run(t, env, "", "token", "--admin").stdout)
	for range 2 { // the second time it is remembered
		if res, _ := get(t, srv.url+"/debug/vars", "Auth-Token", token); res.StatusCode != 200 {
			t.Errorf("answered %s", res.Status)
		}
	}
	for n := range 3 {
		get(t, srv.url+"/metrics", "Auth-Token", token[:len(token)-4-n])
	}
	_, metrics := get(t, srv.url+"/metrics", "Auth-Token", "root")
	for result, n := range map[string]int{"accepted": 1, "refused": 3} {
		if want := fmt.Sprintf("eventsource_tokens_verified_total{result=%q} %d\n", result, n); !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %q: %s", want, metrics)
		}
	}
}

func TestEveryKeyIsReloadedOrNot(t *testing.T) {
	c := &config{}
	var not []string
	for _, k := range c.keys() {
		if !reloadable(k.name) {
			not = append(not, k.name)
		}
	}
	want := strings.Fields(`host port base_path operations timeout heartbeat retry drain headers history.events history.age history.bytes retention.events retention.age channels
		limits.head tls.cert tls.key tls.acme.domains tls.acme.email tls.acme.cache tls.acme.directory backend sources queues.path queues.nodes queues.pattern queues.expires queues.headers queues.event log.format`)
	if !slices.Equal(not, want) {
		t.Errorf("a restart is wanted by %v, not %v", not, want)
	}
}

// A file that is empty for a moment, or has lost its token to a comment, opens the
// server to nobody.
func TestAReloadOpensNothing(t *testing.T) {
	file := t.TempDir() + "/config.yml"
	if err := os.WriteFile(file, []byte("port: 0\nauth_token: boss\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := serving(t, nil, "-c", file)
	for _, content := range []string{"", "port: 0\nauth_token: #boss\n", "port: 0\nkeys: []\njwt: {}\n"} {
		rewrite(t, srv, file, content)
		if said := srv.stderr.String(); !strings.Contains(said, "nobody would be asked for a token any more") {
			t.Errorf("with %q the log is\n%s", content, said)
		}
		res, err := http.Post(srv.url+"/news", "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 401 {
			t.Errorf("with %q a publish is answered %s", content, res.Status)
		}
	}
	rewrite(t, srv, file, "port: 0\nkeys: [{token: other, publish: [news]}]\n")
	if !strings.Contains(srv.stderr.String(), "msg=reloaded") {
		t.Error("what asks for another token is not taken over")
	}
}

func TestAServerThatAsksNobodySaysSo(t *testing.T) {
	const words = "nobody is asked for a token"
	for _, tc := range []struct {
		env  []string
		host string
		told bool
	}{{nil, "127.0.0.1", false}, {nil, "0.0.0.0", true}, {[]string{"EVENTSOURCE_AUTH_TOKEN=boss"}, "0.0.0.0", false}} {
		srv := serving(t, tc.env, "--host", tc.host, "--port", "0")
		until(t, "the log", func() bool { return strings.Contains(srv.stderr.String(), "msg=listening") })
		if tc.told {
			until(t, "the warning", func() bool { return strings.Contains(srv.stderr.String(), words) })
		}
		if got := strings.Contains(srv.stderr.String(), words); got != tc.told {
			t.Errorf("on %s with %v the log is\n%s", tc.host, tc.env, srv.stderr)
		}
	}
}
