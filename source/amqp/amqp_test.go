package amqp_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/source/amqp"
)

func TestWhatAQueueHasIsPublishedInOrderAndAcknowledged(t *testing.T) {
	for what, args := range map[string]rabbit.Table{
		"missing": nil, "classic": {}, "quorum": {"x-queue-type": "quorum"}, "of other properties": {"x-max-length": int32(10_000), "x-expires": int32(60_000)},
	} {
		t.Run(what, func(t *testing.T) {
			b := shared(t)
			q := b.queue(args)
			n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a"})
			for _, data := range numbered("e", 0, 1000) {
				b.publish("", q, data)
			}
			n.follow("a").expect(numbered("e", 0, 1000)...)
			n.end()
			if left := b.left(q); left != 0 {
				t.Errorf("%d are left in the queue, and come again", left)
			}
		})
	}
}

func TestAMissingQueueIsDeclaredToOutliveTheBroker(t *testing.T) {
	b := shared(t)
	for _, transient := range []bool{false, true} {
		q := b.queue(nil)
		ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a", Transient: transient}).end()
		b.open()
		if _, err := b.channel.QueueDeclare(q, !transient, false, false, false, nil); err != nil {
			t.Errorf("transient %v: %v", transient, err)
			b.open()
		}
	}
}

func TestTemplatesAreFilledWithWhatCameIn(t *testing.T) {
	b := shared(t)
	x := b.exchange("topic")
	q := b.queue(nil)
	n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, Exchange: x, Bindings: []string{"pets.*.#", "news.#.today.*", "plain"},
		Channel: "{header:to}.{1}", Event: "{name}|{exchange}|{queue}|{type}|{message_id}|{app_id}|{1}|{2}|{header:n}|{header:none}|{{}}", ID: "{message_id}"})
	f := n.follow("*")
	for _, test := range []struct{ key, to, channel, one, two string }{
		{"pets.cats", "a", "a.cats", "cats", ""},
		{"pets.cats.siamese.blue", "a", "a.cats", "cats", "siamese.blue"},
		{"news.today.one", "a.", "", "", "one"}, // "a.." is no name
		{"news.sport.tennis.today.two", "b", "b.sport.tennis", "sport.tennis", "two"},
		{"plain", "x.y", "", "", ""}, // nor is "x.y."
	} {
		b.publish(x, test.key, test.key, func(p *rabbit.Publishing) {
			p.Headers = rabbit.Table{"to": test.to, "n": int64(5)}
			p.Type, p.MessageId, p.AppId = "T", "id-"+test.key, "app"
		})
		if test.channel == "" {
			continue
		}
		want := arrived{test.channel, strings.Join([]string{test.key, x, q, "T", "id-" + test.key, "app", test.one, test.two, "5", "", "{}"}, "|"),
			"id-" + test.key, test.key}
		if e := f.next(); e != want {
			t.Errorf("%s is %+v\nand not %+v", test.key, e, want)
		}
	}
	eventually(t, "two refusals", func() bool { return n.stats().Refusals[eventsource.RefusedName] == 2 })
}

func TestHeadersOfEveryKindOfTextAndNumberAreVariables(t *testing.T) {
	b := shared(t)
	q := b.queue(rabbit.Table{})
	values := rabbit.Table{"a": "text", "b": int64(-1) << 62, "c": float64(1e6), "d": 2.5, "e": true, "f": []byte("bytes"), "g": uint8(7), "h": int16(-8),
		"i": nil, "j": rabbit.Table{"x": "y"}, "k": []any{"x"}, "l": time.Now()}
	b.publish("", q, "x", func(p *rabbit.Publishing) { p.Headers = values })
	var template strings.Builder
	for _, k := range slices.Sorted(maps.Keys(values)) {
		template.WriteString("{header:" + k + "}|")
	}
	n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a", Event: template.String()})
	if e, want := n.follow("a").next(), "text|-4611686018427387904|1000000|2.5|true|bytes|7|-8|||||"; e.event != want {
		t.Errorf("%q is not %q", e.event, want)
	}
}

func TestAnExchangeBringsEachNodeEverything(t *testing.T) {
	b := shared(t)
	for kind, bindings := range map[string][]string{"fanout": nil, "topic": nil, "direct": {"key", "other"}} {
		t.Run(kind, func(t *testing.T) {
			x := b.exchange(kind)
			var followers []*follower
			for range 2 {
				n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Exchange: x, Bindings: bindings, Channel: "a"})
				followers = append(followers, n.follow("a"))
			}
			for i := range 100 {
				b.publish(x, []string{"key", "other"}[i%2], fmt.Sprint("e", i))
			}
			for _, f := range followers {
				f.expect(numbered("e", 0, 100)...)
			}
		})
	}
}

func TestNodesShareWhatANamedQueueHas(t *testing.T) {
	b := shared(t)
	x := b.exchange("fanout")
	q := b.queue(nil)
	c := amqp.Config{URLs: []string{b.url}, Exchange: x, Queue: q, Channel: "a", Prefetch: 5}
	one, two := ready(t, nil, c), ready(t, nil, c)
	for i := range 200 {
		b.publish(x, "", fmt.Sprint(i))
	}
	published := func() int { return int(one.stats().Published + two.stats().Published) }
	eventually(t, "200 events", func() bool { return published() >= 200 })
	one.end()
	two.end()
	if published() != 200 || one.stats().Published == 0 || two.stats().Published == 0 || b.left(q) != 0 {
		t.Errorf("%d and %d were published, %d are left", one.stats().Published, two.stats().Published, b.left(q))
	}
}

func TestPayloadsThatMakeNoEventAreCountedAndDeadLettered(t *testing.T) {
	b := shared(t)
	x := b.exchange("topic")
	dead, dlx := b.queue(rabbit.Table{}), b.exchange("fanout")
	if err := b.channel.QueueBind(dead, "", dlx, false, nil); err != nil {
		t.Fatal(err)
	}
	q := b.queue(nil)
	n := ready(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 1000}},
		amqp.Config{URLs: []string{b.url}, Queue: q, Exchange: x, DeadLetterExchange: dlx, Channel: "{name}", Event: "{type}", JSON: true})
	long := `"` + strings.Repeat("x", 999) + `"`
	bad := []struct{ key, event, body, reason string }{
		{"a", "", "", eventsource.RefusedEmpty},
		{"a", "", "\"\xff\"", eventsource.RefusedNotUTF8},
		{"a", "", "text", eventsource.RefusedNotJSON},
		{"a", "", long, eventsource.RefusedTooLarge},
		{"a b", "", "1", eventsource.RefusedName},
		{"a,b", "", "2", eventsource.RefusedName},
		{"", "", "3", eventsource.RefusedName},
		{"a..b", "", "4", eventsource.RefusedName},
		{"a.*", "", "5", eventsource.RefusedName},
		{"admin.x", "", "6", eventsource.RefusedName},
		{"ü", "", "7", eventsource.RefusedName},
		{"a", "eventsource.gap", "8", eventsource.RefusedInvalid},
		{"a", "x\ny", "9", eventsource.RefusedInvalid},
		{"@me", "", "10", eventsource.RefusedInvalid},
	}
	f := n.follow("a")
	want := map[string]uint64{"slow": 0}
	var bodies []string
	for i, d := range bad {
		b.publish(x, "a", fmt.Sprint(i))
		b.publish(x, d.key, d.body, func(p *rabbit.Publishing) { p.Type = d.event })
		want[d.reason]++
		bodies = append(bodies, d.body)
	}
	b.publish(x, "a", "1000")
	f.expect(append(numbered("", 0, len(bad)), "1000")...)
	eventually(t, "every dead letter", func() bool { return b.left(dead) == len(bad) })
	got := b.read(dead)
	slices.Sort(got)
	slices.Sort(bodies)
	if !slices.Equal(got, bodies) {
		t.Errorf("the dead letters are %q, not %q", got, bodies)
	}
	if got := n.stats().Refusals; !maps.Equal(got, want) {
		t.Errorf("the refusals are %v, not %v", got, want)
	}
	// One alone is answered alone: to acknowledge it besides would have the broker close
	// the channel.
	b.publish(x, "a", "bad")
	eventually(t, "one more dead letter", func() bool { return b.left(dead) == 1 })
	b.publish(x, "a", "1001")
	f.expect("1001")
	n.end()
	if left := b.left(q); left != 0 || n.stats().Connects != 1 {
		t.Errorf("%d are left, connected %d times", left, n.stats().Connects)
	}
	if lines := strings.Count(n.log.String(), "payloads are not published"); lines != 6 {
		t.Errorf("%d lines were logged, not one for each reason", lines)
	}
}

func TestWhatIsRepeatedIsPublishedOnce(t *testing.T) {
	b := shared(t)
	q := b.queue(rabbit.Table{})
	n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a"})
	for i := range 300 {
		b.publish("", q, fmt.Sprint("e", i), id(fmt.Sprint(i)))
		b.publish("", q, fmt.Sprint("again", i/2), id(fmt.Sprint(i/2))) // as who lost a confirm
	}
	b.publish("", q, "last")
	n.follow("a").expect(append(numbered("e", 0, 300), "last")...)
	if got := n.stats().Duplicates; got != 300 {
		t.Errorf("%d were repeated, not 300", got)
	}
}

func TestWhatIsRedeliveredAfterARestartIsLookedUp(t *testing.T) {
	b := shared(t)
	q := b.queue(rabbit.Table{})
	path := filepath.Join(t.TempDir(), "events.db")
	c := amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a", ID: "{message_id}"}
	b.publish("", q, "one", id("1"))
	n := ready(t, &eventsource.Settings{Backend: file(t, path)}, c)
	n.follow("a").expect("one")
	n.end()
	// The acknowledgement was lost, as far as the broker says.
	b.publish("", q, "one", id("1"))
	if _, ok, err := b.channel.Get(q, false); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := b.channel.Nack(0, true, true); err != nil {
		t.Fatal(err)
	}
	b.publish("", q, "two", id("2"))
	n = ready(t, &eventsource.Settings{Backend: file(t, path)}, c)
	n.follow("a").expect("one", "two")
	eventually(t, "one that is published, and one that is not", func() bool {
		got := n.stats()
		return got.Duplicates == 1 && got.Published == 1
	})
}

func TestWhileEventsAreRefusedTheBrokerHoldsWhatComes(t *testing.T) {
	b := shared(t)
	q := b.queue(rabbit.Table{})
	v := newValve(t)
	n := ready(t, &eventsource.Settings{Backend: v}, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a", Prefetch: 20})
	b.publish("", q, "e0")
	f := n.follow("a")
	f.expect("e0")
	v.shut.Store(true)
	for _, data := range numbered("e", 1, 500) {
		b.publish("", q, data)
	}
	eventually(t, "479 that are left", func() bool { return b.left(q) == 479 })
	if got := n.stats(); got.State != "ok" || got.Published != 1 {
		t.Errorf("the source is %+v", got)
	}
	v.shut.Store(false)
	f.expect(numbered("e", 1, 500)...)
	n.end()
	if left := b.left(q); left != 0 {
		t.Errorf("%d are left", left)
	}
}

func TestRollUpsAreExactAndAcknowledgedWhenPublished(t *testing.T) {
	b := shared(t)
	q := b.queue(rabbit.Table{})
	n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a", Rollup: 17 * time.Millisecond})
	for i := range 5000 {
		b.publish("", q, []string{"x", "y"}[i%2])
	}
	b.publish("", q, "end")
	f := n.follow("a")
	sums := map[string]int{}
	for sums["end"] == 0 {
		for payload, count := range decode(t, f.next().data) {
			sums[payload] += count
		}
	}
	if want := map[string]int{"x": 2500, "y": 2500, "end": 1}; !maps.Equal(sums, want) {
		t.Errorf("the sums are %v, not %v", sums, want)
	}
	n.end()
	if left := b.left(q); left != 0 {
		t.Errorf("%d are left", left)
	}
}

func TestWhatARollUpCountedIsPublishedAtTheEnd(t *testing.T) {
	b := shared(t)
	q := b.queue(rabbit.Table{})
	for range 100 {
		b.publish("", q, "x")
	}
	v := newValve(t)
	n := ready(t, &eventsource.Settings{Backend: v}, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a", Rollup: time.Hour})
	f := n.follow("a")
	eventually(t, "an empty queue", func() bool { return b.left(q) == 0 })
	// What was taken off the queue has been counted when the end comes after it.
	began := time.Now()
	n.end()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the end took %v", took)
	}
	counted := 0
	for e := range f.events {
		counted += decode(t, e.data)["x"]
	}
	if left := b.left(q); counted+left != 100 || counted == 0 {
		t.Errorf("%d were counted, and %d are left", counted, left)
	}
}
