package amqp_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/source/amqp"
)

func stream() rabbit.Table { return rabbit.Table{"x-queue-type": "stream"} }

// fill publishes e<from> to e<to-1>, and returns when the broker has them.
func (b *broker) fill(q string, from, to int) {
	b.t.Helper()
	if err := b.channel.Confirm(false); err != nil {
		b.t.Fatal(err)
	}
	var open []*rabbit.DeferredConfirmation
	for _, data := range numbered("e", from, to) {
		c, err := b.channel.PublishWithDeferredConfirm("", q, false, false, rabbit.Publishing{Body: []byte(data)})
		if err != nil {
			b.t.Fatal(err)
		}
		open = append(open, c)
	}
	for _, c := range open {
		c.Wait()
	}
}

func TestAStreamIsReadFromItsOffset(t *testing.T) {
	b := shared(t)
	q := b.queue(stream())
	b.fill(q, 0, 100)
	count := 100 // in the stream
	for offset, first := range map[string]int{
		"first": 0, "40": 40, "": -1, "next": -1, time.Now().Add(-time.Hour).Format(time.RFC3339): 0,
	} {
		t.Run(offset, func(t *testing.T) {
			if first < 0 {
				first = count
			}
			n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, QueueType: amqp.Stream, Offset: offset, Channel: "a", ID: "o-{offset}", Prefetch: 10})
			f := n.follow("a")
			b.publish("", q, fmt.Sprint("e", count))
			count++
			f.expect(numbered("e", first, count)...)
		})
	}
	t.Run("last", func(t *testing.T) { // the last of what the broker keeps together
		n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, QueueType: amqp.Stream, Offset: "last", Channel: "a", ID: "{offset}"})
		e := n.follow("a").next()
		if last := fmt.Sprint("e", count-1); e.data != last || "e"+e.id != last {
			t.Errorf("first came %+v", e)
		}
	})
}

func TestAStreamGoesOnAfterABreakWhereItWas(t *testing.T) {
	b := shared(t)
	for _, offset := range []string{"next", "first"} {
		t.Run(offset, func(t *testing.T) {
			q := b.queue(stream())
			p, through := brokertest.Through(t, b.url)
			n := ready(t, nil, amqp.Config{URLs: []string{through}, Queue: q, QueueType: amqp.Stream, Offset: offset, Channel: "a"})
			f := n.follow("a")
			for i := range 5 { // before the first break, nothing has come at all
				p.Shut()
				n.until("failing", 0)
				b.fill(q, 10*i, 10*i+5)
				p.Open()
				n.until("ok", uint64(i+2))
				f.expect(numbered("e", 10*i, 10*i+5)...)
				b.fill(q, 10*i+5, 10*i+10)
				f.expect(numbered("e", 10*i+5, 10*i+10)...)
			}
			n.end() // what is delivered is counted after that
			if got := n.stats(); got.Published != 50 || got.Duplicates != 0 {
				t.Errorf("the source is %+v", got)
			}
		})
	}
}

func TestAStreamGoesOnAfterARestartWhereTheIdIsTheOffset(t *testing.T) {
	b := shared(t)
	q := b.queue(stream())
	path := filepath.Join(t.TempDir(), "events.db")
	c := amqp.Config{URLs: []string{b.url}, Queue: q, QueueType: amqp.Stream, Channel: "a", ID: "o-{offset}", Offset: "first"}
	for i := range 3 {
		b.fill(q, 100*i, 100*i+100)
		n := ready(t, &eventsource.Settings{Backend: file(t, path)}, c)
		eventually(t, "100 events", func() bool { return n.stats().Published >= 100 })
		n.follow("a").expect(numbered("e", 0, 100*i+100)...)
		if got := n.stats(); got.Published != 100 {
			t.Errorf("run %d: %+v", i, got)
		}
		n.end()
	}
}

func TestAStreamThatIsMadeAnewIsReadFromItsBeginning(t *testing.T) {
	t.Parallel() // it takes a while until that is noticed
	b := shared(t)
	t.Run("while it is followed", func(t *testing.T) {
		q := b.queue(stream())
		n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, QueueType: amqp.Stream, Channel: "a"})
		f := n.follow("a")
		for round := range 2 {
			b.fill(q, 0, 50)
			f.expect(numbered("e", 0, 50)...)
			if _, err := b.channel.QueueDelete(q, false, false, false); err != nil {
				t.Fatal(err)
			}
			n.until("ok", uint64(round+2))
		}
	})
	t.Run("while the source was away", func(t *testing.T) {
		q := b.queue(stream())
		p, through := brokertest.Through(t, b.url)
		n := ready(t, nil, amqp.Config{URLs: []string{through}, Queue: q, QueueType: amqp.Stream, Channel: "a"})
		f := n.follow("a")
		b.fill(q, 0, 50)
		f.expect(numbered("e", 0, 50)...)
		p.Shut()
		if _, err := b.channel.QueueDelete(q, false, false, false); err != nil {
			t.Fatal(err)
		}
		b.declare(q, stream())
		b.fill(q, 0, 20)
		p.Open()
		f.expect(numbered("e", 0, 20)...)
		if want := fmt.Sprintf("the stream %q was made anew", q); !strings.Contains(strings.ReplaceAll(n.log.String(), `\"`, `"`), want) {
			t.Errorf("%s is not in the log:\n%s", want, n.log)
		}
	})
}

func TestWhatAStreamHasThatMakesNoEventIsPassedOver(t *testing.T) {
	b := shared(t)
	q := b.queue(stream())
	p, through := brokertest.Through(t, b.url)
	n := ready(t, nil, amqp.Config{URLs: []string{through}, Queue: q, QueueType: amqp.Stream, Channel: "a", Prefetch: 5})
	f := n.follow("a")
	for i := range 20 {
		b.publish("", q, "")
		b.publish("", q, fmt.Sprint("e", i))
		b.publish("", q, "\xff")
	}
	f.expect(numbered("e", 0, 20)...)
	p.Cut()
	n.until("ok", 2)
	b.publish("", q, "e20")
	f.expect("e20")
	if got := n.stats(); got.Refusals[eventsource.RefusedEmpty] != 20 || got.Refusals[eventsource.RefusedNotUTF8] != 20 || got.Connects != 2 {
		t.Errorf("the source is %+v", got)
	}
}

func TestAStreamThatNobodyCalledOneIsReadToo(t *testing.T) {
	b := shared(t)
	q := b.queue(stream())
	p, through := brokertest.Through(t, b.url)
	n := ready(t, nil, amqp.Config{URLs: []string{through}, Queue: q, Channel: "a"})
	f := n.follow("a")
	b.fill(q, 0, 10)
	f.expect(numbered("e", 0, 10)...)
	p.Shut()
	n.until("failing", 0)
	b.fill(q, 10, 20)
	p.Open()
	f.expect(numbered("e", 10, 20)...)
}
