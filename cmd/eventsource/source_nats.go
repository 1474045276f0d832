package main

import (
	"math"

	"github.com/railsmechanic/eventsource/source/nats"
)

// natsMembers are the keys of a source of NATS.
func natsMembers(c *nats.Config) []member {
	if c.URLs == nil {
		c.URLs = []string{nats.DefaultURL}
	}
	return append([]member{
		{"url", brokerURLs{&c.URLs, []string{"nats", "tls"}, "nats://localhost:4222"}},
		{"credentials", text{&c.Credentials}},
		{"nkey", text{&c.NKey}},
		{"ca", text{&c.CA}},
		{"cert", text{&c.Cert}},
		{"key", text{&c.Key}},
		{"subjects", list{&c.Subjects}},
		{"queue_group", text{&c.QueueGroup}},
		{"stream", text{&c.Stream}},
		{"consumer", text{&c.Consumer}},
		{"filter", list{&c.Filter}},
		{"deliver", text{&c.Deliver}},
		{"ack_wait", period{&c.AckWait}},
		{"max_ack_pending", number[int]{to: &c.MaxAckPending, low: 1, high: math.MaxInt32}},
		{"dead_letter", text{&c.DeadLetter}},
	}, intakeMembers(&c.Channel, &c.Event, &c.ID, &c.JSON, &c.Rollup)...)
}
