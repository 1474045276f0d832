package nats_test

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/internal/check"
	"github.com/railsmechanic/eventsource/internal/sourcetest"
	"github.com/railsmechanic/eventsource/source/nats"
)

// TestMain fails the package when goroutines or descriptors are left over.
func TestMain(m *testing.M) {
	check.Main(m)
}

// A broker is a connection to NATS, and names that nobody else uses there.
type broker struct {
	*natsgo.Conn
	jetstream.JetStream
	url  string
	name string // of a stream, and the first token of subjects
}

// newBroker connects to the NATS that tests share, or skips the test.
func newBroker(t testing.TB) *broker {
	t.Helper()
	return brokerAt(t, brokertest.NATS(t))
}

// brokerAt connects to a NATS, and stays connected over its restarts.
func brokerAt(t testing.TB, url string) *broker {
	t.Helper()
	nc, err := natsgo.Connect(url, natsgo.MaxReconnects(-1), natsgo.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return &broker{nc, js, url, fmt.Sprintf("es%x", rand.Uint64())}
}

// stream makes the broker's stream, of all its subjects.
func (b *broker) stream(t testing.TB) jetstream.Stream {
	t.Helper()
	return b.streamOf(t, b.name, b.name+".>")
}

func (b *broker) streamOf(t testing.TB, name string, subjects ...string) jetstream.Stream {
	t.Helper()
	s, err := b.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: subjects, Storage: jetstream.MemoryStorage})
	if err != nil {
		skip(t, "NATS has no JetStream: "+err.Error())
	}
	t.Cleanup(func() { b.DeleteStream(context.Background(), name) })
	return s
}

// send publishes to a subject, and fails the test when that fails.
func (b *broker) send(t testing.TB, subject, payload string, header ...string) {
	t.Helper()
	m := natsgo.NewMsg(subject)
	m.Data = []byte(payload)
	for i := 0; i < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	if err := b.Conn.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
}

// info is how the consumer "c" of the broker's stream stands.
func (b *broker) info(t testing.TB) *jetstream.ConsumerInfo {
	t.Helper()
	c, err := b.Consumer(t.Context(), b.name, "c")
	if err != nil {
		t.Fatal(err)
	}
	return c.CachedInfo()
}

// acknowledged waits until the consumer "c" has nothing on its way, and n behind it.
func (b *broker) acknowledged(t testing.TB, n uint64) {
	t.Helper()
	eventually(t, "everything to be acknowledged", func() bool {
		i := b.info(t)
		return i.NumAckPending == 0 && i.AckFloor.Stream == n && i.NumPending == 0
	})
}

// open opens a server with sources.
func open(t testing.TB, settings *eventsource.Settings, configs ...nats.Config) *eventsource.Server {
	t.Helper()
	for _, c := range configs {
		src, err := nats.New(c)
		if err != nil {
			t.Fatal(err)
		}
		settings.Sources = append(settings.Sources, src)
	}
	settings.History.Events = 200_000
	srv, err := eventsource.Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, srv) })
	return srv
}

// source is what the server says of its first source.
func source(srv *eventsource.Server) eventsource.SourceStats { return srv.Stats().Sources[0] }

// connected waits until the first source is.
func connected(t testing.TB, srv *eventsource.Server) {
	t.Helper()
	eventually(t, "the source to be connected", func() bool { return source(srv).State == "ok" })
}

// failing waits until the first source is, for a reason.
func failing(t testing.TB, srv *eventsource.Server, reason string) {
	t.Helper()
	if !settled(func() bool {
		s := source(srv)
		return s.State == "failing" && strings.Contains(s.Reason, reason)
	}) {
		t.Fatalf("the source does not fail with %q: %+v", reason, source(srv))
	}
}

// A following is what a consumer gets.
type following struct {
	t    testing.TB
	next func() (eventsource.Event, error, bool)
	stop func() // so that a shutdown needs not wait for it
}

// follow follows channels from the first event on.
func follow(t testing.TB, srv *eventsource.Server, channel string) *following {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	next, stop := iter.Pull2(srv.Subscribe(ctx, channel, &eventsource.Subscription{History: 200_000}))
	t.Cleanup(func() { cancel(); stop() })
	return &following{t, next, stop}
}

// event returns the next event.
func (f *following) event() eventsource.Event {
	f.t.Helper()
	e, err, ok := f.next()
	if err != nil || !ok {
		f.t.Fatalf("the subscription ended: %v", err)
	}
	return e
}

// expect fails the test unless these are the data of the next events.
func (f *following) expect(data ...string) {
	f.t.Helper()
	for i, want := range data {
		if e := f.event(); e.Data != want {
			f.t.Fatalf("event %d is %+v, not %q", i+1, e, want)
		}
	}
}

// numbers returns texts from first on.
func numbers(first, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = strconv.Itoa(first + i)
	}
	return all
}

// What the tests of several packages share.
var settled, eventually, skip, shutdown = check.Settled, check.Eventually, check.Skip, sourcetest.Shutdown
