package eventsource_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"golang.org/x/sys/unix"
)

// bothPaths are the ways in which a consumer can be served.
var bothPaths = map[string]func(*eventsource.Settings) *eventsource.Settings{
	"reactor":  func(s *eventsource.Settings) *eventsource.Settings { return s },
	"portable": eventsource.Portable,
}

// BenchmarkPublish is a publish that nobody follows.
func BenchmarkPublish(b *testing.B) {
	for _, size := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			s := benchServer(b, nil)
			publishEach(b, s, size)
		})
	}
}

// publishEach publishes an event of so many bytes for each iteration.
func publishEach(b *testing.B, s *eventsource.Server, size int) {
	e := eventsource.Event{Data: strings.Repeat("x", size)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Publish(b.Context(), "news", e); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPublishAmong is a publish to one channel while others exist: what an
// event costs does not grow with them.
func BenchmarkPublishAmong(b *testing.B) {
	for _, n := range []int{100, 100_000} {
		b.Run(fmt.Sprintf("channels=%d", n), func(b *testing.B) {
			s := benchServer(b, &eventsource.Settings{History: eventsource.History{Bytes: 1 << 30}})
			for i := range n {
				if _, err := s.Publish(b.Context(), "c"+strconv.Itoa(i), eventsource.Event{Data: "x"}); err != nil {
					b.Fatal(err)
				}
			}
			publishEach(b, s, 100)
		})
	}
}

// BenchmarkPublishBeside is a publish to one consumer while others follow other
// channels: what an event costs does not grow with them either.
func BenchmarkPublishBeside(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("consumers=%d", n), func(b *testing.B) {
			s := benchServer(b, nil)
			for i := range n {
				s.Subscribe(b.Context(), "c"+strconv.Itoa(i), nil)
			}
			for _, c := range follow(b, s, 1) {
				go io.Copy(io.Discard, c)
			}
			publishEach(b, s, 100)
		})
	}
}

// BenchmarkChannel is what a channel without consumers holds of the Go heap when
// it keeps one event of 100 bytes, among a million like it.
func BenchmarkChannel(b *testing.B) {
	const n = 1_000_000
	e := eventsource.Event{Data: strings.Repeat("x", 100)}
	for b.Loop() {
		s, err := eventsource.Open(&eventsource.Settings{History: eventsource.History{Bytes: 1 << 30}})
		if err != nil {
			b.Fatal(err)
		}
		before := inUse()
		for i := range n {
			if _, err := s.Publish(b.Context(), "c"+strconv.Itoa(i), e); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(inUse()-before)/n, "B/channel")
		s.Stop()
	}
}

// BenchmarkDelivery is an event of 100 bytes to each of 1,000 consumers, one event
// after the other. The consumers are in this process: CPU-µs/delivery has their
// half of TCP, too.
func BenchmarkDelivery(b *testing.B) {
	for name, settings := range bothPaths {
		b.Run(name, func(b *testing.B) {
			const n = 1000
			s := benchServer(b, settings(&eventsource.Settings{Heartbeat: -1}))
			conns := follow(b, s, n)
			var delivered atomic.Int64
			everyone := make(chan struct{})
			for _, c := range conns {
				go func() {
					var buf [4 << 10]byte
					for {
						m, err := c.Read(buf[:])
						if err != nil {
							return
						}
						if events := int64(bytes.Count(buf[:m], []byte("\ndata: "))); delivered.Add(events)%n == 0 && events > 0 {
							everyone <- struct{}{}
						}
					}
				}()
			}
			e := eventsource.Event{Data: strings.Repeat("x", 100)}
			before := cpu()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Publish(b.Context(), "news", e); err != nil {
					b.Fatal(err)
				}
				<-everyone
			}
			b.ReportMetric(float64(cpu()-before)/float64(time.Microsecond)/float64(b.N*n), "CPU-µs/delivery")
		})
	}
}

// BenchmarkIdle is what a consumer that waits holds of the Go heap and stacks;
// the consumers' own sockets are outside of both.
func BenchmarkIdle(b *testing.B) {
	for name, settings := range bothPaths {
		b.Run(name, func(b *testing.B) {
			const n = 2000
			s := benchServer(b, settings(nil))
			for b.Loop() {
				before := inUse()
				fds := make([]int, n)
				addr := serve(b, s).(*net.TCPAddr)
				for i := range fds {
					fds[i] = connect(b, addr.Port, fmt.Sprintf("GET /c%d HTTP/1.1\r\nHost: x\r\n\r\n", i%100))
				}
				waitFor(b, func() bool { return s.ConsumerCountAll() == n })
				b.ReportMetric(float64(inUse()-before)/n, "B/consumer")
				for _, fd := range fds {
					unix.Close(fd)
				}
				waitFor(b, func() bool { return s.ConsumerCountAll() == 0 })
			}
		})
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func benchServer(b *testing.B, settings *eventsource.Settings) *eventsource.Server {
	s, err := eventsource.Open(settings)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Stop)
	return s
}

// serve has s serve on a port of its own.
func serve(b *testing.B, s *eventsource.Server) net.Addr {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go s.Serve(l)
	return l.Addr()
}

// follow connects n consumers to the channel news.
func follow(b *testing.B, s *eventsource.Server, n int) []net.Conn {
	addr := serve(b, s)
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "GET /news HTTP/1.1\r\nHost: x\r\n\r\n")
		conns[i] = c
	}
	waitFor(b, func() bool { return s.ConsumerCount("news") == n })
	return conns
}

// connect opens a connection without Go's memory for it, and sends a request.
func connect(b *testing.B, port int, request string) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		_, err = unix.Write(fd, []byte(request))
	}
	if err != nil {
		b.Fatal(err)
	}
	return fd
}

func waitFor(b *testing.B, ok func() bool) {
	b.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			b.Fatal("what was waited for did not come")
		}
	}
}

// BenchmarkResume is a consumer that comes back for 10,000 events of 100 bytes: from
// the log, or from a file, of which the log holds the last 256.
func BenchmarkResume(b *testing.B) {
	const n = 10_000
	for _, from := range []string{"log", "file"} {
		b.Run(from, func(b *testing.B) {
			settings := &eventsource.Settings{Heartbeat: -1, History: eventsource.History{Events: n + 1}}
			if from == "file" {
				settings.Backend, settings.History.Events = file(b, newFile(b)), 0
			}
			s := benchServer(b, settings)
			batch := make([]eventsource.Event, n/4)
			for i := range batch {
				batch[i].Data = strings.Repeat("x", 100)
			}
			r, err := s.Publish(b.Context(), "news", eventsource.Event{Data: "first"})
			if err != nil {
				b.Fatal(err)
			}
			for range 4 {
				if _, err := s.Publish(b.Context(), "news", batch...); err != nil {
					b.Fatal(err)
				}
			}
			addr := serve(b, s).String()
			request := "GET /news HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " + r.IDs[0] + "\r\n\r\n"
			buf := make([]byte, 64<<10)
			before := cpu()
			b.ReportAllocs()
			for b.Loop() {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					b.Fatal(err)
				}
				io.WriteString(conn, request)
				for events, tail := 0, 0; events < n; {
					m, err := conn.Read(buf[tail:])
					if err != nil {
						b.Fatal(err)
					}
					const mark = "\ndata: "
					events += bytes.Count(buf[:tail+m], []byte(mark))
					rest := bytes.LastIndexByte(buf[:tail+m], '\n')
					tail = copy(buf, buf[max(rest, tail+m-len(mark)+1):tail+m])
				}
				conn.Close()
			}
			b.ReportMetric(float64(cpu()-before)/float64(time.Microsecond)/float64(b.N*n), "CPU-µs/event")
		})
	}
}
