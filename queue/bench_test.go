package queue_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/queue"
)

// childNodes is set for a process that serves queues of this broker by this pattern,
// separated by a space.
const childNodes = "QUEUE_BENCHMARK_NODES"

// serveUntilKilled serves queues, and prints where.
func serveUntilKilled(nodes string) {
	node, pattern, _ := strings.Cut(nodes, " ")
	q, err := queue.Open(queue.Config{Nodes: []string{node}, Pattern: pattern, Expires: time.Minute})
	if err != nil {
		panic(err)
	}
	srv, err := eventsource.Open(nil)
	if err != nil {
		panic(err)
	}
	srv.HandleRelay("/queue", q)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	for !q.Stats().Nodes[0].Connected {
		time.Sleep(time.Millisecond)
	}
	fmt.Println(l.Addr())
	panic(srv.Serve(l))
}

// startChild starts a process that serves queues.
func startChild(b *testing.B, br *broker) (cmd *exec.Cmd, address string) {
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childNodes+"="+br.url+" "+br.pattern())
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return cmd, strings.TrimSpace(line)
}

// resident returns the resident memory of a process in bytes.
func resident(b *testing.B, pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := bytes.Cut(status, []byte("VmRSS:"))
	kb, err := strconv.Atoi(string(bytes.Fields(rest)[0]))
	if err != nil {
		b.Fatal(err)
	}
	return kb << 10
}

// latencies are how long events took.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

// took notes the time since an event was published, which is its payload.
func (l *latencies) took(payload []byte) {
	sent, err := strconv.ParseInt(string(payload), 10, 64)
	if err != nil {
		return // no event
	}
	d := time.Duration(time.Now().UnixNano() - sent)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, d)
}

func (l *latencies) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

func (l *latencies) report(b *testing.B, what string) {
	slices.Sort(l.all)
	at := func(q float64) float64 { return float64(l.all[int(q*float64(len(l.all)-1))].Microseconds()) }
	b.ReportMetric(at(0.5), what+"-p50-µs")
	b.ReportMetric(at(0.99), what+"-p99-µs")
}

// BenchmarkTwoThousandConsumers has 2,000 consumers, each with a queue, of one connection
// to the broker: what each takes of the server's memory, how fast they come, and how long
// an event takes to one of them at 250 a second, beside as many raw consumers in the
// program that measures.
func BenchmarkTwoThousandConsumers(b *testing.B) {
	consumers := 2000
	if testing.Short() { // only whether it works
		consumers = 50
	}
	if runtime.GOOS != "linux" {
		b.Skip("SKIPPED: it reads /proc")
	}
	br := openBroker(b)
	child, address := startChild(b, br)
	before := resident(b, child.Process.Pid)

	var relayed, raw latencies
	var reading sync.WaitGroup
	conns := make([]net.Conn, consumers)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
		reading.Wait()
	}()
	start := time.Now()
	for i := range conns {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		conns[i] = conn
		fmt.Fprintf(conn, "GET /queue?id=h%d HTTP/1.1\r\nHost: localhost\r\n\r\n", i)
		buffered := bufio.NewReaderSize(conn, 512)
		for line := ""; line != ":\n"; { // the stream has begun
			if line, err = buffered.ReadString('\n'); err != nil {
				b.Fatal(i, err)
			}
		}
		reading.Go(func() {
			for {
				line, err := buffered.ReadSlice('\n')
				if err != nil {
					return
				}
				if payload, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
					relayed.took(bytes.TrimSpace(payload))
				}
			}
		})
	}
	rate := float64(consumers) / time.Since(start).Seconds()
	idle := resident(b, child.Process.Pid)

	rawConn, err := amqp.Dial(br.url)
	if err != nil {
		b.Fatal(err)
	}
	defer rawConn.Close()
	for i := range consumers {
		ch, err := rawConn.Channel()
		if err != nil {
			b.Fatal(err)
		}
		name := fmt.Sprint(br.prefix, "r", i)
		if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{"x-expires": 60000}); err != nil {
			b.Fatal(err)
		}
		if err := ch.Qos(1, 0, false); err != nil {
			b.Fatal(err)
		}
		deliveries, err := ch.Consume(name, "", false, true, false, false, nil)
		if err != nil {
			b.Fatal(err)
		}
		reading.Go(func() {
			for d := range deliveries {
				raw.took(d.Body)
				d.Ack(false)
			}
		})
	}

	pace := time.NewTicker(4 * time.Millisecond)
	defer pace.Stop()
	n := 0
	for b.Loop() {
		<-pace.C
		for _, kind := range []string{"h", "r"} {
			br.publish(fmt.Sprint(kind, n%consumers), strconv.FormatInt(time.Now().UnixNano(), 10))
		}
		n++
	}
	eventually(b, "all have come", func() bool { return relayed.len() == n && raw.len() == n })
	relayed.report(b, "queue")
	raw.report(b, "raw")
	b.ReportMetric(rate, "connects/s")
	b.ReportMetric(float64(idle-before)/float64(consumers), "B/consumer")
	b.ReportMetric(float64(resident(b, child.Process.Pid)-before)/float64(consumers), "B/consumer-loaded")
}
