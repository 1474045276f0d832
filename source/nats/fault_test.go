package nats_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/internal/check"
	"github.com/railsmechanic/eventsource/source/nats"
)

// storm publishes so many to the broker's stream, each until that is acknowledged, and
// counts them.
func (b *broker) storm(t testing.TB, n int, sent *atomic.Int64) (wait func()) {
	t.Helper()
	var storming sync.WaitGroup
	storming.Go(func() {
		for i := range n {
			m := natsgo.NewMsg(b.name + ".x")
			m.Data = []byte(strconv.Itoa(i))
			m.Header.Set(jetstream.MsgIDHeader, strconv.Itoa(i))
			eventually(t, "a publish to be acknowledged", func() bool {
				_, err := b.JetStream.PublishMsg(t.Context(), m, jetstream.WithRetryAttempts(0))
				return err == nil || t.Context().Err() != nil
			})
			sent.Add(1)
		}
	})
	return storming.Wait
}

// eachOnce fails the test unless each of n numbers comes once.
func (f *following) eachOnce(n int) {
	f.t.Helper()
	seen := make([]bool, n)
	for range n {
		i, err := strconv.Atoi(f.event().Data)
		if err != nil {
			f.t.Fatal(err)
		}
		if seen[i] {
			f.t.Errorf("%d came twice", i)
		}
		seen[i] = true
	}
}

func TestARestartOfTheBrokerLosesNothingOfAStream(t *testing.T) {
	o := brokertest.OwnNATS(t)
	b := brokerAt(t, o.URL)
	if _, err := b.CreateStream(t.Context(), jetstream.StreamConfig{Name: b.name, Subjects: []string{b.name + ".>"}}); err != nil {
		t.Fatal(err)
	}
	config := b.reads()
	config.AckWait = time.Second
	srv := open(t, &eventsource.Settings{}, config)
	connected(t, srv)
	got := follow(t, srv, "a")
	var sent atomic.Int64
	const n = 6000
	wait := b.storm(t, n, &sent)
	for _, at := range []int64{1500, 3500} {
		eventually(t, "the storm to be in its middle", func() bool { return sent.Load() > at })
		o.Stop()
		failing(t, srv, "")
		o.Start()
		connected(t, srv)
	}
	wait()
	got.eachOnce(n)
	b.acknowledged(t, n)
	s := source(srv)
	if s.Published != n || s.Connects < 3 {
		t.Errorf("%+v", s)
	}
	t.Logf("%d came again", s.Duplicates)
}

func TestConnectionsThatAreCutLoseNothingOfAStream(t *testing.T) {
	b := newBroker(t)
	b.stream(t)
	p, through := brokertest.Through(t, b.url)
	config := b.reads()
	config.URLs, config.AckWait = []string{through}, time.Second
	srv := open(t, &eventsource.Settings{}, config)
	connected(t, srv)
	got := follow(t, srv, "a")
	var sent atomic.Int64
	const n = 5000
	wait := b.storm(t, n, &sent)
	for cut := range uint64(4) {
		eventually(t, "the storm to go on", func() bool { return sent.Load() > int64(cut+1)*1000 })
		p.Cut()
		eventually(t, "the source to come back", func() bool { return source(srv).Connects > cut+1 })
	}
	wait()
	got.eachOnce(n)
	b.acknowledged(t, n)
	if s := source(srv); s.Published != n || s.Connects != 5 {
		t.Errorf("%+v", s)
	} else {
		t.Logf("%d came again", s.Duplicates)
	}
}

// What comes while nobody follows is lost, and nothing else.
func TestARestartOfTheBrokerIsAGapOfSubjects(t *testing.T) {
	o := brokertest.OwnNATS(t)
	b := brokerAt(t, o.URL)
	srv := open(t, &eventsource.Settings{}, nats.Config{URLs: []string{b.url}, Subjects: []string{b.name}, Channel: "a"})
	connected(t, srv)
	got := follow(t, srv, "a")
	b.send(t, b.name, "1")
	got.expect("1")
	o.Kill()
	failing(t, srv, "the connection is lost: ")
	o.Start()
	connected(t, srv)
	eventually(t, "the publisher to come back", b.IsConnected)
	b.send(t, b.name, "2")
	got.expect("2")
	if s := source(srv); s.Connects != 2 || s.Published != 2 {
		t.Errorf("%+v", s)
	}
}

func TestWhyItIsNotConnectedIsSaidWithoutThePassword(t *testing.T) {
	o := brokertest.OwnNATS(t, "--user", "joe", "--pass", "secret")
	at := o.Address
	nobody := brokertest.Free(t)
	for _, test := range []struct{ url, want string }{
		{"nats://joe:geheim@" + at, "connect to " + at + ": nats: Authorization Violation"},
		{"nats://" + at, "connect to " + at + ": nats: Authorization Violation"},
		{"nats://geheim@" + at, "connect to " + at + ": nats: Authorization Violation"},
		{"tls://joe:geheim@" + at, "connect to " + at + ": nats: secure connection not available"},
		{"nats://joe:geheim@" + nobody, "connect to " + nobody + ": dial tcp " + nobody + ": connect: connection refused"},
		{"nats://joe:geheim@" + nobody + ",nats://joe:geheim@" + at, "connect to " + nobody + ", " + at + ": "},
		{"nats://joe:geheim@no.such.host.invalid:4222", "connect to no.such.host.invalid:4222: dial tcp: lookup no.such.host.invalid"},
	} {
		var said check.Log
		srv := open(t, &eventsource.Settings{Logger: said.Logger()},
			nats.Config{URLs: strings.Split(test.url, ","), Subjects: []string{"x"}, Channel: "a"})
		failing(t, srv, test.want)
		begun := time.Now()
		shutdown(t, srv)
		if took := time.Since(begun); took > time.Second {
			t.Errorf("%s: it took %v to shut down", test.url, took)
		}
		if strings.Contains(said.String(), "geheim") || strings.Contains(source(srv).Reason, "geheim") {
			t.Errorf("%s is in the log: %s", test.url, &said)
		}
	}
	// One of several is enough.
	srv := open(t, &eventsource.Settings{}, nats.Config{URLs: []string{"nats://joe:secret@" + nobody, "nats://joe:secret@" + at}, Subjects: []string{"x"}, Channel: "a"})
	connected(t, srv)
}

// Who answers nothing at all holds up no shutdown.
func TestAServerThatSaysNothingHoldsUpNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	srv := open(t, &eventsource.Settings{}, nats.Config{URLs: []string{"nats://" + l.Addr().String()}, Subjects: []string{"x"}, Channel: "a"})
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begun := time.Now()
	shutdown(t, srv)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %v to shut down", took)
	}
}

func TestWhatIsNotAllowedIsSaid(t *testing.T) {
	o := brokertest.OwnNATS(t, "-c", configFile(t, `authorization { users = [ {user: joe, password: secret, permissions: {subscribe: ["_INBOX.>", "a"], publish: ">"}} ] }`))
	url := strings.Replace(o.URL, "//", "//joe:secret@", 1)
	srv := open(t, &eventsource.Settings{}, nats.Config{URLs: []string{url}, Subjects: []string{"a", "b"}, Channel: "a"})
	failing(t, srv, `Permissions Violation for Subscription to "b"`)
	if s := source(srv); s.Connects != 0 {
		t.Errorf("it is said to be connected: %+v", s)
	}
	connected(t, open(t, &eventsource.Settings{}, nats.Config{URLs: []string{url}, Subjects: []string{"a"}, Channel: "a"}))
}

func configFile(t testing.TB, content string) string {
	t.Helper()
	return writeFile(t, "nats.conf", content)
}

func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// nkey returns the file of a user's seed, and the public key.
func nkey(t *testing.T) (file, public string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "seed", string(seed)), public
}

func TestAnNKeyAndTLS(t *testing.T) {
	seed, public := nkey(t)
	cert, key := brokertest.Certificate(t)
	o := brokertest.OwnNATS(t, "-c", configFile(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }\nauthorization { users = [ {nkey: %s} ] }", cert, key, cert, public)))
	url := strings.Replace(o.URL, "nats:", "tls:", 1)
	config := nats.Config{URLs: []string{url}, Subjects: []string{"x"}, Channel: "a", CA: cert, Cert: cert, Key: key, NKey: seed}
	connected(t, open(t, &eventsource.Settings{}, config))

	without := config
	without.CA = ""
	failing(t, open(t, &eventsource.Settings{}, without), "certificate signed by unknown authority")
	without = config
	without.NKey = ""
	failing(t, open(t, &eventsource.Settings{}, without), "nats: ")
}
