//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/railsmechanic/eventsource/internal/brokertest"
)

// ownRedis starts a Redis for one test, and returns its port.
func ownRedis(t *testing.T) string {
	t.Helper()
	_, port, _ := net.SplitHostPort(brokertest.OwnRedis(t).Address)
	return port
}

// emojitrackExample returns the example, whose Redis is at a port.
func emojitrackExample(t *testing.T, port string) string {
	t.Helper()
	example, err := os.ReadFile("../../examples/emojitrack.yml")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(example), "localhost:6379", "localhost:"+port)
}

func TestTheStatusOfEmojitrack(t *testing.T) {
	p, _ := emojitrack(t)
	listenTo(t, p.url+"/subscribe/raw")
	_, body := get(t, p.url+"/admin/status.json")
	var status struct {
		Node        *string
		Status      string
		ReportedAt  int64 `json:"reported_at"`
		Connections []struct {
			RequestPath string  `json:"request_path"`
			Namespace   string  `json:"namespace"`
			CreatedAt   int64   `json:"created_at"`
			ClientIP    *string `json:"client_ip"`
			UserAgent   *string `json:"user_agent"`
		}
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	now := time.Now().Unix()
	if status.Node == nil || *status.Node == "" || status.Status != "OK" || status.ReportedAt < now-5 || status.ReportedAt > now {
		t.Error(body)
	}
	if c := status.Connections; len(c) != 1 || c[0].RequestPath != "/subscribe/raw" || c[0].Namespace != "/raw" ||
		c[0].CreatedAt < now-60 || c[0].ClientIP == nil || c[0].UserAgent == nil {
		t.Error(body)
	}
}

// emojitrack starts the server of the example beside a Redis, and waits until all sources
// are connected.
func emojitrack(t *testing.T, env ...string) (*process, *redis.Client) {
	t.Helper()
	port := ownRedis(t)
	p := serving(t, env, "-c", write(t, "emojitrack.yml", emojitrackExample(t, port)), "--port", "0")
	until(t, "the sources are connected", func() bool {
		_, body := get(t, p.url+"/health")
		return strings.Contains(body, `"sources":{"redis-1":"ok","redis-2":"ok","redis-3":"ok"}`)
	})
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port})
	t.Cleanup(func() { c.Close() })
	return p, c
}

// A sseEvent is an event as a consumer reads it.
type sseEvent struct{ event, data string }

// A listener collects a stream.
type listener struct {
	header http.Header

	mu     sync.Mutex
	events []sseEvent
}

// listenTo follows a stream until the test ends, as a page of another origin.
func listenTo(t *testing.T, url string) *listener {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://emojitracker.example")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", url, res.Status)
	}
	l := &listener{header: res.Header}
	var reading sync.WaitGroup
	reading.Go(func() { l.read(res.Body) })
	t.Cleanup(func() { cancel(); reading.Wait(); res.Body.Close() })
	return l
}

// read collects events until the stream ends.
func (l *listener) read(body io.Reader) {
	var e sseEvent
	for scanner := bufio.NewScanner(body); scanner.Scan(); {
		field, value, _ := strings.Cut(scanner.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case field == "event":
			e.event = value
		case field == "data":
			e.data = value
		case scanner.Text() == "" && e.data != "":
			l.mu.Lock()
			l.events = append(l.events, e)
			l.mu.Unlock()
			e = sseEvent{}
		}
	}
}

// all returns what came so far.
func (l *listener) all() []sseEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// counts adds up what is on a stream of roll-ups.
func (l *listener) counts(t *testing.T) map[string]int {
	t.Helper()
	sum := map[string]int{}
	for _, e := range l.all() {
		var counts map[string]int
		if err := json.Unmarshal([]byte(e.data), &counts); err != nil || len(counts) == 0 || e.event != "" {
			t.Fatalf("%+v: %v", e, err)
		}
		for id, n := range counts {
			sum[id] += n
		}
	}
	return sum
}

// A feeder publishes 250 updates a second, as emojitracker's does.
func TestTheStreamsOfEmojitrack(t *testing.T) {
	p, feeder := emojitrack(t)
	ctx := t.Context()
	raw, eps := listenTo(t, p.url+"/subscribe/raw"), listenTo(t, p.url+"/subscribe/eps")
	heart, all := listenTo(t, p.url+"/subscribe/details/2665"), listenTo(t, p.url+"/subscribe/details/*")
	for _, l := range []*listener{raw, eps, heart, all} {
		if got := l.header.Get("Content-Type"); got != "text/event-stream" && got != "text/event-stream; charset=utf-8" {
			t.Errorf("the content type is %s", got)
		}
		if got := l.header.Get("Access-Control-Allow-Origin"); got != "*" {
			t.Errorf("the origin that may read is %q", got)
		}
	}
	ids := []string{"2665", "1F4C2", "2664", "1F65C", "1F1E9-1F1EA"}
	want := map[string]int{}
	updates, begin := 0, time.Now()
	tick := time.NewTicker(4 * time.Millisecond)
	defer tick.Stop()
	for ; time.Since(begin) < 3*time.Second; updates++ {
		id := ids[updates*updates%7%len(ids)]
		want[id]++
		if heard, err := feeder.Publish(ctx, "stream.score_updates", id).Result(); err != nil || heard != 2 {
			t.Fatalf("%d have heard it: %v", heard, err)
		}
		feeder.Publish(ctx, "stream.tweet_updates."+id, fmt.Sprintf(`{"id":"%d","text":"♥\n%s"}`, updates, id))
		<-tick.C
	}
	until(t, "every update came", func() bool { return len(raw.all()) == updates && len(all.all()) == updates })
	until(t, "the sums are exact", func() bool { return maps.Equal(eps.counts(t), want) })
	took := time.Since(begin)
	sums := map[string]int{}
	for _, e := range raw.all() {
		if e.event != "" {
			t.Fatalf("%+v", e)
		}
		sums[e.data]++
	}
	if !maps.Equal(sums, want) {
		t.Errorf("/raw had %v, of %v", sums, want)
	}
	if n := len(heart.all()); n != want["2665"] {
		t.Errorf("/details/2665 had %d of %d", n, want["2665"])
	}
	for _, e := range heart.all() {
		if e.event != "stream.tweet_updates.2665" || !strings.HasSuffix(e.data, `"text":"♥\n2665"}`) {
			t.Fatalf("%+v", e)
		}
	}
	if n, most := len(eps.all()), int(took/(17*time.Millisecond))+2; n > most {
		t.Errorf("/eps had %d events in %v", n, took)
	}
	t.Logf("%d updates in %v, %d events on /eps", updates, took.Round(time.Millisecond), len(eps.all()))

	if res, _ := request(t, http.MethodHead, p.url+"/subscribe/raw"); res.StatusCode != http.StatusOK || res.Header.Get("X-Consumer-Count") != "1" {
		t.Errorf("HEAD: %s %v", res.Status, res.Header)
	}
	res := ask(t, http.MethodOptions, p.url+"/subscribe/eps", "Origin", "https://emojitracker.example", "Access-Control-Request-Method", "GET")
	res.Body.Close()
	if res.StatusCode >= 300 || res.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("OPTIONS: %s %v", res.Status, res.Header)
	}
}

// Its package sseserver sends who follows /pets what goes to /pets/cats and /pets/dogs.
func TestEverythingBelowAParent(t *testing.T) {
	p, _ := emojitrack(t)
	below, slash := listenTo(t, p.url+"/subscribe/pets.*"), listenTo(t, p.url+"/subscribe/pets/*")
	both := listenTo(t, p.url+"/subscribe/pets,pets.*")
	for _, name := range []string{"pets/cats", "pets/dogs", "pets", "people", "pets/cats/siamese"} {
		res, err := http.Post(p.url+"/subscribe/"+name, "text/plain", strings.NewReader(name))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusCreated {
			t.Fatalf("%s: %s", name, res.Status)
		}
	}
	for l, want := range map[*listener]string{below: "pets/cats pets/dogs pets/cats/siamese", slash: "pets/cats pets/dogs pets/cats/siamese",
		both: "pets/cats pets/dogs pets pets/cats/siamese"} {
		until(t, "what is below came", func() bool { return len(l.all()) >= len(strings.Fields(want)) })
		var got []string
		for _, e := range l.all() {
			got = append(got, e.data)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Every command of the chapter on emojitrack-gostreamer in docs/migrating.md is run as it
// stands there, but for the ports, and prints what the chapter says.
func TestThePageOfEmojitrack(t *testing.T) {
	needs(t, "curl")
	needs(t, "redis-cli")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	redisPort, port := ownRedis(t), strconv.Itoa(freePorts(t, 1)[0])
	dir := t.TempDir()
	for _, err := range []error{
		os.Symlink(program, filepath.Join(dir, "eventsource")),
		os.Mkdir(filepath.Join(dir, "examples"), 0o700),
		os.WriteFile(filepath.Join(dir, "examples", "emojitrack.yml"), []byte(emojitrackExample(t, redisPort)), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := openShell(t, dir, "RUN_AS_EVENTSOURCE=1", "EVENTSOURCE_PORT="+port)
	here := strings.NewReplacer("8001", port, "-p 6379", "-p "+redisPort)
	if blocks := s.follow(migration(t, "emojitrack-gostreamer"), here); blocks < 7 {
		t.Errorf("%d blocks are few", blocks)
	}
}

// The client library has a logger of its own, for the whole program, on standard error: it
// has nothing to say there, whatever becomes of Redis.
func TestWhatBecomesOfRedisIsLoggedOnce(t *testing.T) {
	own := brokertest.OwnRedis(t)
	own.Kill()
	p := serving(t, []string{`EVENTSOURCE_SOURCES=[{type: redis, url: "` + own.URL + `", subscribe: a, channel: a},
		{type: redis, url: "` + own.URL + `", streams: s, channel: a}]`}, "--port", "0", "--log-level", "debug")
	state := func(want string) {
		t.Helper()
		until(t, "the sources are "+want, func() bool {
			_, body := get(t, p.url+"/health")
			return strings.Contains(body, `"sources":{"redis-1":"`+want+`","redis-2":"`+want+`"}`)
		})
	}
	for range 2 {
		state("failing")
		own.Start()
		state("ok")
		own.Kill()
	}
	state("failing")
	for line := range strings.Lines(p.stderr.String()) {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("on standard error stands %s", line)
		}
	}
	if n := strings.Count(p.stderr.String(), `msg="a source is connected"`); n != 4 {
		t.Errorf("%d times a source was connected:\n%s", n, p.stderr)
	}
}
