package main

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/source/amqp"
	"github.com/railsmechanic/eventsource/source/nats"
	"github.com/railsmechanic/eventsource/source/redis"
	"github.com/railsmechanic/eventsource/source/webhook"
)

// A sourceConfig is what feeds events in from elsewhere: one of its kinds.
type sourceConfig struct {
	kind    string
	webhook webhook.Config
	redis   redis.Config
	amqp    amqp.Config
	nats    nats.Config
}

const sourceKinds = "amqp, nats, redis, webhook"

// open makes the source.
func (s *sourceConfig) open() (eventsource.Source, error) {
	switch s.kind {
	case "amqp":
		return amqp.New(s.amqp)
	case "nats":
		return nats.New(s.nats)
	case "redis":
		return redis.New(s.redis)
	}
	return webhook.New(s.webhook)
}

// A member is a key of a source.
type member struct {
	name  string
	value value
}

// members returns the keys of the source's kind but for the type, in the order in which
// they are shown; nil: there is no such kind.
func (s *sourceConfig) members() []member {
	switch s.kind {
	case "amqp":
		return amqpMembers(&s.amqp)
	case "nats":
		return natsMembers(&s.nats)
	case "redis":
		return redisMembers(&s.redis)
	case "webhook":
		return webhookMembers(&s.webhook)
	}
	return nil
}

// A sourceList is the sources in order.
type sourceList struct{ to *[]sourceConfig }

func (l sourceList) set(v any) error {
	if v = fromText(v); v == nil {
		*l.to = nil
		return nil
	}
	members, ok := v.([]any)
	if !ok {
		return fmt.Errorf("%s is no list; give one such as [{type: webhook, channel: updates}]", kindOf(v))
	}
	var errs []error
	all := make([]sourceConfig, len(members))
	for i, m := range members {
		path := fmt.Sprintf("[%d]", i)
		keys, ok := m.(map[string]any)
		if !ok {
			errs = append(errs, &memberError{path, fmt.Errorf("%s is no source; give one such as {type: webhook, channel: updates}", kindOf(m))})
			continue
		}
		errs = append(errs, all[i].set(path, keys)...)
	}
	*l.to = all
	return errors.Join(errs...)
}

// set takes the keys of one source.
func (s *sourceConfig) set(path string, keys map[string]any) []error {
	kind, ok := keys["type"]
	if !ok {
		return []error{&memberError{path, errors.New("has no type; there are: " + sourceKinds)}}
	}
	s.kind, _ = kind.(string)
	members := s.members()
	if members == nil {
		return []error{&memberError{path + ".type", fmt.Errorf("there is no source %s in this version; there are: %s", described(kind), sourceKinds)}}
	}
	known := map[string]value{"type": nil}
	for _, m := range members {
		known[m.name] = m.value
	}
	return setMembers(path, keys, known)
}

func (l sourceList) show() any {
	all := []any{}
	for i := range *l.to {
		s := &(*l.to)[i]
		shown := yaml.MapSlice{{Key: "type", Value: s.kind}}
		for _, m := range s.members() {
			if v := m.value.show(); !isNothing(v) {
				shown = append(shown, yaml.MapItem{Key: m.name, Value: v})
			}
		}
		all = append(all, shown)
	}
	return all
}

// isNothing reports whether a key that is shown so can be left out.
func isNothing(v any) bool {
	list, isList := v.([]string)
	return v == "" || v == false || v == 0 || v == "none" || isList && len(list) == 0
}

// intakeMembers are the keys that the sources of brokers share.
func intakeMembers(channel, event, id *string, json *bool, rollup *time.Duration) []member {
	return []member{
		{"channel", text{channel}},
		{"event", text{event}},
		{"id", text{id}},
		{"json", toggle{json}},
		{"rollup", period{rollup}},
	}
}

// A period is a duration, 0 being none.
type period struct{ to *time.Duration }

func (p period) set(v any) error {
	if err := (duration{to: p.to, none: true}).set(v); err != nil {
		return err
	}
	*p.to = max(*p.to, 0)
	return nil
}

func (p period) show() any {
	if *p.to == 0 {
		return "none"
	}
	return duration{to: p.to}.show()
}

// A brokerURL is where a broker is. Its password is shown to nobody.
type brokerURL struct {
	to      *string
	schemes []string // such as "redis"
	example string
}

func (b brokerURL) set(v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("is no URL; give one such as %s", b.example)
	}
	u, err := url.Parse(s)
	if err != nil || !slices.Contains(b.schemes, u.Scheme) { // neither is repeated: it may hold a password
		return fmt.Errorf("is no URL that begins with %s://; give one such as %s", strings.Join(b.schemes, ":// or "), b.example)
	}
	*b.to = s
	return nil
}

func (b brokerURL) show() any { return maskedURL(*b.to) }

// A brokerURLs is where a broker is: one URL, or those of its nodes, in a list or joined by
// commas.
type brokerURLs struct {
	to      *[]string
	schemes []string
	example string
}

func (b brokerURLs) set(v any) error {
	members, isList := v.([]any)
	if s, ok := v.(string); ok {
		for _, one := range b.split(s) {
			members = append(members, one)
		}
	} else if !isList {
		members = []any{v}
	}
	all := make([]string, len(members))
	for i, m := range members {
		err := (brokerURL{&all[i], b.schemes, b.example}).set(m)
		switch {
		case err != nil && isList:
			return &memberError{fmt.Sprintf("[%d]", i), err}
		case err != nil:
			return err
		}
	}
	*b.to = all
	return nil
}

// split cuts a text at the commas that a URL follows: others may be part of a password.
func (b brokerURLs) split(s string) []string {
	var all []string
	for part := range strings.SplitSeq(s, ",") {
		scheme, _, _ := strings.Cut(strings.TrimSpace(part), "://")
		if len(all) == 0 || slices.Contains(b.schemes, scheme) {
			all = append(all, strings.TrimSpace(part))
		} else {
			all[len(all)-1] += "," + part
		}
	}
	return all
}

func (b brokerURLs) show() any {
	shown := make([]string, len(*b.to))
	for i, u := range *b.to {
		shown[i] = maskedURL(u)
	}
	if len(shown) == 1 {
		return shown[0]
	}
	return shown
}
