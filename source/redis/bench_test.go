package redis_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	client "github.com/redis/go-redis/v9"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/source/redis"
)

const benchConsumers = 100

// A way is one in which events come in: what is published so, the raw client receives,
// and a source feeds 100 consumers with.
type way struct {
	name    string
	publish func(ctx context.Context, p client.Pipeliner, name, payload string)
	receive func(ctx context.Context, c *client.Client, name string, got func(payload string)) // until ctx ends
	config  func(url, name string) redis.Config
}

var ways = []way{
	{"channel",
		func(ctx context.Context, p client.Pipeliner, name, payload string) { p.Publish(ctx, name, payload) },
		func(ctx context.Context, c *client.Client, name string, got func(string)) {
			sub := c.Subscribe(ctx, name)
			defer context.AfterFunc(ctx, func() { sub.Close() })()
			for {
				m, err := sub.ReceiveMessage(ctx)
				if err != nil {
					return
				}
				got(m.Payload)
			}
		},
		func(url, name string) redis.Config {
			return redis.Config{URL: url, Subscribe: []string{name}, Channel: "bench"}
		}},
	{"stream",
		func(ctx context.Context, p client.Pipeliner, name, payload string) {
			p.XAdd(ctx, &client.XAddArgs{Stream: name, MaxLen: 100_000, Approx: true, Values: []string{"data", payload}})
		},
		func(ctx context.Context, c *client.Client, name string, got func(string)) {
			c.XGroupCreateMkStream(ctx, name, "raw", "$")
			for ctx.Err() == nil {
				read, err := c.XReadGroup(ctx, &client.XReadGroupArgs{Group: "raw", Consumer: "raw", Streams: []string{name, ">"}, Count: 256, Block: 100 * time.Millisecond}).Result()
				if err != nil {
					continue
				}
				ids := make([]string, 0, 256)
				for _, e := range read[0].Messages {
					got(e.Values["data"].(string))
					ids = append(ids, e.ID)
				}
				c.XAck(ctx, name, "raw", ids...)
			}
		},
		func(url, name string) redis.Config {
			return redis.Config{URL: url, Streams: []string{name}, Channel: "bench"}
		}},
}

// payload is 100 bytes that say when they were made.
func payload(now time.Time) string {
	s := strconv.FormatInt(now.UnixNano(), 10) + " "
	return s + strings.Repeat("x", 100-len(s))
}

// age is how long ago a payload was made.
func age(payload string) time.Duration {
	at, err := strconv.ParseInt(payload[:19], 10, 64)
	if err != nil {
		return 0
	}
	return time.Since(time.Unix(0, at))
}

// A tally counts what comes, and notes how long it took.
type tally struct {
	n    atomic.Int64
	mu   sync.Mutex
	ages []time.Duration
}

func (t *tally) got(payload string) {
	t.n.Add(1)
	a := age(payload)
	t.mu.Lock()
	t.ages = append(t.ages, a)
	t.mu.Unlock()
}

// percentile returns one of the ages in milliseconds, and begins anew.
func (t *tally) percentiles() (p50, p99 float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.Sort(t.ages)
	ms := func(p int) float64 { return float64(t.ages[len(t.ages)*p/100]) / 1e6 }
	p50, p99 = ms(50), ms(99)
	t.ages = nil
	return p50, p99
}

// consume follows the channel over HTTP, on so many connections, until the test ends.
func consume(b *testing.B, srv *eventsource.Server) []*tally {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	var reading sync.WaitGroup
	var tallies []*tally
	for range benchConsumers {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		fmt.Fprint(conn, "GET /bench HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
		t := &tally{}
		tallies = append(tallies, t)
		reading.Go(func() {
			r := bufio.NewReaderSize(conn, 64<<10)
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					return
				}
				if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
					if t == tallies[0] {
						t.got(string(data))
					} else {
						t.n.Add(1)
					}
				}
			}
		})
		b.Cleanup(func() { conn.Close() })
	}
	b.Cleanup(reading.Wait)
	b.Cleanup(func() {
		shutdown(b, srv)
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			b.Error(err)
		}
	})
	eventually(b, "all consumers follow", func() bool { return srv.Stats().Consumers == benchConsumers })
	return tallies
}

// BenchmarkSource measures each way: events a second from Redis to 100 consumers over
// HTTP, beside the raw client that only receives the same; and the latency of both at
// 1,000 a second. Each has three seconds.
func BenchmarkSource(b *testing.B) {
	for _, w := range ways {
		for _, kind := range []string{"raw", "source"} {
			b.Run(w.name+"/"+kind, func(b *testing.B) { w.bench(b, kind) })
		}
	}
}

func (w *way) bench(b *testing.B, kind string) {
	url, c := shared(b)
	name := unique(b, c, "bench")
	var tallies []*tally
	if kind == "raw" {
		t := &tally{}
		tallies = []*tally{t}
		ctx, cancel := context.WithCancel(context.Background())
		var receiving sync.WaitGroup
		raw := dial(b, url)
		receiving.Go(func() { w.receive(ctx, raw, name, t.got) })
		b.Cleanup(receiving.Wait)
		b.Cleanup(cancel)
	} else {
		srv := open(b, &eventsource.Settings{History: eventsource.History{Events: 4096}}, source(b, w.config(url, name)))
		connected(b, srv, 1)
		tallies = consume(b, srv)
	}
	least := func() int64 {
		n := tallies[0].n.Load()
		for _, t := range tallies {
			n = min(n, t.n.Load())
		}
		return n
	}
	eventually(b, "the first comes", func() bool {
		p := c.Pipeline()
		w.publish(b.Context(), p, name, payload(time.Now()))
		p.Exec(b.Context())
		return least() > 0
	})
	began := least()
	for b.Loop() { // once: what is measured takes its time
	}

	// As many as go through: no more than 4,096 are under way.
	lasts, timed := 3*time.Second, 3000
	if testing.Short() { // only whether it works
		lasts, timed = 100*time.Millisecond, 100
	}
	sent, begin := began, time.Now()
	for time.Since(begin) < lasts {
		if sent-least() > 4096 {
			<-time.After(100 * time.Microsecond)
			continue
		}
		p := c.Pipeline()
		for range 256 {
			w.publish(b.Context(), p, name, payload(time.Now()))
		}
		if _, err := p.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
		sent += 256
	}
	eventually(b, "all came", func() bool { return least() >= sent })
	b.ReportMetric(float64(least()-began)/time.Since(begin).Seconds(), "events/s")
	b.ReportMetric(0, "ns/op")

	tallies[0].percentiles()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	before := least()
	for range timed {
		p := c.Pipeline()
		w.publish(b.Context(), p, name, payload(time.Now()))
		p.Exec(b.Context())
		<-tick.C
	}
	eventually(b, "all came", func() bool { return least() >= before+int64(timed) })
	p50, p99 := tallies[0].percentiles()
	b.ReportMetric(p50, "p50-ms")
	b.ReportMetric(p99, "p99-ms")
}
