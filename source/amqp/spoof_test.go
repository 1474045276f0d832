package amqp_test

import (
	"fmt"
	"testing"

	rabbit "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/source/amqp"
)

// offset is a header that a broker gives to what comes from a stream, and that whoever
// publishes can write, too: a shovel does that when it moves what a stream has.
func offset(n int64) func(*rabbit.Publishing) {
	return func(p *rabbit.Publishing) { p.Headers = rabbit.Table{"x-stream-offset": n} }
}

// What had a lower offset than something before it was taken for a repetition, and lost;
// and after a break the queue was asked for an offset, which the broker refuses: the source
// never came back.
func TestAnOffsetThatAPublisherWroteMeansNothing(t *testing.T) {
	for _, kind := range []string{"", amqp.Classic, amqp.Quorum} {
		t.Run(kind, func(t *testing.T) {
			b := shared(t)
			args := rabbit.Table{}
			if kind != "" {
				args["x-queue-type"] = kind
			}
			q := b.queue(args)
			p, through := brokertest.Through(t, b.url)
			n := ready(t, nil, amqp.Config{URLs: []string{through}, Queue: q, QueueType: kind, Channel: "a"})
			f := n.follow("a")
			for i, at := range []int64{1 << 40, 7, 7, 3} {
				b.publish("", q, fmt.Sprint("e", i), offset(at), id(fmt.Sprint(i)))
			}
			f.expect(numbered("e", 0, 4)...)
			p.Shut()
			n.until("failing", 0)
			p.Open()
			n.until("ok", 2)
			b.publish("", q, "e4", offset(1))
			f.expect("e4")
		})
	}
	t.Run("an exchange alone", func(t *testing.T) {
		b := shared(t)
		x := b.exchange("fanout")
		n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Exchange: x, Channel: "a"})
		f := n.follow("a")
		for i, at := range []int64{1 << 40, 7} {
			b.publish(x, "", fmt.Sprint("e", i), offset(at))
		}
		f.expect(numbered("e", 0, 2)...)
	})
}
