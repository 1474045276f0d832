package amqp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/internal/check"
	"github.com/railsmechanic/eventsource/source/amqp"
)

// A broker is one, seen by who publishes to it.
type broker struct {
	t       testing.TB
	url     string
	conn    *rabbit.Connection
	channel *rabbit.Channel
}

// shared is the broker that tests share.
func shared(t testing.TB) *broker { return at(t, brokertest.RabbitMQ(t)) }

// at connects to a broker.
func at(t testing.TB, url string) *broker {
	t.Helper()
	b := &broker{t: t, url: url}
	t.Cleanup(func() {
		if b.conn != nil {
			b.conn.Close()
		}
	})
	b.connect()
	return b
}

func (b *broker) connect() {
	b.t.Helper()
	conn, err := rabbit.Dial(b.url)
	if err != nil {
		b.t.Fatal(err)
	}
	b.conn = conn
	b.open()
}

func (b *broker) open() {
	b.t.Helper()
	var err error
	if b.channel, err = b.conn.Channel(); err != nil {
		b.t.Fatal(err)
	}
}

// name returns the name of something in the broker that no other test has.
func name() string { return fmt.Sprintf("eventsource-test-%x", rand.Uint64()) }

// queue returns a name whose queue is deleted with the test, and declares it unless args
// are nil.
func (b *broker) queue(args rabbit.Table) string {
	b.t.Helper()
	q := name()
	b.forget(q)
	if args != nil {
		b.declare(q, args)
	}
	return q
}

func (b *broker) declare(q string, args rabbit.Table) {
	b.t.Helper()
	if _, err := b.channel.QueueDeclare(q, true, false, false, false, args); err != nil {
		b.t.Fatal(err)
	}
}

// forget deletes a queue when the test ends.
func (b *broker) forget(q string) {
	b.t.Cleanup(func() {
		if b.conn.IsClosed() || b.channel.IsClosed() {
			b.t.Log("a queue is left in the broker: " + q)
			return
		}
		b.channel.QueueDelete(q, false, false, false)
	})
}

// exchange declares one that is deleted with the test.
func (b *broker) exchange(kind string) string {
	b.t.Helper()
	x := name()
	b.declareExchange(x, kind)
	return x
}

func (b *broker) declareExchange(x, kind string) {
	b.t.Helper()
	if err := b.channel.ExchangeDeclare(x, kind, true, false, false, false, nil); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { b.channel.ExchangeDelete(x, false, false) })
}

// publish publishes, as what properties say.
func (b *broker) publish(exchange, key, body string, properties ...func(*rabbit.Publishing)) {
	b.t.Helper()
	p := rabbit.Publishing{Body: []byte(body), DeliveryMode: rabbit.Persistent}
	for _, set := range properties {
		set(&p)
	}
	if err := b.channel.PublishWithContext(context.Background(), exchange, key, false, false, p); err != nil {
		b.t.Fatal(err)
	}
}

func id(id string) func(*rabbit.Publishing) {
	return func(p *rabbit.Publishing) { p.MessageId = id }
}

// left returns how much of a queue no consumer has.
func (b *broker) left(q string) int {
	b.t.Helper()
	state, err := b.channel.QueueDeclarePassive(q, true, false, false, false, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return state.Messages
}

// read takes the bodies that a queue has.
func (b *broker) read(q string) []string {
	b.t.Helper()
	var all []string
	for {
		d, ok, err := b.channel.Get(q, true)
		if err != nil {
			b.t.Fatal(err)
		}
		if !ok {
			return all
		}
		all = append(all, string(d.Body))
	}
}

// A node is a server that a source feeds.
type node struct {
	*eventsource.Server
	t   testing.TB
	log *check.Log
	end func()
}

// run returns a server with a source. It ends with the test.
func run(t testing.TB, settings *eventsource.Settings, c amqp.Config) *node {
	t.Helper()
	src, err := amqp.New(c)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, log: &check.Log{}}
	if settings == nil {
		settings = &eventsource.Settings{}
	}
	if settings.History.Events == 0 {
		settings.History.Events = 100_000
	}
	settings.Sources = []eventsource.Source{src}
	settings.Logger = n.log.Logger()
	if n.Server, err = eventsource.Open(settings); err != nil {
		t.Fatal(err)
	}
	n.end = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := n.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.end)
	return n
}

// ready is run until the source is connected.
func ready(t testing.TB, settings *eventsource.Settings, c amqp.Config) *node {
	t.Helper()
	n := run(t, settings, c)
	n.until("ok", 1)
	return n
}

func (n *node) stats() eventsource.SourceStats { return n.Stats().Sources[0] }

// until waits for a state of the source that was connected so often.
func (n *node) until(state string, connects uint64) {
	n.t.Helper()
	if !settled(func() bool { s := n.stats(); return s.State == state && s.Connects >= connects }) {
		n.t.Fatalf("the source is %+v, not %s:\n%s", n.stats(), state, n.log)
	}
}

// An arrived is an event as a consumer gets it.
type arrived struct{ channel, event, id, data string }

// A follower is a consumer of a server.
type follower struct {
	t      testing.TB
	events chan arrived
}

// follow returns what is published to channels, from the beginning on.
func (n *node) follow(channels string) *follower {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{n.t, make(chan arrived, 200_000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(f.events)
		for e, err := range n.Subscribe(ctx, channels, &eventsource.Subscription{History: 100_000}) {
			if err != nil {
				if _, ended := errors.AsType[*eventsource.EndError](err); !ended && ctx.Err() == nil {
					n.t.Error(err)
				}
				return
			}
			f.events <- arrived{e.Channel, e.Type, e.ID, e.Data}
		}
	}()
	n.t.Cleanup(func() { cancel(); <-done })
	return f
}

// next returns the next event.
func (f *follower) next() arrived {
	f.t.Helper()
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	select {
	case e, ok := <-f.events:
		if !ok {
			f.t.Fatal("the stream has ended")
		}
		return e
	case <-timeout.C:
		f.t.Fatal("nothing came for thirty seconds")
	}
	panic("unreachable")
}

// expect fails the test unless the next events have these data.
func (f *follower) expect(data ...string) {
	f.t.Helper()
	for i, want := range data {
		if e := f.next(); e.data != want {
			f.t.Fatalf("event %d is %+v, not %q", i+1, e, want)
		}
	}
}

// A valve is a backend that can be shut.
type valve struct {
	*sqlite.Backend
	shut atomic.Bool
}

func newValve(t testing.TB) *valve {
	return &valve{Backend: file(t, filepath.Join(t.TempDir(), "events.db"))}
}

func (v *valve) Publish(ctx context.Context, r *eventsource.Record) (eventsource.Kept, error) {
	if v.shut.Load() {
		return eventsource.Kept{}, eventsource.ErrUnavailable
	}
	return v.Backend.Publish(ctx, r)
}

func file(t testing.TB, path string) *sqlite.Backend {
	t.Helper()
	b, err := sqlite.New(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// numbered returns texts that end in 0 to n-1.
func numbered(text string, from, to int) []string {
	all := make([]string, 0, to-from)
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(text, i))
	}
	return all
}

// decode reads a roll-up.
func decode(t testing.TB, data string) map[string]int {
	t.Helper()
	var counts map[string]int
	if err := json.Unmarshal([]byte(data), &counts); err != nil {
		t.Fatal(err, data)
	}
	return counts
}
