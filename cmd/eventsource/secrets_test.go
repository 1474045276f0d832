package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource/internal/check"
)

// Whatever is asked with whatever tokens, right and wrong, in every place where one
// may stand and some where none may, no secret is in anything that the process
// writes: its log at its most talkative, its answers, its pages.
func TestNothingThatTheProcessWritesHasASecret(t *testing.T) {
	dir := t.TempDir()
	port := fmt.Sprint(freePorts(t, 1)[0])
	file := filepath.Join(dir, "config.yml")
	write := func(extra string) {
		t.Helper()
		config := `auth_token: SECRETboss
public: []
keys:
  - {token: SECRETkey, subscribe: ["news.*"], publish: ["news.*"]}
jwt: {key: SECRETSECRETSECRETSECRETSECRETSECRETjwt}
cors: {allow_origin: https://a.example, allow_method: [GET, POST]}
sources:
  - {type: webhook, channel: hooks, secret: SECREThook}
  - {type: redis, url: "redis://joe:SECRETredis@127.0.0.1:1", subscribe: [a], channel: a}
  - {type: amqp, url: "amqp://SECRETuser:SECRETpass@127.0.0.1:1/v?cacertfile=SECRET", queue: q, channel: hooks}
queues: {nodes: ["amqp://SECRETuser:SECRETpass@127.0.0.1:1/?certfile=SECRETfile"], path: /own}
limits: {publishes_per_second: 50}
log: {level: debug}
port: ` + port + "\n" + extra
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	var written bytes.Buffer
	self := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
		cmd.Env = append(bareEnvironment(), "RUN_AS_EVENTSOURCE=1")
		cmd.Stdin = strings.NewReader(stdin)
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	server := exec.Command(os.Args[0], "serve", "-c", file)
	server.Env = append(bareEnvironment(), "RUN_AS_EVENTSOURCE=1")
	log := &check.Log{}
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	url := "http://127.0.0.1:" + port
	for range 200 {
		if res, err := http.Get(url + "/health"); err == nil {
			res.Body.Close()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}

	jwt := strings.TrimSpace(self("", "token", "-c", file, "--subject", "joe", "--subscribe", "news.*", "--publish", "news.*"))
	if strings.Count(jwt, ".") != 2 {
		t.Fatalf("no token: %s", jwt)
	}
	short := strings.TrimSpace(self("", "token", "-c", file, "--subject", "ann", "--subscribe", "news.*", "--expires", "1s"))
	tokens := []string{"SECRETboss", "SECRETkey", jwt, short, "SECRETwrong", jwt + "SECRETtail", "SECRET.SECRET.SECRET", strings.Repeat("SECRET", 1500)}
	client := &http.Client{Timeout: 300 * time.Millisecond}
	for _, token := range tokens {
		for _, method := range []string{"GET", "POST", "DELETE", "HEAD", "PUT", "OPTIONS"} {
			for _, path := range []string{"/news.a", "/sport", "/@me", "/*", "/all", "/api/events", "/metrics", "/debug/vars", "/health", "/no//name", "/", "/own", "/own?id=1"} {
				for _, way := range []func(r *http.Request){
					func(r *http.Request) { r.Header.Set("Auth-Token", token) },
					func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) },
					func(r *http.Request) { r.Header.Set("Cookie", "eventsource_token="+token) },
					func(r *http.Request) { r.URL.RawQuery = "access_token=" + token },
					func(r *http.Request) { r.URL.RawQuery = "access_token=" + token + "&%zz&history=x" },
				} {
					r, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(`{"a":1}`))
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("Content-Type", "application/json")
					way(r)
					res, err := client.Do(r)
					if err != nil {
						continue // a head that is too long, or a stream that goes on
					}
					fmt.Fprintln(&written, res.Status, res.Header)
					io.Copy(&written, io.LimitReader(res.Body, 4<<10))
					res.Body.Close()
				}
			}
			client.CloseIdleConnections()
		}
	}
	// What is no HTTP at all, or breaks in the middle.
	for _, text := range []string{
		"GET /news.a?access_token=SECRETboss HTTP/1.1\r\nHost: x\r\nAuth-Token: SECRETboss\r\nbad line SECRETboss\r\n\r\n",
		"GET /news.a?access_token=SECRETboss HTTP/9.9\r\n\r\n", "GET /SECRETboss\x00 HTTP/1.1\r\n\r\n", "Auth-Token: SECRETboss\r\n\r\n",
		"POST /news.a HTTP/1.1\r\nHost: x\r\nAuth-Token: SECRETboss\r\nContent-Length: 100\r\n\r\n{",
		"POST /news.a HTTP/1.1\r\nHost: x\r\nAuth-Token: SECRETboss\r\nTransfer-Encoding: SECRETboss\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nSECRETboss",
	} {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, text)
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		b, _ := io.ReadAll(c)
		written.Write(b)
		c.Close()
	}
	if c, err := tls.Dial("tcp", "127.0.0.1:"+port, &tls.Config{InsecureSkipVerify: true}); err == nil {
		c.Close()
	}
	// What an operator does: reads, right and wrong.
	write("keys: nonsense\n")
	hup := func() {
		server.Process.Signal(syscall.SIGHUP)
		time.Sleep(200 * time.Millisecond)
	}
	hup()
	for _, wrong := range []string{"jwt: {key: SECRETshort}\n", "keys: [{token: ' SECRETspace'}]\n", "keys: [{token: 'sha256:SECRET'}]\n", "jwt: {jwks_url: 'http://u:SECRETpass@127.0.0.1:1/?k=SECRETquery'}\n"} {
		if err := os.WriteFile(file, []byte("port: "+port+"\nlog: {level: debug}\n"+wrong), 0o600); err != nil {
			t.Fatal(err)
		}
		hup()
		written.WriteString(self("", "config", "-c", file))
	}
	write("")
	hup()
	written.WriteString(self("", "config", "-c", file))
	written.WriteString(self("SECRETwrong", "token", "inspect", "-c", file))
	server.Process.Signal(syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- server.Wait() }()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		t.Error("the server does not end")
	}
	written.WriteString(log.String())

	// A key of the issuer away, and its URL in the log, is what shows that there is
	// a log at all.
	if !strings.Contains(log.String(), "127.0.0.1:1/") {
		t.Errorf("the log is too quiet to show anything:\n%s", log)
	}
	hint := "Bearer SECRET or Auth-Token: SECRET" // how a webhook's is sent
	for line := range strings.Lines(strings.ReplaceAll(written.String(), hint, "")) {
		for _, secret := range []string{"SECRET", jwt[strings.LastIndex(jwt, ".")+1:], short[strings.LastIndex(short, ".")+1:], jwt[:40]} {
			if strings.Contains(line, secret) {
				t.Errorf("%q is in %.300q", secret, line)
			}
		}
	}
}
