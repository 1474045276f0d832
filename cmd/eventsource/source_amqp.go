package main

import (
	"fmt"

	"github.com/railsmechanic/eventsource/source/amqp"
)

// amqpMembers are the keys of a source of AMQP.
func amqpMembers(c *amqp.Config) []member {
	if c.URLs == nil {
		c.URLs = []string{amqp.DefaultURL}
	}
	return append([]member{
		{"url", brokerURLs{&c.URLs, []string{"amqp", "amqps"}, "amqp://localhost:5672"}},
		{"queue", text{&c.Queue}},
		{"queue_type", text{&c.QueueType}},
		{"exchange", text{&c.Exchange}},
		{"bindings", list{&c.Bindings}},
		{"durable", durable{&c.Transient}},
		{"dead_letter_exchange", text{&c.DeadLetterExchange}},
		{"offset", offset{&c.Offset}},
		{"prefetch", number[int]{to: &c.Prefetch, low: 1, high: 65535}},
	}, intakeMembers(&c.Channel, &c.Event, &c.ID, &c.JSON, &c.Rollup)...)
}

// A durable is whether a queue outlives the broker, which it does unless it is said
// otherwise.
type durable struct{ transient *bool }

func (d durable) set(v any) error {
	var on bool
	if err := (toggle{&on}).set(v); err != nil {
		return err
	}
	*d.transient = !on
	return nil
}

// A said is true or false, and is shown in either case: a plain false is left out.
type said bool

func (d durable) show() any { return said(!*d.transient) }

// An offset is text, or a number.
type offset struct{ to *string }

func (o offset) set(v any) error {
	if n, err := integer(v); err == nil {
		*o.to = fmt.Sprint(n)
		return nil
	}
	return text(o).set(v)
}

func (o offset) show() any { return *o.to }
