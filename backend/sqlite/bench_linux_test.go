package sqlite

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// cpu returns the time that the process has computed for.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure reports what the b.N events of run cost.
func measure(b *testing.B, run func()) {
	b.ResetTimer()
	computed := cpu()
	run()
	computed = cpu() - computed
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(computed.Microseconds())/float64(b.N), "cpu-µs/event")
}

// payload is the data of an event, and channelOf the channel of the n-th: one of a
// hundred below one wildcard.
var payload = `{"order":17,"state":"shipped","note":"` + strings.Repeat("x", 160) + `"}`

func channelOf(n int64) string { return channels[n%100] }

var channels = func() (names [100]string) {
	for i := range names {
		names[i] = fmt.Sprintf("orders.%d", i)
	}
	return names
}()

func BenchmarkPublish(b *testing.B) {
	for _, publishers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("publishers=%d", publishers), func(b *testing.B) { benchmarkPublish(b, usual, publishers) })
	}
}

// BenchmarkPublishToFullChannels is with an event that goes for each that comes.
func BenchmarkPublishToFullChannels(b *testing.B) {
	benchmarkPublish(b, idle{eventsource.Retention{Events: 10, Age: time.Hour}}, 256)
}

func benchmarkPublish(b *testing.B, node eventsource.Node, publishers int) {
	backend, err := New(filepath.Join(b.TempDir(), "events.db"), nil)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := backend.Start(node); err != nil {
		b.Fatal(err)
	}
	defer backend.Close()
	var next atomic.Int64
	measure(b, func() {
		done := make(chan error)
		for range publishers {
			go func() {
				for {
					n := next.Add(1)
					if n > int64(b.N) {
						done <- nil
						return
					}
					r := &eventsource.Record{Channels: []string{channelOf(n)}, Events: []eventsource.Event{{Type: "order", Data: payload}}}
					if _, err := backend.Publish(context.Background(), r); err != nil {
						done <- err
						return
					}
				}
			}()
		}
		for range publishers {
			if err := <-done; err != nil {
				b.Error(err)
			}
		}
	})
}

// bare returns a connection to a file of the same tables, with the logs of the
// benchmark's channels.
func bare(b *testing.B) *conn {
	file := filepath.Join(b.TempDir(), "events.db")
	db, err := dial(file)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.close() })
	if err := prepare(db, file, "full"); err != nil {
		b.Fatal(err)
	}
	return db
}

// insert adds the rows of the n-th event: the event, its channel's and its wildcard's.
func insert(b *testing.B, db *conn, n int64) {
	at := time.Now().UnixMilli()
	for _, err := range []error{
		second(db.exec("INSERT INTO events (seq, time, expires, ttl, retry, nodata, id, type, channels, data) VALUES (?,?,?,?,?,?,?,?,?,?)",
			n, at, at+30*24*3600*1000, nil, nil, nil, nil, "order", channelOf(n), payload)),
		second(db.exec("INSERT INTO placed (log, seq) VALUES (?,?)", n%100+2, n)),
		second(db.exec("INSERT INTO placed (log, seq) VALUES (?,?)", int64(1), n)),
	} {
		if err != nil {
			b.Fatal(err)
		}
	}
}

func second(_ int64, err error) error { return err }

// transactions inserts b.N events, so many a transaction.
func transactions(b *testing.B, size int) {
	db := bare(b)
	measure(b, func() {
		for n := 1; n <= b.N; {
			if _, err := db.exec("BEGIN IMMEDIATE"); err != nil {
				b.Fatal(err)
			}
			for end := min(b.N, n+size-1); n <= end; n++ {
				insert(b, db, int64(n))
			}
			if _, err := db.exec("UPDATE state SET seq = ?", int64(n-1)); err != nil {
				b.Fatal(err)
			}
			if _, err := db.exec("COMMIT"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkOneTransactionAnEvent is what a backend without group commit would do.
func BenchmarkOneTransactionAnEvent(b *testing.B) { transactions(b, 1) }

// BenchmarkRawBatches is what the file takes when nothing else is done.
func BenchmarkRawBatches(b *testing.B) { transactions(b, 256) }

// BenchmarkRead reads 10,000 events of a channel, and of a wildcard, by pages of 256.
func BenchmarkRead(b *testing.B) {
	const events = 10_000
	backend, err := New(filepath.Join(b.TempDir(), "events.db"), nil)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := backend.Start(usual); err != nil {
		b.Fatal(err)
	}
	defer backend.Close()
	for range events / 100 {
		for _, channel := range []string{"orders.1", "other.1"} {
			r := &eventsource.Record{Channels: []string{channel}}
			for range 100 {
				r.Events = append(r.Events, eventsource.Event{Type: "order", Data: payload})
			}
			if _, err := backend.Publish(context.Background(), r); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, channel := range []string{"orders.1", "orders.*", "*"} {
		b.Run(channel, func(b *testing.B) {
			read := 0
			computed := cpu()
			for b.Loop() {
				for q := (eventsource.Query{Channel: channel, Limit: 256}); ; {
					page, err := backend.Read(context.Background(), q)
					if err != nil {
						b.Fatal(err)
					}
					read += len(page.Events)
					if !page.More {
						break
					}
					q.After = page.Events[len(page.Events)-1].Seq
				}
			}
			b.ReportMetric(float64(read)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64((cpu()-computed).Microseconds())/float64(read), "cpu-µs/event")
		})
	}
}
