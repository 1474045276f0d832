package eventsource_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/railsmechanic/eventsource"
)

// classicProgram is a program written for the classic interface. It ends when
// its standard input does.
func classicProgram(port string) {
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		panic(err)
	}
	es := eventsource.New(&eventsource.Settings{
		Timeout:         2 * time.Second,
		AuthToken:       "secret",
		Host:            "127.0.0.1",
		Port:            uint(p),
		CorsAllowOrigin: "*",
		CorsAllowMethod: []string{"GET", "POST"},
	})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		es.Stop()
	}()
	es.Run()
}

// runClassic runs classicProgram as a process of its own.
func runClassic(t *testing.T, port string) (cmd *exec.Cmd, input io.Closer, stderr *bytes.Buffer) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), runAddress+"="+port)
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, in, stderr
}

func TestRunServesUntilStop(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	cmd, in, stderr := runClassic(t, port)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	n := &node{url: "http://127.0.0.1:" + port, client: client}
	eventually(t, "it listens", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	s := n.follow(t, "/news")
	n.post(t, "/news", asText, "x", "Auth-Token", "secret").receipt(t)
	s.expect("x")
	in.Close()
	s.ended()
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, stderr)
	}
}

func TestRunEndsTheProcessWithStatus1WhenItCantListen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	cmd, in, stderr := runClassic(t, port)
	defer in.Close()
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(stderr.String(), "listen") {
		t.Errorf("it ended with %v: %s", err, stderr)
	}
}

func TestTheClassicInterfaceWorks(t *testing.T) {
	var es eventsource.EventSource = eventsource.New(nil)
	defer es.Stop()
	var router *mux.Router = es.Router()
	h := httptest.NewServer(router)
	defer h.Close()
	n := &node{url: h.URL, client: h.Client()}
	s, both := n.follow(t, "/news"), n.follow(t, "/news,sport")

	es.SendMessage(strings.NewReader(`{"id": 1, "event": "greeting", "data": "hello", "retry": 500}`), "news")
	es.SendMessage(strings.NewReader(`[{"data": "a"}, {"data": "b"}]`), "sport")
	es.SendMessage(strings.NewReader(`{"data": "to all"}`), "all")
	if b := s.event(); b.id != "1" || b.event != "greeting" || b.data != "hello" || b.retry != "500" {
		t.Errorf("got %+v", b)
	}
	s.expect("to all")
	both.expect("hello", "a", "b", "to all")

	if !es.ChannelExists("news") || es.ChannelExists("nobody") || es.ChannelExists("all") {
		t.Error("the channels that exist are wrong")
	}
	if es.ConsumerCount("news") != 2 || es.ConsumerCount("sport") != 1 || es.ConsumerCount("nobody") != 0 || es.ConsumerCountAll() != 2 {
		t.Error("the consumers are miscounted")
	}
	if got := strings.Join(es.Channels(), " "); got != "news sport" {
		t.Errorf("the channels are %s", got)
	}
	es.Close("sport")
	both.ended()
	eventually(t, "one is left", func() bool { return es.ConsumerCountAll() == 1 })
	es.CloseAll()
	s.ended()
	eventually(t, "none is left", func() bool { return es.ConsumerCountAll() == 0 && len(es.Channels()) == 0 })
	es.Stop()
	es.Stop() // again does nothing
}

func TestWhatSendMessageCantPublishIsLogged(t *testing.T) {
	var log bytes.Buffer
	es := eventsource.New(&eventsource.Settings{Logger: slog.New(slog.NewTextHandler(&log, nil)), Limits: eventsource.Limits{Body: 100}})
	defer es.Stop()
	for _, tc := range []struct{ body, channel, words string }{
		{"{", "news", "can't be read"},
		{`{"data":"x"}`, "no name!", "channel name"},
		{`{"data":"x"}`, "*", "wildcard"},
		{`"` + strings.Repeat("x", 100) + `"`, "news", "longer than 100"},
	} {
		log.Reset()
		es.SendMessage(strings.NewReader(tc.body), tc.channel)
		if !strings.Contains(log.String(), tc.words) {
			t.Errorf("%s to %s is logged as %q", tc.body, tc.channel, log.String())
		}
	}
	log.Reset()
	if es.Close("no name!"); !strings.Contains(log.String(), "channel name") {
		t.Errorf("a close is logged as %q", log.String())
	}
	if len(es.Channels()) != 0 {
		t.Error("something was published")
	}
}

func TestTheGettersGiveWhatIsInForce(t *testing.T) {
	for _, s := range []*eventsource.Settings{nil, {}} {
		if s.GetTimeout() != 5*time.Second || s.GetAuthToken() != "" || s.GetHost() != "127.0.0.1" || s.GetPort() != 8080 ||
			s.GetCorsAllowOrigin() != "" || s.GetCorsAllowMethod() != "GET" {
			t.Errorf("the defaults of %+v", s)
		}
	}
	s := &eventsource.Settings{Timeout: time.Second, AuthToken: " t ", Host: "h", Port: 1, CorsAllowOrigin: "o", CorsAllowMethod: []string{"GET", "POST"}}
	if s.GetTimeout() != time.Second || s.GetAuthToken() != "t" || s.GetHost() != "h" || s.GetPort() != 1 ||
		s.GetCorsAllowOrigin() != "o" || s.GetCorsAllowMethod() != "GET, POST" {
		t.Errorf("the values of %+v", s)
	}
}

func TestSettingsThatCantBeUsedAreRefused(t *testing.T) {
	for _, tc := range []struct {
		settings eventsource.Settings
		words    string
	}{
		{eventsource.Settings{Timeout: -1}, "timeout: "},
		{eventsource.Settings{Port: 65536}, "port: 65536 is above 65535"},
		{eventsource.Settings{AuthToken: "a\nb"}, "auth_token: "},
		{eventsource.Settings{BasePath: "subscribe"}, "base_path: "},
		{eventsource.Settings{BasePath: "/a//b"}, "base_path: "},
		{eventsource.Settings{Heartbeat: -2}, "heartbeat: "},
		{eventsource.Settings{Heartbeat: time.Millisecond}, "heartbeat: 1ms is below 10ms"},
		{eventsource.Settings{Retry: -1}, "retry: "},
		{eventsource.Settings{Drain: -1}, "drain: "},
		{eventsource.Settings{History: eventsource.History{Age: -2}}, "history.age: "},
		{eventsource.Settings{History: eventsource.History{Events: -2}}, "history.events: -2 is below -1"},
		{eventsource.Settings{History: eventsource.History{Bytes: -1}}, "history.bytes: "},
		{eventsource.Settings{Limits: eventsource.Limits{Body: -1}}, "limits.body: "},
		{eventsource.Settings{Limits: eventsource.Limits{Body: 1<<30 + 1}}, "1 GiB"},
		{eventsource.Settings{Limits: eventsource.Limits{Head: -1}}, "limits.head: "},
		{eventsource.Settings{Limits: eventsource.Limits{Channels: -1}}, "limits.channels: "},
		{eventsource.Settings{Limits: eventsource.Limits{ChannelsPerConsumer: -1}}, "limits.channels_per_consumer: "},
		{eventsource.Settings{Limits: eventsource.Limits{IdempotencyKeys: -1}}, "limits.idempotency_keys: "},
		{eventsource.Settings{Limits: eventsource.Limits{Consumers: -1}}, "limits.consumers: "},
		{eventsource.Settings{Public: []string{"a.*.b"}}, "public: "},
		{eventsource.Settings{Public: []string{"all"}}, "public: "},
		{eventsource.Settings{CorsAllowOrigin: "https://a.example/path"}, "cors.allow_origin: "},
		{eventsource.Settings{CorsAllowOrigin: "https://a.example, https://b.example/path"}, "b.example/path"},
		{eventsource.Settings{CorsAllowOrigin: "*", CorsAllowCredentials: true}, "cors.allow_credentials: "},
		{eventsource.Settings{CorsAllowOrigin: "null", CorsAllowCredentials: true}, "cors.allow_credentials: "},
		{eventsource.Settings{CorsAllowOrigin: "https://a.example, b.example", CorsAllowCredentials: true}, "give it with its scheme, https://b.example"},
		{eventsource.Settings{Public: []string{"users.joe"}}, "public: "},
		{eventsource.Settings{Public: []string{"users.*"}}, "private"},
		{eventsource.Settings{CorsAllowOrigin: "https://a.example, null", CorsAllowCredentials: true}, "cors.allow_credentials: "},
		{eventsource.Settings{CorsAllowMethod: []string{"GET, POST"}}, "cors.allow_method: "},
		{eventsource.Settings{CorsAllowHeaders: []string{""}}, "cors.allow_headers: "},
		{eventsource.Settings{Headers: map[string]string{"content-type": "x"}}, "headers: "},
		{eventsource.Settings{Headers: map[string]string{"X-A": "a\r\nb"}}, "headers: "},
	} {
		if err := tc.settings.Validate(); err == nil || !strings.Contains(err.Error(), tc.words) {
			t.Errorf("%+v: %v does not say %q", tc.settings, err, tc.words)
		}
		if s, err := eventsource.Open(&tc.settings); err == nil {
			s.Stop()
			t.Errorf("%+v: Open takes it", tc.settings)
		}
	}
	every := (&eventsource.Settings{Port: 70000, Drain: -1}).Validate()
	if every == nil || !strings.Contains(every.Error(), "port: ") || !strings.Contains(every.Error(), "drain: ") {
		t.Errorf("not every reason is told: %v", every)
	}
	good := eventsource.Settings{Heartbeat: -1, History: eventsource.History{Events: -1, Age: -1}, Public: []string{"*", "a.*", "users"},
		CorsAllowOrigin: "https://a.example:8443,null", BasePath: "/subscribe"}
	if err := good.Validate(); err != nil {
		t.Errorf("good ones are refused: %v", err)
	}
}

func TestWhatNewCantRefuseServeRefuses(t *testing.T) {
	es := eventsource.New(&eventsource.Settings{Port: 70000})
	defer es.Stop()
	s := es.(*eventsource.Server)
	if err := s.ListenAndServe(); err == nil || !strings.Contains(err.Error(), "65535") {
		t.Errorf("ListenAndServe: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); err == nil || !strings.Contains(err.Error(), "65535") {
		t.Errorf("Serve: %v", err)
	}
	if _, err := l.Accept(); err == nil {
		t.Error("the listener is open")
	}
}

func TestAServerThatWasShutDownServesNoMore(t *testing.T) {
	s := openWith(t, nil)
	s.Stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
	if _, err := s.Publish(context.Background(), "news", eventsource.Event{Data: "x"}); err == nil || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("Publish: %v", err)
	}
}
