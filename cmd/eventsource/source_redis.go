package main

import "github.com/railsmechanic/eventsource/source/redis"

// redisMembers are the keys of a source of Redis.
func redisMembers(c *redis.Config) []member {
	if c.URL == "" {
		c.URL = redis.DefaultURL
	}
	return append([]member{
		{"url", brokerURL{&c.URL, []string{"redis", "rediss", "unix"}, redis.DefaultURL}},
		{"subscribe", list{&c.Subscribe}},
		{"psubscribe", list{&c.Psubscribe}},
		{"streams", list{&c.Streams}},
		{"group", text{&c.Group}},
		{"consumer", text{&c.Consumer}},
		{"start", text{&c.Start}},
		{"field", text{&c.Field}},
		{"claim", claim{duration{to: &c.Claim, zero: "0 would take entries from whoever is at work on them; give a duration such as 1m"}}},
		{"dead_letter", text{&c.DeadLetter}},
	}, intakeMembers(&c.Channel, &c.Event, &c.ID, &c.JSON, &c.Rollup)...)
}

// A claim is a duration that is not shown where it is left to the source.
type claim struct{ duration }

func (c claim) show() any {
	if *c.to == 0 {
		return ""
	}
	return c.duration.show()
}
