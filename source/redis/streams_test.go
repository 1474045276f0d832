package redis_test

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	client "github.com/redis/go-redis/v9"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/internal/check"
	"github.com/railsmechanic/eventsource/internal/sourcetest"
	"github.com/railsmechanic/eventsource/source/redis"
)

// add appends an entry to a stream and returns its id.
func add(t testing.TB, c *client.Client, key string, fields ...string) string {
	t.Helper()
	id, err := c.XAdd(t.Context(), &client.XAddArgs{Stream: key, Values: fields}).Result()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// pending waits until so many entries are not acknowledged.
func pending(t testing.TB, c *client.Client, key, group string, n int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d entries of %s are not acknowledged", n, key), func() bool {
		p, err := c.XPending(t.Context(), key, group).Result()
		return err == nil && p.Count == n
	})
}

func TestEntriesOfStreamsArePublishedInOrderAndAcknowledged(t *testing.T) {
	url, c := shared(t)
	one, two := unique(t, c, "one"), unique(t, c, "two")
	add(t, c, one, "data", "before the group")
	srv := open(t, nil, source(t, redis.Config{URL: url, Streams: []string{one, two}, Channel: "in.{name}", Event: "{field:type}", ID: "{name}-{id}"}))
	got := follow(t, srv, "in.*")
	connected(t, srv, 1)
	wants := map[string][]string{}
	ids := map[string]bool{}
	for n := range 1000 {
		key := []string{one, one, two}[n%3]
		data := fmt.Sprint(n)
		wants["in."+key] = append(wants["in."+key], data)
		ids[key+"-"+add(t, c, key, "type", "of "+data, "data", data)] = true
	}
	got.Data(t, 1000)
	gots := map[string][]string{}
	for _, e := range got.All() {
		gots[e.Channel] = append(gots[e.Channel], e.Data)
		if e.Type != "of "+e.Data || !ids[e.ID] {
			t.Fatalf("got %+v", e)
		}
		delete(ids, e.ID)
	}
	if !maps.EqualFunc(gots, wants, slices.Equal) {
		t.Error("the order is another")
	}
	pending(t, c, one, redis.DefaultGroup, 0)
	pending(t, c, two, redis.DefaultGroup, 0)
	host, _ := os.Hostname()
	if consumers := c.XInfoConsumers(t.Context(), one, redis.DefaultGroup).Val(); len(consumers) != 1 || consumers[0].Name != host {
		t.Errorf("the consumers are %+v", consumers)
	}
}

func TestAGroupBeginsWhereItIsToldTo(t *testing.T) {
	url, c := shared(t)
	key := unique(t, c, "stream")
	var ids []string
	for n := range 3 {
		ids = append(ids, add(t, c, key, "data", fmt.Sprint(n)))
	}
	for start, want := range map[string][]string{"0": {"0", "1", "2", "new"}, "$": {"new"}, ids[1]: {"2", "new"}} {
		srv := open(t, nil, source(t, redis.Config{URL: url, Streams: []string{key}, Group: "from " + start, Start: start, Channel: "a"}))
		got := follow(t, srv, "a")
		connected(t, srv, 1)
		id := add(t, c, key, "data", "new")
		if data := got.Data(t, len(want)); !slices.Equal(data, want) {
			t.Errorf("%s: got %q", start, data)
		}
		shutdown(t, srv)
		c.XDel(t.Context(), key, id)
	}
}

func TestTheFieldThatIsThePayload(t *testing.T) {
	url, c := shared(t)
	for _, test := range []struct {
		field  string
		fields []string
		want   string // empty: it is refused
	}{
		{"", []string{"data", "x", "other", "y"}, "x"},
		{"", []string{"other", "y"}, "y"},
		{"", []string{"other", "y", "third", "z"}, ""},
		{"body", []string{"data", "x", "body", "y"}, "y"},
		{"body", []string{"data", "x"}, ""},
	} {
		key := unique(t, c, "stream")
		srv := open(t, nil, source(t, redis.Config{URL: url, Streams: []string{key}, Start: "0", Field: test.field, Channel: "a"}))
		got := follow(t, srv, "a")
		connected(t, srv, 1)
		add(t, c, key, test.fields...)
		if test.want != "" {
			if data := got.Data(t, 1); data[0] != test.want {
				t.Errorf("%+v: got %q", test, data)
			}
		} else {
			eventually(t, "it is refused", func() bool { return srv.Stats().Sources[0].Refusals["empty"] == 1 })
		}
		shutdown(t, srv)
	}
}

func TestBadEntriesAreCopiedWithTheReason(t *testing.T) {
	url, c := shared(t)
	for _, dead := range []string{unique(t, c, "dead"), ""} {
		key := unique(t, c, "stream")
		srv := open(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 1 << 10}},
			source(t, redis.Config{URL: url, Streams: []string{key}, DeadLetter: dead, JSON: true, Channel: "a.{field:to}"}))
		got := follow(t, srv, "a.*")
		connected(t, srv, 1)
		reasons := map[string]string{} // of ids
		entries := map[string][]string{}
		for payload, reason := range badPayloads {
			to := "b"
			if reason == "name" {
				to = "b c"
			}
			id := add(t, c, key, "data", payload, "to", to)
			reasons[id], entries[id] = reason, []string{payload, to}
			add(t, c, key, "data", goodPayload, "to", "b")
		}
		got.Data(t, len(badPayloads))
		pending(t, c, key, redis.DefaultGroup, 0)
		if s := srv.Stats().Sources[0]; s.Published != uint64(len(badPayloads)) || s.Connects != 1 {
			t.Errorf("%+v", s)
		}
		if dead == "" {
			continue
		}
		copies := c.XRange(t.Context(), dead, "-", "+").Val()
		for _, e := range copies {
			id := e.Values["eventsource.id"].(string)
			if e.Values["eventsource.reason"] != reasons[id] || e.Values["eventsource.stream"] != key || e.Values["eventsource.detail"] == "" ||
				e.Values["data"] != entries[id][0] || e.Values["to"] != entries[id][1] {
				t.Errorf("%s: %q", reasons[id], e.Values)
			}
			delete(reasons, id)
		}
		if len(reasons) > 0 || len(copies) != len(badPayloads) {
			t.Errorf("%d copies, none of %v", len(copies), reasons)
		}
	}
}

func TestADeadLetterThatIsNoStreamIsTold(t *testing.T) {
	url, c := shared(t)
	dead, key := unique(t, c, "dead"), unique(t, c, "stream")
	c.Set(t.Context(), dead, "x", 0)
	srv := open(t, nil, source(t, redis.Config{URL: url, Streams: []string{key}, DeadLetter: dead, Channel: "a"}))
	want := "dead_letter " + dead + ": it is a string; name a stream, or a key that is not there"
	eventually(t, want, func() bool { return srv.Stats().Sources[0].Reason == want })
	c.Del(t.Context(), dead)
	connected(t, srv, 1)
}

// An entry was once acknowledged, though its copy had failed.
func TestNoEntryIsLostWhileItCantBeCopied(t *testing.T) {
	url, c := shared(t)
	dead, key := unique(t, c, "dead"), unique(t, c, "stream")
	srv := open(t, nil, source(t, redis.Config{URL: url, Streams: []string{key}, DeadLetter: dead, JSON: true, Channel: "a"}))
	connected(t, srv, 1)
	c.Set(t.Context(), dead, "x", 0)
	add(t, c, key, "data", "no JSON")
	eventually(t, "it is told", func() bool {
		return strings.HasPrefix(srv.Stats().Sources[0].Reason, "dead_letter "+dead+": ")
	})
	pending(t, c, key, redis.DefaultGroup, 1)
	c.Del(t.Context(), dead)
	eventually(t, "it is copied", func() bool { return c.XLen(t.Context(), dead).Val() == 1 })
	pending(t, c, key, redis.DefaultGroup, 0)
}

func TestAStreamThatIsNoneIsTold(t *testing.T) {
	url, c := shared(t)
	key := unique(t, c, "stream")
	c.Set(t.Context(), key, "x", 0)
	srv := open(t, nil, source(t, redis.Config{URL: url, Streams: []string{key}, Channel: "a"}))
	eventually(t, "it is told", func() bool {
		return strings.HasPrefix(srv.Stats().Sources[0].Reason, "stream "+key+": WRONGTYPE")
	})
}

func TestWhatWasNotAcknowledgedComesFirst(t *testing.T) {
	url, c := shared(t)
	key := unique(t, c, "stream")
	ctx := t.Context()
	for n := range 600 { // more than are read at once
		add(t, c, key, "data", fmt.Sprint(n))
	}
	c.XGroupCreate(ctx, key, "g", "0")
	for _, consumer := range []string{"me", "dead"} {
		if err := c.XReadGroup(ctx, &client.XReadGroupArgs{Group: "g", Consumer: consumer, Streams: []string{key, ">"}, Count: 280}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	entries := c.XRange(ctx, key, "-", "+").Val()
	c.XDel(ctx, key, entries[3].ID, entries[285].ID) // one of each
	srv := open(t, nil, source(t, redis.Config{URL: url, Streams: []string{key}, Group: "g", Consumer: "me", Claim: time.Second, Channel: "a"}))
	got := follow(t, srv, "a")
	var want []string
	for n := range 600 {
		if n != 3 && n < 280 {
			want = append(want, fmt.Sprint(n))
		}
	}
	if data := got.Data(t, 279)[:279]; !slices.Equal(data, want) {
		t.Errorf("got %q first", data)
	}
	// The other consumer's are taken over when a second has passed.
	data := got.Data(t, 598)
	slices.Sort(data)
	if len(slices.Compact(data)) != 598 {
		t.Errorf("%d different ones", len(slices.Compact(data)))
	}
	pending(t, c, key, "g", 0)
	if s := srv.Stats().Sources[0]; s.Duplicates != 0 || s.Refusals["empty"] != 0 {
		t.Errorf("%+v", s)
	}
}

// Another process published, and died before it acknowledged.
func TestWhatIsKeptIsNotPublishedAgain(t *testing.T) {
	url, c := shared(t)
	key, file := unique(t, c, "stream"), filepath.Join(t.TempDir(), "events.db")
	config := redis.Config{URL: url, Streams: []string{key}, Group: "g", Consumer: "me", Start: "0", ID: "{id}", Channel: "a"}
	for n := range 10 {
		add(t, c, key, "data", fmt.Sprint(n))
	}
	for run := range 2 {
		backend, err := sqlite.New(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		srv := open(t, &eventsource.Settings{Backend: backend}, source(t, config))
		connected(t, srv, 1)
		pending(t, c, key, "g", 0)
		eventually(t, "ten are kept", func() bool {
			page, err := srv.Read(t.Context(), eventsource.Query{Channel: "a"})
			return err == nil && len(page.Events) == 10
		})
		s := srv.Stats().Sources[0]
		if run == 1 && (s.Published != 0 || s.Duplicates != 10) {
			t.Errorf("%+v", s)
		}
		shutdown(t, srv)
		if run == 0 { // the group forgets what was acknowledged
			c.XGroupSetID(t.Context(), key, "g", "0")
			c.XReadGroup(t.Context(), &client.XReadGroupArgs{Group: "g", Consumer: "me", Streams: []string{key, ">"}, Count: 10})
			pending(t, c, key, "g", 10)
		}
	}
}

func TestStreamsAreHeldBackWhilePublishesAreRefused(t *testing.T) {
	url, c := shared(t)
	key := unique(t, c, "stream")
	backend := &sourcetest.Backend{}
	srv := open(t, &eventsource.Settings{Backend: backend}, source(t, redis.Config{URL: url, Streams: []string{key}, Channel: "a"}))
	got := follow(t, srv, "a")
	connected(t, srv, 1)
	backend.Refuse(eventsource.ErrUnavailable)
	var want []string
	for n := range 2000 {
		want = append(want, fmt.Sprint(n))
		add(t, c, key, "data", want[n])
	}
	p := c.XPending(t.Context(), key, redis.DefaultGroup).Val()
	if p.Count == 0 || p.Count > 256 {
		t.Errorf("%d entries were read", p.Count)
	}
	backend.Refuse(nil)
	if data := got.Data(t, len(want)); !slices.Equal(data, want) {
		t.Error("the order is another")
	}
	pending(t, c, key, redis.DefaultGroup, 0)
}

func TestAGroupThatHasGoneIsMadeAgain(t *testing.T) {
	url, c := shared(t)
	key := unique(t, c, "stream")
	logs := &check.Log{}
	srv := open(t, &eventsource.Settings{Logger: logs.Logger()}, source(t, redis.Config{URL: url, Streams: []string{key}, Channel: "a"}))
	got := follow(t, srv, "a")
	connected(t, srv, 1)
	ctx := t.Context()
	var want []string
	publish := func(id string) {
		t.Helper()
		want = append(want, fmt.Sprint(len(want)))
		if err := c.XAdd(ctx, &client.XAddArgs{Stream: key, ID: id, Values: []string{"data", want[len(want)-1]}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	publish("5-1")
	publish("*")
	got.Data(t, 2)
	// The group alone: nothing comes twice, and nothing is missed.
	p := c.TxPipeline()
	p.XGroupDestroy(ctx, key, redis.DefaultGroup)
	p.XAdd(ctx, &client.XAddArgs{Stream: key, Values: []string{"data", "2"}})
	if _, err := p.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	want = append(want, "2")
	got.Data(t, 3)
	connected(t, srv, 2)
	// The stream, and another of its name whose ids begin anew.
	p = c.TxPipeline()
	p.Del(ctx, key)
	p.XAdd(ctx, &client.XAddArgs{Stream: key, ID: "5-1", Values: []string{"data", "3"}})
	if _, err := p.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	want = append(want, "3")
	got.Data(t, 4)
	publish("5-2")
	if data := got.Data(t, 5); !slices.Equal(data, want) {
		t.Errorf("got %q", data)
	}
	if s := srv.Stats().Sources[0]; s.Duplicates != 0 {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(logs.String(), "the group eventsource has gone, and is made again") {
		t.Error(logs)
	}
}

// Redis is killed, or its connections are cut, in the middle of a storm: every entry that
// the stream has is published once, in order.
func TestNoFaultLosesAnEntryOrRepeatsOne(t *testing.T) {
	for _, test := range []struct {
		fault  string
		rollup time.Duration
	}{{"kill", 0}, {"kill", 17 * time.Millisecond}, {"cut", 0}, {"cut", 17 * time.Millisecond}} {
		t.Run(fmt.Sprint(test.fault, " ", test.rollup), func(t *testing.T) {
			own := brokertest.OwnRedis(t)
			p, through := brokertest.Through(t, own.URL)
			srv := open(t, nil, source(t, redis.Config{URL: through, Streams: []string{"s"}, Start: "0", Channel: "a", Rollup: test.rollup}))
			got := follow(t, srv, "a")
			c := dial(t, own.URL)
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() { // what it was not answered it may have added
				defer close(stopped)
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					batch := c.Pipeline()
					for i := range 20 {
						batch.XAdd(t.Context(), &client.XAddArgs{Stream: "s", Values: []string{"data", fmt.Sprint((n*20 + i) % 1000)}})
					}
					if _, err := batch.Exec(t.Context()); err != nil {
						<-time.After(5 * time.Millisecond)
					}
				}
			}()
			for round := range 5 {
				before := srv.Stats().Sources[0].Published
				eventually(t, "the storm goes on", func() bool { return srv.Stats().Sources[0].Published > before+10 })
				if test.fault == "cut" {
					p.Cut()
				} else {
					own.Kill()
					p.Cut()
					own.Start()
				}
				connected(t, srv, round+1)
			}
			close(stop)
			<-stopped
			var want []string
			counts := map[string]uint64{}
			for _, e := range c.XRange(t.Context(), "s", "-", "+").Val() {
				want = append(want, e.Values["data"].(string))
				counts[want[len(want)-1]]++
			}
			pendingAtLast := func() bool { // what was read; and all of it was read
				groups, err := c.XInfoGroups(t.Context(), "s").Result()
				return err == nil && len(groups) == 1 && groups[0].Pending == 0 && groups[0].Lag == 0
			}
			eventually(t, "all is acknowledged", pendingAtLast)
			if test.rollup > 0 {
				eventually(t, "the sums are exact", func() bool { return maps.Equal(sums(t, got), counts) })
			} else if data := got.Data(t, len(want)); !slices.Equal(data, want) {
				t.Errorf("%d events of %d entries, or another order", len(data), len(want))
			}
			t.Logf("%d entries, %d duplicates dropped, %d connects", len(want), srv.Stats().Sources[0].Duplicates, srv.Stats().Sources[0].Connects)
		})
	}
}

func TestSocketsDatabasesUsersAndTLS(t *testing.T) {
	cert, key := brokertest.Certificate(t)
	socket := filepath.Join(t.TempDir(), "s")
	_, port, _ := net.SplitHostPort(brokertest.Free(t))
	own := brokertest.OwnRedis(t, "--unixsocket", socket, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key,
		"--tls-ca-cert-file", cert, "--tls-auth-clients", "no", "--user", "feed", "on", ">geheim", "~s*", "&*", "+@all")
	for name, url := range map[string]string{
		"socket":   "unix://feed:geheim@" + socket + "?db=3",
		"database": strings.Replace(own.URL, "//", "//feed:geheim@", 1) + "/3",
		"TLS":      "rediss://feed:geheim@127.0.0.1:" + port + "/3?skip_verify=true",
	} {
		key := "s" + name
		srv := open(t, nil, source(t, redis.Config{URL: url, Streams: []string{key}, Start: "0", Channel: "a"}))
		got := follow(t, srv, "a")
		c := dial(t, own.URL+"/3")
		add(t, c, key, "data", name)
		if data := got.Data(t, 1); data[0] != name {
			t.Errorf("%s: got %q", name, data)
		}
		shutdown(t, srv)
	}
	srv := open(t, nil, source(t, redis.Config{URL: "rediss://feed:geheim@127.0.0.1:" + port, Streams: []string{"s"}, Channel: "a"}))
	eventually(t, "the certificate is not trusted", func() bool {
		return strings.Contains(srv.Stats().Sources[0].Reason, "connect: tls: failed to verify certificate")
	})
}
