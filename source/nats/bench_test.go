package nats_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/source/nats"
)

// payload is 100 bytes that begin with when they were sent.
func payload() []byte {
	at := strconv.FormatInt(time.Now().UnixNano(), 10)
	return []byte(at + " " + strings.Repeat("x", 99-len(at)))
}

// lag is how long ago a payload was sent.
func lag(data string) time.Duration {
	at, _, _ := strings.Cut(data, " ")
	n, _ := strconv.ParseInt(at, 10, 64)
	return time.Duration(time.Now().UnixNano() - n)
}

// served serves a server on the loopback and has n consumers read channel a by HTTP,
// counting the bytes that each gets.
func served(b *testing.B, srv *eventsource.Server, n int) []*atomic.Int64 {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	b.Cleanup(func() { shutdown(b, srv); <-done })
	counts := make([]*atomic.Int64, n)
	var reading sync.WaitGroup
	b.Cleanup(reading.Wait) // after all are closed
	for i := range counts {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET /a HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n"); err != nil {
			b.Fatal(err)
		}
		counts[i] = &atomic.Int64{}
		reading.Go(func() {
			begin := []byte("data: ")
			buffer, kept := make([]byte, 64<<10), 0 // what may be the half of one
			for {
				n, err := conn.Read(buffer[kept:])
				n += kept
				counts[i].Add(int64(bytes.Count(buffer[:n], begin)))
				kept = copy(buffer, buffer[max(n-len(begin)+1, 0):n])
				if err != nil {
					return
				}
			}
		})
		b.Cleanup(func() { conn.Close() })
	}
	eventually(b, "the consumers to come", func() bool { return srv.Stats().Consumers == n })
	return counts
}

// BenchmarkMessages sends 100 bytes each by core NATS or to a stream: to a source whose
// events go to 100 consumers over HTTP, and to the bare library.
func BenchmarkMessages(b *testing.B) {
	const batch = 10_000
	for _, way := range []string{"subjects", "stream"} {
		b.Run(way+"/100-consumers", func(b *testing.B) {
			br := newBroker(b)
			config := nats.Config{URLs: []string{br.url}, Subjects: []string{br.name + ".x"}, Channel: "a"}
			if way == "stream" {
				br.stream(b)
				config = br.reads()
			}
			srv := open(b, &eventsource.Settings{}, config)
			connected(b, srv)
			counts := served(b, srv, 100)
			want := int64(0)
			for b.Loop() {
				for range batch {
					br.Conn.Publish(br.name+".x", payload())
				}
				want += batch
				for _, c := range counts {
					eventually(b, "all to come", func() bool { return c.Load() >= want })
				}
			}
			b.ReportMetric(float64(want)/b.Elapsed().Seconds(), "messages/s")
		})
		b.Run(way+"/bare", func(b *testing.B) {
			br := newBroker(b)
			var count atomic.Int64
			br.receive(b, way, func([]byte) { count.Add(1) })
			want := int64(0)
			for b.Loop() {
				for range batch {
					br.Conn.Publish(br.name+".x", payload())
				}
				want += batch
				eventually(b, "all to come", func() bool { return count.Load() >= want })
			}
			b.ReportMetric(float64(want)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

// receive has the bare library receive what comes, over another connection than it is
// sent by.
func (b *broker) receive(t testing.TB, way string, each func(data []byte)) {
	t.Helper()
	other := brokerAt(t, b.url)
	if way == "subjects" {
		if _, err := other.Conn.Subscribe(b.name+".x", func(m *natsgo.Msg) { each(m.Data) }); err != nil {
			t.Fatal(err)
		}
		if err := other.Flush(); err != nil {
			t.Fatal(err)
		}
		return
	}
	b.stream(t)
	consumer, err := other.CreateConsumer(t.Context(), b.name, jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	consuming, err := consumer.Consume(func(m jetstream.Msg) { each(m.Data()); m.Ack() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(consuming.Stop)
}

// BenchmarkLatency sends 1000 messages a second, and reports how long they are on their
// way to a consumer, and by the bare library.
func BenchmarkLatency(b *testing.B) {
	for _, way := range []string{"subjects", "stream"} {
		b.Run(way, func(b *testing.B) {
			br, bare := newBroker(b), newBroker(b)
			config := nats.Config{URLs: []string{br.url}, Subjects: []string{br.name + ".x"}, Channel: "a"}
			if way == "stream" {
				br.stream(b)
				config = br.reads()
			}
			srv := open(b, &eventsource.Settings{}, config)
			connected(b, srv)
			got := follow(b, srv, "a")
			came := make(chan time.Duration, 1)
			bare.receive(b, way, func(data []byte) { came <- lag(string(data)) })
			var ours, theirs []time.Duration
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for b.Loop() {
				<-tick.C
				br.Conn.Publish(br.name+".x", payload())
				ours = append(ours, lag(got.event().Data))
				<-tick.C
				bare.Conn.Publish(bare.name+".x", payload())
				theirs = append(theirs, <-came)
			}
			slices.Sort(ours)
			slices.Sort(theirs)
			for _, p := range []int{50, 99} {
				at := len(ours) * p / 100
				b.ReportMetric(float64(ours[at].Microseconds()), fmt.Sprintf("µs-p%d", p))
				b.ReportMetric(float64((ours[at]-theirs[at]).Nanoseconds())/1000, fmt.Sprintf("µs-added-p%d", p))
			}
			got.stop()
		})
	}
}
