package queue_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/internal/check"
	"github.com/railsmechanic/eventsource/queue"
)

// A broker is a connection of the test's own, by which it publishes and looks.
type broker struct {
	t       testing.TB
	url     string
	prefix  string // of the names of this test's queues
	conn    *amqp.Connection
	channel *amqp.Channel
	queues  []string
}

// openBroker connects to the RabbitMQ that tests share, or skips the test.
func openBroker(t testing.TB) *broker {
	t.Helper()
	b := &broker{t: t, url: brokertest.RabbitMQ(t), prefix: "test-" + uuid.NewString()[:8] + "-"}
	if err := b.connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, name := range b.queues {
			if ch, err := b.conn.Channel(); err == nil {
				ch.QueueDelete(name, false, false, false)
				ch.Close()
			}
		}
		b.conn.Close()
	})
	return b
}

func (b *broker) connect() (err error) {
	if b.conn, err = amqp.Dial(b.url); err != nil {
		return err
	}
	b.channel, err = b.conn.Channel()
	return err
}

// queue returns the name of a queue that is deleted when the test ends.
func (b *broker) queue(id string) string {
	b.queues = append(b.queues, b.prefix+id)
	return b.prefix + id
}

// pattern names the test's queues.
func (b *broker) pattern() string { return b.prefix + "${query:id}" }

// declare makes a queue with arguments of its own.
func (b *broker) declare(id string, arguments amqp.Table) string {
	b.t.Helper()
	name := b.queue(id)
	if _, err := b.channel.QueueDeclare(name, true, false, false, false, arguments); err != nil {
		b.t.Fatal(err)
	}
	return name
}

// publish puts payloads into a queue.
func (b *broker) publish(id string, payloads ...string) {
	b.t.Helper()
	for _, p := range payloads {
		b.publishing(id, amqp.Publishing{Body: []byte(p), DeliveryMode: amqp.Persistent})
	}
}

func (b *broker) publishing(id string, p amqp.Publishing) {
	b.t.Helper()
	if err := b.channel.PublishWithContext(b.t.Context(), "", b.prefix+id, true, false, p); err != nil {
		b.t.Fatal(err)
	}
}

// depth returns what waits in a queue, and how many consumers it has; -1 when there is no
// such queue.
func (b *broker) depth(id string) (waiting, consumers int) {
	b.t.Helper()
	ch, err := b.conn.Channel()
	if err != nil {
		b.t.Fatal(err)
	}
	defer ch.Close()
	q, err := ch.QueueDeclarePassive(b.prefix+id, true, false, false, false, nil)
	if err != nil {
		return -1, -1
	}
	return q.Messages, q.Consumers
}

// A served is a server with queues.
type served struct {
	*eventsource.Server
	queues *queue.Queues
	url    string // of the queues
	log    *check.Log
}

// serve starts a server with queues, which is ended with the test.
func serve(t testing.TB, settings *eventsource.Settings, c queue.Config) *served {
	t.Helper()
	s := &served{log: &check.Log{}}
	c.Logger = s.log.Logger()
	var err error
	if s.queues, err = queue.Open(c); err != nil {
		t.Fatal(err)
	}
	if settings.Retry == 0 {
		settings.Retry = 50 * time.Millisecond
	}
	if s.Server, err = eventsource.Open(settings); err != nil {
		t.Fatal(err)
	}
	s.HandleRelay("/queue", s.queues)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + l.Addr().String() + "/queue"
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		s.queues.Close()
		if t.Failed() {
			t.Log(s.log.String())
		}
	})
	return s
}

// serving starts a server with queues of one broker that is connected.
func serving(t testing.TB, b *broker, c queue.Config) *served {
	t.Helper()
	if c.Nodes == nil {
		c.Nodes = []string{b.url}
	}
	if c.Pattern == "" {
		c.Pattern = b.pattern()
	}
	if c.Expires == 0 {
		c.Expires = time.Minute // what is left over goes soon
	}
	s := serve(t, &eventsource.Settings{Timeout: 500 * time.Millisecond}, c)
	s.connected(t, len(c.Nodes))
	return s
}

// connected waits until so many brokers are.
func (s *served) connected(t testing.TB, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d brokers are connected", n), func() bool {
		is := 0
		for _, node := range s.queues.Stats().Nodes {
			if node.Connected {
				is++
			}
		}
		return is == n
	})
}

// consumers returns how many have a queue.
func (s *served) consumers() int {
	n := 0
	for _, node := range s.queues.Stats().Nodes {
		n += node.Consumers
	}
	return n
}

// A stream is one consumer's response.
type stream struct {
	t      testing.TB
	res    *http.Response
	lines  *bufio.Scanner
	cancel context.CancelFunc
}

// ask sends a request for a queue, by a connection of its own.
func ask(t testing.TB, url string, header ...string) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{t, res, bufio.NewScanner(res.Body), cancel}
	s.lines.Buffer(nil, 8<<20)
	t.Cleanup(s.leave)
	return s
}

// consume asks for a queue and has it.
func (s *served) consume(t testing.TB, id string, header ...string) *stream {
	t.Helper()
	c := ask(t, s.url+"?id="+url.QueryEscape(id), header...)
	if c.res.StatusCode != http.StatusOK {
		t.Fatal(c.res.Status, c.rest())
	}
	if first := c.block(); !strings.HasPrefix(first, "retry: ") || strings.Contains(first, "\n: ") {
		t.Fatalf("the stream begins with %q", first)
	}
	return c
}

// leave closes the connection.
func (s *stream) leave() {
	s.cancel()
	s.res.Body.Close()
}

// block returns the next block of lines, heartbeats left out; empty at the end.
func (s *stream) block() string {
	var b strings.Builder
	for s.lines.Scan() {
		switch line := s.lines.Text(); {
		case line != "":
			b.WriteString(line + "\n")
		case b.String() == ":\n":
			b.Reset()
		default:
			return b.String()
		}
	}
	return b.String()
}

// gets fails the test unless these are the data of the next events.
func (s *stream) gets(data ...string) {
	s.t.Helper()
	for _, want := range data {
		if got := s.block(); got != "data: "+want+"\n" {
			s.t.Fatalf("got %q, want the data %q", got, want)
		}
	}
}

// rest returns all that is left.
func (s *stream) rest() string {
	s.t.Helper()
	var b strings.Builder
	for s.lines.Scan() {
		b.WriteString(s.lines.Text() + "\n")
	}
	return b.String()
}

// refusedWith fails the test unless the answer is this refusal.
func (s *stream) refusedWith(status int, detail string) {
	s.t.Helper()
	body := s.rest()
	if s.res.StatusCode != status || s.res.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(body, detail) {
		s.t.Errorf("it is %s %v %s and not %d with %q", s.res.Status, s.res.Header, body, status, detail)
	}
	if passing := status == http.StatusServiceUnavailable; passing != (s.res.Header.Get("Retry-After") != "") {
		s.t.Errorf("%d with Retry-After %q", status, s.res.Header.Get("Retry-After"))
	}
}
