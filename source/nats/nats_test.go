package nats_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/check"
	"github.com/railsmechanic/eventsource/internal/sourcetest"
	"github.com/railsmechanic/eventsource/source/nats"
)

func TestWhatComesOnSubjectsIsPublished(t *testing.T) {
	b := newBroker(t)
	srv := open(t, &eventsource.Settings{}, nats.Config{URLs: []string{b.url},
		Subjects: []string{b.name + ".x.*.b.*", b.name + ".rest.>"}, Channel: "{1}", Event: "{name}", ID: "{header:Order-Id}"})
	connected(t, srv)
	got := follow(t, srv, "*")
	b.send(t, b.name+".x.a.b.c", "one", "Order-Id", "5")
	b.send(t, b.name+".x.x.b.y", "two")
	b.send(t, b.name+".x.x.c.y", "for nobody")
	b.send(t, b.name+".rest.d.e.f", "three")
	// What comes on two subjects comes in any order.
	all := []eventsource.Event{got.event(), got.event(), got.event()}
	slices.SortFunc(all, func(a, b eventsource.Event) int { return strings.Compare(a.Channel, b.Channel) })
	for i, want := range []eventsource.Event{
		{Channel: "a", Type: b.name + ".x.a.b.c", ID: "5", Data: "one"},
		{Channel: "d.e.f", Type: b.name + ".rest.d.e.f", Data: "three"},
		{Channel: "x", Type: b.name + ".x.x.b.y", Data: "two"},
	} {
		if e := all[i]; e.Channel != want.Channel || e.Type != want.Type || e.Data != want.Data || want.ID != "" && e.ID != want.ID || e.ID == "" {
			t.Errorf("%+v came, not %+v", e, want)
		}
	}
	if s := source(srv); s.Published != 3 || s.Connects != 1 || s.Name != "nats-1" {
		t.Errorf("%+v", s)
	}
}

func TestOneSubjectKeepsItsOrder(t *testing.T) {
	b := newBroker(t)
	srv := open(t, &eventsource.Settings{}, nats.Config{URLs: []string{b.url}, Subjects: []string{b.name}, Channel: "a"})
	connected(t, srv)
	got := follow(t, srv, "a")
	all := numbers(0, 5000)
	for _, n := range all {
		b.send(t, b.name, n)
	}
	got.expect(all...)
}

func TestAQueueGroupSharesSubjects(t *testing.T) {
	b := newBroker(t)
	config := nats.Config{URLs: []string{b.url}, Subjects: []string{b.name}, QueueGroup: "g", Channel: "a"}
	one, two := open(t, &eventsource.Settings{}, config), open(t, &eventsource.Settings{}, config)
	connected(t, one)
	connected(t, two)
	for _, n := range numbers(0, 500) {
		b.send(t, b.name, n)
	}
	eventually(t, "all to be published", func() bool { return one.Stats().Published+two.Stats().Published >= 500 })
	if a, b := one.Stats().Published, two.Stats().Published; a+b != 500 || a == 0 || b == 0 {
		t.Errorf("%d and %d are published", a, b)
	}
}

// reads returns a configuration that reads the broker's stream.
func (b *broker) reads() nats.Config {
	return nats.Config{URLs: []string{b.url}, Stream: b.name, Consumer: "c", Channel: "a"}
}

func TestAStreamIsPublishedInOrderAndAcknowledged(t *testing.T) {
	b := newBroker(t)
	b.stream(t)
	all := numbers(0, 2000)
	for _, n := range all[:1000] { // before anybody reads
		b.send(t, b.name+".x", n)
	}
	config := b.reads()
	config.Event, config.ID, config.Filter = "{1}", "{stream}-{sequence}", []string{b.name + ".*"}
	settings := &eventsource.Settings{}
	srv := open(t, settings, config)
	connected(t, srv)
	for _, n := range all[1000:] {
		b.send(t, b.name+".x", n)
	}
	b.acknowledged(t, 2000)
	n := 0
	for e, err := range srv.Subscribe(t.Context(), "a", &eventsource.Subscription{History: 2000}) {
		if err != nil || e.Data != all[n] || e.Type != "x" || e.ID != b.name+"-"+strconv.Itoa(n+1) {
			t.Fatalf("event %d is %+v, %v", n, e, err)
		}
		if n++; n == 2000 {
			break
		}
	}
	if i := b.info(t); i.Config.AckPolicy != jetstream.AckExplicitPolicy || i.Config.Durable != "c" || i.NumRedelivered != 0 {
		t.Errorf("%+v", i)
	}
	if s := source(srv); s.Published != 2000 || s.Duplicates != 0 {
		t.Errorf("%+v", s)
	}
}

func TestAStreamsWildcardsAreThoseOfItsSubjects(t *testing.T) {
	b := newBroker(t)
	b.streamOf(t, b.name, b.name+".*.in.>")
	config := b.reads()
	config.Channel = "{2}.of.{1}"
	srv := open(t, &eventsource.Settings{}, config)
	got := follow(t, srv, "*")
	b.send(t, b.name+".a.in.b.c", "x")
	if e := got.event(); e.Channel != "b.c.of.a" {
		t.Errorf("it came on %s", e.Channel)
	}
}

func TestAConsumerIsCreatedAsConfigured(t *testing.T) {
	b := newBroker(t)
	stream := b.stream(t)
	for _, n := range numbers(1, 5) {
		b.send(t, b.name+".x", n)
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	at, err := stream.GetMsg(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	for deliver, want := range map[string][]string{
		"": {"1", "2", "3", "4", "5", "6"}, "all": {"1", "2", "3", "4", "5", "6"}, "new": {"6"}, "last": {"5", "6"}, "3": {"3", "4", "5", "6"},
		at.Time.Format(time.RFC3339Nano): {"4", "5", "6"},
	} {
		config := b.reads()
		config.Consumer, config.Deliver, config.AckWait, config.MaxAckPending = "c"+strings.NewReplacer(":", "", ".", "").Replace(deliver), deliver, 7*time.Second, 77
		srv := open(t, &eventsource.Settings{}, config)
		got := follow(t, srv, "a")
		connected(t, srv)
		if deliver == "new" {
			defer func() { got.expect("6") }()
			continue
		}
		got.expect(want[:len(want)-1]...)
		c, err := b.Consumer(t.Context(), b.name, config.Consumer)
		if err != nil {
			t.Fatal(err)
		}
		if i := c.CachedInfo().Config; i.AckWait != 7*time.Second || i.MaxAckPending != 77 {
			t.Errorf("%+v", i)
		}
	}
	b.send(t, b.name+".x", "6")
}

func TestAConsumerThatExistsIsUsedOrRefused(t *testing.T) {
	b := newBroker(t)
	stream := b.stream(t)
	make := func(c jetstream.ConsumerConfig) {
		t.Helper()
		c.Durable = "c"
		if _, err := stream.CreateConsumer(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	remove := func() {
		t.Helper()
		if err := stream.DeleteConsumer(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
	}
	make(jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: b.name + ".x.*", MaxRequestBatch: 5})
	config := b.reads()
	config.Channel = "{1}"
	srv := open(t, &eventsource.Settings{}, config)
	got := follow(t, srv, "*")
	for _, n := range numbers(0, 20) {
		b.send(t, b.name+".y.a", "for nobody")
		b.send(t, b.name+".x.a", n)
	}
	got.expect(numbers(0, 20)...)
	got.stop()
	shutdown(t, srv)

	config.Filter = []string{b.name + ".y.*"}
	failing(t, open(t, &eventsource.Settings{}, config), `it exists and has the subjects ["`+b.name+`.x.*"], not ["`+b.name+`.y.*"]: delete it and it is created, or leave filter out`)
	config.Filter = nil
	remove()
	make(jetstream.ConsumerConfig{AckPolicy: jetstream.AckAllPolicy})
	failing(t, open(t, &eventsource.Settings{}, config), "its messages are not acknowledged one by one")
	remove()
	if _, err := b.CreatePushConsumer(t.Context(), b.name, jetstream.ConsumerConfig{Durable: "c", DeliverSubject: b.name + "push", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	failing(t, open(t, &eventsource.Settings{}, config), "consumer is not a pull consumer")
}

func TestAStreamThatComesLaterIsRead(t *testing.T) {
	b := newBroker(t)
	srv := open(t, &eventsource.Settings{}, b.reads())
	failing(t, srv, "stream "+b.name+": ")
	stream := b.stream(t)
	connected(t, srv)
	got := follow(t, srv, "a")
	b.send(t, b.name+".x", "1")
	got.expect("1")
	// A consumer that is deleted is created again, and what it brings again is known.
	if err := stream.DeleteConsumer(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	b.send(t, b.name+".x", "2")
	got.expect("2")
	if s := source(srv); s.Duplicates != 1 || s.Connects != 2 {
		t.Errorf("%+v", s)
	}
	// A stream that is made again numbers from 1, and its messages are others.
	if err := b.DeleteStream(t.Context(), b.name); err != nil {
		t.Fatal(err)
	}
	b.streamOf(t, b.name, b.name+".>")
	b.send(t, b.name+".x", "3")
	got.expect("3")
}

func TestWhatIsNeverPublishedIsCountedAndGoesToTheDeadLetters(t *testing.T) {
	b := newBroker(t)
	b.stream(t)
	dead := b.streamOf(t, b.name+"dead", b.name+"dead")
	config := b.reads()
	config.Channel, config.ID, config.JSON, config.DeadLetter = "a.{header:To}", "{header:Id}", true, b.name+"dead"
	srv := open(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 1000}}, config)
	got := follow(t, srv, "a.b")
	bad := []struct {
		payload string
		header  []string
		reason  string
	}{
		{"", nil, eventsource.RefusedEmpty},
		{`"` + strings.Repeat("x", 1000) + `"`, nil, eventsource.RefusedTooLarge},
		{"\"\xff\"", nil, eventsource.RefusedNotUTF8},
		{"{", nil, eventsource.RefusedNotJSON},
		{"{}", []string{"To", "b c"}, eventsource.RefusedName},
		{"{}", nil, eventsource.RefusedName},
		{"{}", []string{"To", "b", "Id", strings.Repeat("x", 300), "Nats-Rollup", "sub"}, eventsource.RefusedInvalid},
	}
	var good []string
	for i, x := range bad {
		if len(x.header) == 0 || x.header[len(x.header)-2] != "Nats-Rollup" {
			b.send(t, b.name+".x", x.payload, x.header...)
		} else {
			b.send(t, b.name+".x", x.payload, x.header[:4]...)
		}
		good = append(good, strconv.Itoa(i))
		b.send(t, b.name+".x", good[i], "To", "b")
	}
	got.expect(good...)
	b.acknowledged(t, uint64(2*len(bad)))
	for i, x := range bad {
		m, err := dead.GetMsg(t.Context(), uint64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		h := m.Header
		if string(m.Data) != x.payload || h.Get("Eventsource-Reason") != x.reason || h.Get("Eventsource-Detail") == "" ||
			h.Get("Eventsource-Subject") != b.name+".x" || h.Get("Eventsource-Stream") != b.name || h.Get("Eventsource-Sequence") != strconv.Itoa(2*i+1) {
			t.Errorf("%q is kept as %q with %v", x.payload, m.Data, h)
		}
		if len(x.header) > 0 && h.Get(x.header[0]) != x.header[1] {
			t.Errorf("%q has lost its header: %v", x.payload, h)
		}
	}
	s := source(srv)
	want := map[string]uint64{"empty": 1, "too_large": 1, "not_utf8": 1, "not_json": 1, "name": 2, "invalid": 1, "slow": 0}
	if fmt.Sprint(s.Refusals) != fmt.Sprint(want) || s.Published != uint64(len(bad)) {
		t.Errorf("%+v", s)
	}
}

func TestWhatIsNeverPublishedComesOnce(t *testing.T) {
	b := newBroker(t)
	b.stream(t)
	config := b.reads()
	config.AckWait = time.Second
	srv := open(t, &eventsource.Settings{}, config)
	connected(t, srv)
	b.send(t, b.name+".x", "\xff")
	b.acknowledged(t, 1)
	if s := source(srv); s.Refusals["not_utf8"] != 1 {
		t.Errorf("%+v", s)
	}
}

func TestADeadLetterWithoutAStreamIsRefused(t *testing.T) {
	b := newBroker(t)
	b.stream(t)
	config := b.reads()
	config.DeadLetter = b.name + "nowhere"
	var said check.Log
	failing(t, open(t, &eventsource.Settings{Logger: slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))}, config), "no stream has the subject")
	eventually(t, "several attempts", func() bool { return strings.Count(said.String(), "a source is not connected") > 3 })
	if strings.Contains(said.String(), "the connection is lost") { // which the source itself has closed
		t.Errorf("another reason is in the log: %s", &said)
	}
	config.DeadLetter = b.name + ".dead"
	failing(t, open(t, &eventsource.Settings{}, config), "what is published there would come in again")
}

// While the backend is away the stream keeps what comes, and does not bring again what
// it has brought.
func TestAStreamWaitsForTheBackend(t *testing.T) {
	b := newBroker(t)
	b.stream(t)
	store := &sourcetest.Backend{}
	config := b.reads()
	config.AckWait = time.Second
	srv := open(t, &eventsource.Settings{Backend: store}, config)
	connected(t, srv)
	got := follow(t, srv, "a")
	store.Refuse(eventsource.ErrUnavailable)
	all := numbers(0, 3000)
	for _, n := range all {
		b.send(t, b.name+".x", n)
	}
	begun := time.Now()
	eventually(t, "three times the ack wait", func() bool { return time.Since(begun) > 3*time.Second })
	i := b.info(t)
	if i.NumRedelivered != 0 || i.NumAckPending == 0 || i.NumAckPending > 1000 || i.NumPending < 2000 {
		t.Errorf("%d are on their way, %d of them again, %d wait", i.NumAckPending, i.NumRedelivered, i.NumPending)
	}
	store.Refuse(nil)
	got.expect(all...)
	b.acknowledged(t, 3000)
	if s := source(srv); s.Duplicates != 0 || s.Published != 3000 || s.Connects != 1 {
		t.Errorf("%+v", s)
	}
}

// Core NATS keeps nothing: what is too much is lost, counted and said.
func TestSubjectsLoseWhatIsTooMuch(t *testing.T) {
	b := newBroker(t)
	store := &sourcetest.Backend{}
	srv := open(t, &eventsource.Settings{Backend: store}, nats.Config{URLs: []string{b.url}, Subjects: []string{b.name, b.name + "b"}, Channel: "{header:To}"})
	connected(t, srv)
	store.Refuse(eventsource.ErrUnavailable)
	payload := strings.Repeat("x", 100_000)
	for range 1000 { // 100 MB, of which 64 MiB wait
		b.send(t, b.name, payload, "To", "a")
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "some to be lost", func() bool { return source(srv).Refusals["slow"] > 0 })
	store.Refuse(nil)
	eventually(t, "each to be published or lost", func() bool {
		s := source(srv)
		return s.Published+s.Refusals["slow"] == 1000
	})
	if s := source(srv); s.State != "ok" || s.Connects != 1 {
		t.Errorf("%+v", s)
	}
	got := follow(t, srv, "b")
	b.send(t, b.name+"b", "afterwards", "To", "b")
	got.expect("afterwards")
}

func TestWhatIsOnItsWayAtAShutdownComesToTheNext(t *testing.T) {
	b := newBroker(t)
	b.stream(t)
	store := &sourcetest.Backend{}
	store.Refuse(eventsource.ErrUnavailable)
	config := b.reads()
	config.AckWait = 2 * time.Second
	srv := open(t, &eventsource.Settings{Backend: store}, config)
	connected(t, srv)
	all := numbers(0, 100)
	for _, n := range all {
		b.send(t, b.name+".x", n)
	}
	eventually(t, "all to be on their way", func() bool { return b.info(t).NumAckPending == 100 })
	begun := time.Now()
	shutdown(t, srv)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %v to shut down", took)
	}
	next := open(t, &eventsource.Settings{}, b.reads())
	got := follow(t, next, "a")
	got.eachOnce(len(all))
	b.acknowledged(t, 100)
}

func TestARollupCountsEachMessageOnce(t *testing.T) {
	b := newBroker(t)
	b.stream(t)
	config := b.reads()
	config.Rollup, config.AckWait = 50*time.Millisecond, time.Second
	srv := open(t, &eventsource.Settings{}, config)
	got := follow(t, srv, "a")
	for i := range 3000 {
		b.send(t, b.name+".x", []string{"x", "y", "z"}[i%3])
	}
	sums := map[string]int{}
	for sums["x"]+sums["y"]+sums["z"] < 3000 {
		var counts map[string]int
		if err := json.Unmarshal([]byte(got.event().Data), &counts); err != nil {
			t.Fatal(err)
		}
		for payload, n := range counts {
			sums[payload] += n
		}
	}
	b.acknowledged(t, 3000)
	if sums["x"] != 1000 || sums["y"] != 1000 || sums["z"] != 1000 {
		t.Errorf("the sums are %v", sums)
	}
}

func TestBadConfigsAreRefused(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	core := nats.Config{URLs: []string{"nats://a"}, Subjects: []string{"s"}, Channel: "a"}
	stream := nats.Config{URLs: []string{"nats://a"}, Stream: "S", Consumer: "c", Channel: "a"}
	with := func(c nats.Config, change func(c *nats.Config)) nats.Config {
		change(&c)
		return c
	}
	for _, test := range []struct {
		config nats.Config
		want   string
	}{
		{with(core, func(c *nats.Config) { c.URLs = []string{"nats://joe:geheim@"} }), "url: is no URL that begins with nats:// or tls://"},
		{with(core, func(c *nats.Config) { c.URLs = []string{"nats://joe:gehe im%@a"} }), "url: is no URL"},
		{with(core, func(c *nats.Config) { c.URLs = []string{"nats://a", "redis://joe:geheim@b"} }), "url: is no URL"},
		{with(core, func(c *nats.Config) { c.Subjects = nil }), "subjects: none are given"},
		{with(core, func(c *nats.Config) { c.Stream = "S" }), "stream: there are subjects, too"},
		{with(core, func(c *nats.Config) { c.Consumer = "c" }), "consumer: it is for a stream"},
		{with(core, func(c *nats.Config) { c.DeadLetter = "c" }), "dead_letter: it is for a stream"},
		{with(core, func(c *nats.Config) { c.Subjects = []string{"a", "a..b"} }), `subjects[1]: "a..b" is no subject`},
		{with(core, func(c *nats.Config) { c.Subjects = []string{"a b"} }), `subjects[0]: "a b" is no subject`},
		{with(core, func(c *nats.Config) { c.Subjects = []string{"a.>.b"} }), `subjects[0]: "a.>.b" has > before its end`},
		{with(core, func(c *nats.Config) { c.Subjects = []string{"a.b*"} }), `subjects[0]: "a.b*" has a wildcard within a token`},
		{with(core, func(c *nats.Config) { c.Subjects = []string{"a.*", "b", "*.b"} }), `subjects[2]: "a.*" and "*.b" have subjects in common`},
		{with(core, func(c *nats.Config) { c.Subjects = []string{"a.>", "a.b.c"} }), `subjects[1]: "a.>" and "a.b.c" have subjects in common`},
		{with(core, func(c *nats.Config) { c.QueueGroup = "a b" }), `queue_group: "a b" has a space`},
		{with(core, func(c *nats.Config) { c.Channel = "{1}" }), `channel: "{1}": there is no {1} here`},
		{with(core, func(c *nats.Config) { c.Subjects, c.Channel = []string{"a.*.*", "b.*"}, "{2}" }), `channel: "{2}": there is no {2} here`},
		{with(core, func(c *nats.Config) { c.Channel = "{sequence}" }), `channel: "{sequence}": there is no {sequence} here`},
		{with(core, func(c *nats.Config) { c.Channel = "{header:}" }), `channel: "{header:}": there is no {header:} here`},
		{with(core, func(c *nats.Config) { c.Channel = "" }), "channel: none is given"},
		{with(stream, func(c *nats.Config) { c.Consumer = "" }), "consumer: none is given; name the durable consumer"},
		{with(stream, func(c *nats.Config) { c.Consumer = "a.b" }), `consumer: "a.b" is no name of a consumer`},
		{with(stream, func(c *nats.Config) { c.Stream = "a b" }), `stream: "a b" is no name of a stream`},
		{with(stream, func(c *nats.Config) { c.QueueGroup = "g" }), "queue_group: it is for subjects"},
		{with(stream, func(c *nats.Config) { c.Filter = []string{"a.*", "a.b"} }), `filter[1]: "a.*" and "a.b" have subjects in common`},
		{with(stream, func(c *nats.Config) { c.Deliver = "old" }), `deliver: "old" is none of all, new and last`},
		{with(stream, func(c *nats.Config) { c.Deliver = "0" }), `deliver: "0" is none of all`},
		{with(stream, func(c *nats.Config) { c.AckWait = time.Millisecond }), "ack_wait: 1ms is below 1s"},
		{with(stream, func(c *nats.Config) { c.MaxAckPending = -1 }), "max_ack_pending: -1 is below 1"},
		{with(stream, func(c *nats.Config) { c.DeadLetter = "dead.*" }), `dead_letter: "dead.*" has wildcards`},
		{with(stream, func(c *nats.Config) { c.DeadLetter, c.Filter = "a.dead", []string{"a.*"} }), `dead_letter: "a.dead" is in filter, and would come in again`},
		{with(stream, func(c *nats.Config) { c.Rollup, c.ID = time.Second, "{sequence}" }), "id: a roll-up is of many payloads"},
		{with(core, func(c *nats.Config) { c.Credentials = "/nowhere/a" }), "credentials: open /nowhere/a: no such file or directory"},
		{with(core, func(c *nats.Config) { c.Credentials = file("creds", "geheim") }), "credentials: " + filepath.Join(dir, "creds") + " has not both"},
		{with(core, func(c *nats.Config) { c.NKey = file("seed", "geheim") }), "nkey: " + filepath.Join(dir, "seed") + " holds no seed of a user"},
		{with(core, func(c *nats.Config) { c.CA = file("ca", "geheim") }), "ca: " + filepath.Join(dir, "ca") + " holds no certificate"},
		{with(core, func(c *nats.Config) { c.Cert = "a" }), "cert: there is no key beside it"},
		{with(core, func(c *nats.Config) { c.Key = "a" }), "key: there is no cert beside it"},
	} {
		_, err := nats.New(test.config)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%+v: %v, want %s", test.config, err, test.want)
		}
	}
	for _, c := range []nats.Config{
		core, stream,
		with(core, func(c *nats.Config) { c.URLs = []string{"nats://joe:geheim@a:4222", "tls://token@b"} }),
		with(core, func(c *nats.Config) { c.Subjects, c.Channel = []string{"a.*.>", "b.*.*"}, "{2}.{1}" }),
		with(stream, func(c *nats.Config) { c.Channel, c.Deliver = "{4}{{x}}", "2026-01-02T03:04:05Z" }),
	} {
		if _, err := nats.New(c); err != nil && !strings.Contains(c.Channel, "{{") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
