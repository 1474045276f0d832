package amqp_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/source/amqp"
)

// BenchmarkToConsumers brings b.N payloads of 100 bytes from a queue to 100 consumers of
// Server.Subscribe, and beside it the same number to the client library alone, with the
// same prefetch and an acknowledgement of each run.
func BenchmarkToConsumers(b *testing.B) {
	const consumers, prefetch = 100, 256
	payload := strings.Repeat("x", 100)
	for _, kind := range []string{amqp.Classic, amqp.Stream} {
		for _, raw := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/raw=%v", kind, raw), func(b *testing.B) {
				br := shared(b)
				args := rabbit.Table{"x-queue-type": kind}
				q := br.queue(args)
				count := min(b.N, 100_000)
				fillWith(b, br, q, payload, count)
				b.ResetTimer()
				began := time.Now()
				if raw {
					receive(b, br.url, q, kind == amqp.Stream, prefetch, count, nil)
				} else {
					toConsumers(b, amqp.Config{URLs: []string{br.url}, Queue: q, QueueType: kind, Offset: map[string]string{amqp.Stream: "first"}[kind],
						Channel: "a", Prefetch: prefetch}, consumers, count)
				}
				took := time.Since(began)
				b.StopTimer()
				b.ReportMetric(float64(count)/took.Seconds(), "events/s")
			})
		}
	}
}

func fillWith(b *testing.B, br *broker, q, payload string, n int) {
	b.Helper()
	if err := br.channel.Confirm(false); err != nil {
		b.Fatal(err)
	}
	var last *rabbit.DeferredConfirmation
	for range n {
		c, err := br.channel.PublishWithDeferredConfirm("", q, false, false, rabbit.Publishing{Body: []byte(payload)})
		if err != nil {
			b.Fatal(err)
		}
		last = c
	}
	last.Wait()
}

// toConsumers runs a source until each of some consumers has had so many events.
func toConsumers(b *testing.B, c amqp.Config, consumers, count int) {
	b.Helper()
	src, err := amqp.New(c)
	if err != nil {
		b.Fatal(err)
	}
	began := make(chan struct{})
	srv, err := eventsource.Open(&eventsource.Settings{History: eventsource.History{Events: 100_000, Bytes: 1 << 30}, Sources: []eventsource.Source{later{src, began}}})
	if err != nil {
		b.Fatal(err)
	}
	var all sync.WaitGroup
	for range consumers {
		all.Go(func() {
			n := 0
			for _, err := range srv.Subscribe(context.Background(), "a", &eventsource.Subscription{History: 100_000}) {
				if err != nil {
					b.Error(err)
					return
				}
				if n++; n == count {
					return
				}
			}
		})
	}
	close(began)
	all.Wait()
	b.StopTimer()
	srv.Shutdown(context.Background())
}

// later is a source that begins when a channel is closed.
type later struct {
	eventsource.Source
	began chan struct{}
}

func (l later) Run(ctx context.Context, feed *eventsource.Feed) error {
	<-l.began
	return l.Source.Run(ctx, feed)
}

// receive takes so many payloads with the client library alone.
func receive(b *testing.B, url, q string, stream bool, prefetch, count int, each func(d *rabbit.Delivery)) {
	b.Helper()
	conn, err := rabbit.Dial(url)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		b.Fatal(err)
	}
	if err := ch.Qos(prefetch, 0, false); err != nil {
		b.Fatal(err)
	}
	var args rabbit.Table
	if stream {
		args = rabbit.Table{"x-stream-offset": "first"}
	}
	deliveries, err := ch.Consume(q, "", false, false, false, false, args)
	if err != nil {
		b.Fatal(err)
	}
	for i := range count {
		d := <-deliveries
		if each != nil {
			each(&d)
		}
		if (i+1)%(prefetch/4) == 0 || i == count-1 || each != nil {
			d.Ack(true)
		}
	}
}

// BenchmarkLatency publishes 1,000 payloads of 100 bytes a second to a fanout exchange,
// for two seconds, from which both a source with 100 consumers and the client library
// alone receive them, and reports the time from the publish to the arrival at one
// consumer, less that of the library, at the median and the 99th percentile.
func BenchmarkLatency(b *testing.B) {
	const rate, consumers = 1000, 100
	br := shared(b)
	x := br.exchange("fanout")
	q := br.queue(rabbit.Table{})
	if err := br.channel.QueueBind(q, "", x, false, nil); err != nil {
		b.Fatal(err)
	}
	count := min(b.N*rate, 2*rate)
	n := ready(b, nil, amqp.Config{URLs: []string{br.url}, Exchange: x, Channel: "a"})
	sent := make([]atomic.Int64, count)
	raw, ours := make([]time.Duration, count), make([]time.Duration, count)
	since := func(d string) (int, time.Duration) {
		var i int
		fmt.Sscan(d, &i)
		return i, time.Since(time.Unix(0, sent[i].Load()))
	}
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	measured := rand.IntN(consumers)
	for c := range consumers {
		all.Go(func() {
			k := 0
			for e, err := range n.Subscribe(ctx, "a", &eventsource.Subscription{History: count}) {
				if err != nil {
					b.Error(err)
					return
				}
				if c == measured {
					i, took := since(e.Data)
					ours[i] = took
				}
				if k++; k == count {
					return
				}
			}
		})
	}
	all.Go(func() {
		receive(b, br.url, q, false, 256, count, func(d *rabbit.Delivery) {
			i, took := since(string(d.Body))
			raw[i] = took
		})
	})
	eventually(b, "100 consumers", func() bool { return n.Stats().Consumers == consumers })
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	b.ResetTimer()
	for i := range count {
		<-tick.C
		sent[i].Store(time.Now().UnixNano())
		br.publish(x, "", fmt.Sprintf("%-100d", i))
	}
	all.Wait()
	b.StopTimer()
	slices.Sort(raw)
	slices.Sort(ours)
	for name, at := range map[string]int{"p50": count / 2, "p99": count * 99 / 100} {
		b.ReportMetric(float64(raw[at].Microseconds()), "raw-"+name+"-µs")
		b.ReportMetric(float64(ours[at].Microseconds()), name+"-µs")
	}
}
