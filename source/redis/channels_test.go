package redis_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/internal/check"
	"github.com/railsmechanic/eventsource/internal/sourcetest"
	"github.com/railsmechanic/eventsource/source/redis"
)

func TestAConfigurationThatCantBeUsedIsTold(t *testing.T) {
	const url = "url: it is no URL of Redis; give one such as redis://localhost:6379/0, rediss://user:password@localhost or unix:///run/redis/redis.sock?db=0"
	list := func(s ...string) []string { return s }
	for _, test := range []struct {
		config redis.Config
		want   string
	}{
		{redis.Config{Channel: "a"}, "it has nothing to follow: give subscribe, psubscribe or streams"},
		{redis.Config{Channel: "a", Subscribe: list("a"), Streams: list("b")}, "streams: they have a source of their own; leave out subscribe and psubscribe"},
		{redis.Config{Channel: "a", Psubscribe: list("a"), Streams: list("b")}, "streams: they have a source of their own; leave out subscribe and psubscribe"},
		{redis.Config{Subscribe: list("a")}, "channel: none is given; name the one that events go to"},
		{redis.Config{Subscribe: list("a", "a"), Channel: "a"}, `subscribe: "a" stands there twice`},
		{redis.Config{Psubscribe: list(""), Channel: "a"}, `psubscribe: a name is empty`},
		{redis.Config{Subscribe: list("a"), Channel: "{1}"}, `channel: "{1}": there is no {1} here; there are {name}`},
		{redis.Config{Subscribe: list("a"), Psubscribe: list("*"), Channel: "{1}"}, `channel: "{1}": there is no {1} here; there are {name}`},
		{redis.Config{Psubscribe: list("*.*", "a.*"), Channel: "{1}.{2}"}, `channel: "{1}.{2}": there is no {2} here; there are {name}, {1}`},
		{redis.Config{Psubscribe: list("*.*"), Channel: "{01}"}, `channel: "{01}": there is no {01} here; there are {name}, {1}, {2}`},
		{redis.Config{Psubscribe: list(`\*`), Channel: "{1}"}, `channel: "{1}": there is no {1} here; there are {name}`},
		{redis.Config{Streams: list("a"), Channel: "{1}"}, `channel: "{1}": there is no {1} here; there are {name}, {id}, {field:NAME}`},
		{redis.Config{Streams: list("a"), Channel: "{field:}"}, `channel: "{field:}": there is no {field:} here; there are {name}, {id}, {field:NAME}`},
		{redis.Config{Streams: list("a"), Channel: "a", Start: "now"}, `start: "now" is neither $ nor 0 nor an entry's id such as 1700000000000-0`},
		{redis.Config{Streams: list("a"), Channel: "a", DeadLetter: "a"}, `dead_letter: "a" is one of streams: what is put there would come again`},
		{redis.Config{Streams: list("a"), Channel: "a", Claim: time.Millisecond}, `claim: 1ms is below 1s`},
		{redis.Config{Streams: list("a"), Channel: "a", Rollup: time.Minute}, `claim: 1m0s is not twice as long as rollup, which is 1m0s: what is counted would be taken over`},
		{redis.Config{URL: "redis://:geheim@localhost:x", Subscribe: list("a"), Channel: "a"}, url},
		{redis.Config{URL: "redis://geh/eim@localhost/0", Subscribe: list("a"), Channel: "a"}, url},
		{redis.Config{URL: "redis://localhost/zero", Subscribe: list("a"), Channel: "a"}, url},
		{redis.Config{URL: "redis://localhost?pasword=geheim", Subscribe: list("a"), Channel: "a"}, url},
		{redis.Config{URL: "localhost:6379", Subscribe: list("a"), Channel: "a"}, url},
	} {
		_, err := redis.New(test.config)
		if err == nil || err.Error() != test.want {
			t.Errorf("%+v: %v\nwant %s", test.config, err, test.want)
		}
	}
}

func TestWhatIsPublishedOnChannelsOfRedisIsPublishedHere(t *testing.T) {
	for _, protocol := range []string{"2", "3"} {
		t.Run("RESP"+protocol, func(t *testing.T) {
			url, c := shared(t)
			name := unique(t, c, "channel")
			srv := open(t, nil, source(t, redis.Config{URL: url + "?protocol=" + protocol + "&client_name=" + name, Subscribe: []string{name + "/a", name + "/b"},
				Psubscribe: []string{name + ".*.details.?"}, Channel: "in.{name}", Event: "{name}"}))
			got := follow(t, srv, "in.*")
			connected(t, srv, 1)
			connections := 0
			for line := range strings.Lines(c.ClientList(t.Context()).Val()) {
				if strings.Contains(line, " name="+name+" ") {
					connections++
				}
			}
			if connections != 1 {
				t.Errorf("there are %d connections", connections)
			}
			var want []string
			for n := range 200 {
				channel := name + []string{"/a", "/b", ".x.y.details.z"}[n%3]
				want = append(want, fmt.Sprint(n, " of ", channel))
				if heard := c.Publish(t.Context(), channel, want[n]).Val(); heard != 1 {
					t.Fatalf("%d have heard it", heard)
				}
				c.Publish(t.Context(), name+"/c", "for nobody")
			}
			if data := got.Data(t, len(want)); !slices.Equal(data, want) {
				t.Errorf("got %q", data)
			}
			for _, e := range got.All() {
				if channel := strings.Fields(e.Data)[2]; e.Type != channel || e.Channel != "in."+strings.ReplaceAll(channel, "/", ".") {
					t.Errorf("got %+v", e)
				}
			}
		})
	}
}

func TestTemplatesHaveWhatThePatternMatched(t *testing.T) {
	url, c := shared(t)
	name := unique(t, c, "channel")
	srv := open(t, nil, source(t, redis.Config{URL: url, Psubscribe: []string{name + ".*.of.*", name + ":*[xy]*"},
		Channel: "details.{2}.{1}", Event: "{name}", ID: "{1}-{2}"}))
	got := follow(t, srv, "details.*")
	connected(t, srv, 1)
	c.Publish(t.Context(), name+".a.of.b.c", "1")
	c.Publish(t.Context(), name+":dxe", "2")
	got.Data(t, 2)
	one, two := got.All()[0], got.All()[1]
	if one.Channel != "details.b.c.a" || one.ID != "a-b.c" || one.Type != name+".a.of.b.c" || one.Data != "1" {
		t.Errorf("got %+v", one)
	}
	if two.Channel != "details.e.d" || two.ID != "d-e" || two.Data != "2" {
		t.Errorf("got %+v", two)
	}
}

// badPayloads are refused for these reasons, and goodPayload is not.
var badPayloads = map[string]string{"": "empty", "{": "not_json", "\"\xff\"": "not_utf8", `"` + strings.Repeat("x", 1<<10) + `"`: "too_large", `"{name}"`: "name"}

const goodPayload = `{"good":true}`

func TestBadPayloadsAreCountedAndStopNothing(t *testing.T) {
	url, c := shared(t)
	name := unique(t, c, "channel")
	logs := &check.Log{}
	srv := open(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 1 << 10}, Logger: logs.Logger()},
		source(t, redis.Config{URL: url, Psubscribe: []string{name + ".*"}, Channel: "a.{1}", JSON: true}))
	got := follow(t, srv, "a.*")
	connected(t, srv, 1)
	want := map[string]uint64{"invalid": 0, "slow": 0}
	for range 2 {
		for payload, reason := range badPayloads {
			want[reason]++
			to := name + ".b"
			if reason == "name" {
				to = name + ".b c"
			}
			c.Publish(t.Context(), to, payload)
		}
	}
	want["name"]++
	c.Publish(t.Context(), name+".a,all", goodPayload)
	c.Publish(t.Context(), name+".b", goodPayload)
	if data := got.Data(t, 1); !slices.Equal(data, []string{goodPayload}) {
		t.Errorf("got %q", data)
	}
	stats := srv.Stats().Sources[0]
	if !maps.Equal(stats.Refusals, want) || stats.Published != 1 || stats.Connects != 1 {
		t.Errorf("got %+v, want %v", stats, want)
	}
	for reason := range want {
		if n := strings.Count(logs.String(), "reason="+reason+" "); n > 1 || n == 0 && want[reason] > 0 {
			t.Errorf("%s was logged %d times in a minute", reason, n)
		}
	}
}

func TestChannelsAreRolledUp(t *testing.T) {
	url, c := shared(t)
	name := unique(t, c, "channel")
	srv := open(t, nil, source(t, redis.Config{URL: url, Subscribe: []string{name}, Channel: "eps", Rollup: 17 * time.Millisecond}))
	got := follow(t, srv, "eps")
	connected(t, srv, 1)
	want := map[string]uint64{}
	for n := range 100 {
		p := c.Pipeline()
		for range 100 {
			payload := fmt.Sprintf("%04X", n*n%37)
			p.Publish(t.Context(), name, payload)
			want[payload]++
		}
		if _, err := p.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the sums are exact", func() bool { return maps.Equal(sums(t, got), want) })
	if n := got.Count(); n > 1000 {
		t.Errorf("%d events", n)
	}
}

// sums adds up what roll-ups say.
func sums(t testing.TB, got *sourcetest.Heard) map[string]uint64 {
	sum := map[string]uint64{}
	for _, e := range got.All() {
		var counts map[string]uint64
		if err := json.Unmarshal([]byte(e.Data), &counts); err != nil {
			t.Fatal(err)
		}
		for payload, n := range counts {
			sum[payload] += n
		}
	}
	return sum
}

// Redis cuts off who does not read; what was published meanwhile is lost, the rest comes.
func TestChannelsAreHeldBackWhilePublishesAreRefused(t *testing.T) {
	own := brokertest.OwnRedis(t, "--appendonly", "no", "--client-output-buffer-limit", "pubsub 1mb 1mb 0")
	c := dial(t, own.URL)
	backend := &sourcetest.Backend{}
	srv := open(t, &eventsource.Settings{Backend: backend}, source(t, redis.Config{URL: own.URL, Subscribe: []string{"a"}, Channel: "a"}))
	got := follow(t, srv, "a")
	connected(t, srv, 1)
	backend.Refuse(eventsource.ErrUnavailable)
	payload := strings.Repeat("x", 10_000)
	sent := 0
	cut := func() bool { return c.PubSubNumSub(t.Context(), "a").Val()["a"] == 0 }
	for ; sent < 5000 && (sent < 100 || !cut()); sent++ {
		c.Publish(t.Context(), "a", fmt.Sprint(sent, " ", payload))
	}
	if !cut() {
		t.Fatalf("who reads nothing was not cut off after %d", sent)
	}
	backend.Refuse(nil)
	connected(t, srv, 2)
	c.Publish(t.Context(), "a", "last")
	eventually(t, "the last one comes", func() bool { e := got.All(); return len(e) > 0 && e[len(e)-1].Data == "last" })
	before := -1
	for _, e := range got.All()[:got.Count()-1] { // a run from the first one on
		var n int
		fmt.Sscan(e.Data, &n)
		if n != before+1 {
			t.Fatalf("%d comes after %d", n, before)
		}
		before = n
	}
	if before < 100 || before >= sent {
		t.Errorf("%d came of %d", before, sent)
	}
}

func TestChannelsGoOnAfterARestart(t *testing.T) {
	own := brokertest.OwnRedis(t)
	logs := &check.Log{}
	srv := open(t, &eventsource.Settings{Logger: logs.Logger()}, source(t, redis.Config{URL: own.URL, Subscribe: []string{"a"}, Channel: "a"}))
	got := follow(t, srv, "a")
	connected(t, srv, 1)
	dial(t, own.URL).Publish(t.Context(), "a", "before")
	got.Data(t, 1)
	own.Kill()
	eventually(t, "the source says so", func() bool { return srv.Stats().Sources[0].State == "failing" })
	if reason := srv.Stats().Sources[0].Reason; !strings.HasPrefix(reason, "receive: ") && !strings.HasPrefix(reason, "connect: ") {
		t.Errorf("it is failing because of %q", reason)
	}
	own.Start()
	connected(t, srv, 2)
	dial(t, own.URL).Publish(t.Context(), "a", "after")
	if data := got.Data(t, 2); !slices.Equal(data, []string{"before", "after"}) {
		t.Errorf("got %q", data)
	}
	if !strings.Contains(logs.String(), `msg="a source is not connected" source=redis-1`) {
		t.Error(logs)
	}
}

func TestAConnectionThatIsHalfOpenIsNoticed(t *testing.T) {
	url, c := shared(t)
	name := unique(t, c, "channel")
	p, through := brokertest.Through(t, url)
	src := source(t, redis.Config{URL: through, Subscribe: []string{name}, Channel: "a"})
	redis.AskAfter(src, 500*time.Millisecond)
	srv := open(t, nil, src)
	got := follow(t, srv, "a")
	connected(t, srv, 1)
	<-time.After(1500 * time.Millisecond) // a silence alone is no reason
	if s := srv.Stats().Sources[0]; s.Connects != 1 || s.State != "ok" {
		t.Fatalf("%+v", s)
	}
	p.Pause()
	eventually(t, "it is noticed", func() bool { return srv.Stats().Sources[0].State == "failing" })
	p.Resume()
	p.Cut()
	connected(t, srv, 2)
	c.Publish(t.Context(), name, "after")
	got.Data(t, 1)
}

func TestNoPasswordIsToldToAnybody(t *testing.T) {
	own := brokertest.OwnRedis(t, "--requirepass", "geheim")
	admin := dial(t, strings.Replace(own.URL, "//", "//:geheim@", 1))
	ctx := t.Context()
	if err := admin.Do(ctx, "ACL", "SETUSER", "deaf", "on", ">geheim3", "+@all", "~*", "resetchannels").Err(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, user string
		streams    bool
		want       string
	}{
		{"a wrong one", ":geheim2@", false, "subscribe: failed to authenticate: WRONGPASS"},
		{"a wrong one for streams", ":geheim2@", true, "WRONGPASS"},
		{"none", "", false, "receive: NOAUTH"},
		{"an unknown user", "nobody:geheim2@", true, "WRONGPASS"},
		{"one that may not", "deaf:geheim3@", false, "receive: NOPERM"},
	} {
		logs := &check.Log{}
		config := redis.Config{URL: strings.Replace(own.URL, "//", "//"+test.user, 1), Subscribe: []string{"a"}, Channel: "a"}
		if test.streams {
			config.Subscribe, config.Streams = nil, []string{"a"}
		}
		srv := open(t, &eventsource.Settings{Logger: logs.Logger()}, source(t, config))
		eventually(t, test.name+" is told", func() bool { return srv.Stats().Sources[0].State == "failing" })
		reason := srv.Stats().Sources[0].Reason
		if !strings.Contains(reason, test.want) || strings.Contains(reason+logs.String(), "geheim") {
			t.Errorf("%s: %q\n%s", test.name, reason, logs)
		}
		shutdown(t, srv)
	}
	logs := &check.Log{}
	srv := open(t, &eventsource.Settings{Logger: logs.Logger()}, source(t, redis.Config{URL: "redis://:geheim@127.0.0.1:1", Subscribe: []string{"a"}, Channel: "a"}))
	eventually(t, "nobody is there", func() bool { return srv.Stats().Sources[0].State == "failing" })
	if reason := srv.Stats().Sources[0].Reason; !strings.Contains(reason, "connection refused") || strings.Contains(reason+logs.String(), "geheim") {
		t.Errorf("%q\n%s", reason, logs)
	}
}

func TestTheEndComesAtOnce(t *testing.T) {
	url, c := shared(t)
	for _, config := range []redis.Config{
		{URL: url, Subscribe: []string{unique(t, c, "channel")}, Channel: "a"},
		{URL: url, Streams: []string{unique(t, c, "stream")}, Channel: "a"},
		{URL: url, Streams: []string{unique(t, c, "stream")}, Channel: "a", Rollup: time.Second},
	} {
		srv := open(t, nil, source(t, config))
		connected(t, srv, 1)
		began := time.Now()
		shutdown(t, srv)
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("%v %v: it took %v", config.Subscribe, config.Streams, took)
		}
	}
}

func TestTheEndDoesNotWaitForARedisThatIsSilent(t *testing.T) {
	url, c := shared(t)
	p, through := brokertest.Through(t, url)
	srv := open(t, nil, source(t, redis.Config{URL: through, Streams: []string{unique(t, c, "stream")}, Channel: "a"}))
	connected(t, srv, 1)
	p.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}
