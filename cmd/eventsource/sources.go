package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/source/webhook"
)

// A sourceConfig is what feeds events in from elsewhere.
type sourceConfig struct {
	webhook webhook.Config
}

// open makes the source.
func (s sourceConfig) open() (eventsource.Source, error) { return webhook.New(s.webhook) }

// A sourceList is the sources in order.
type sourceList struct{ to *[]sourceConfig }

func (l sourceList) set(v any) error {
	if v = fromText(v); v == nil {
		*l.to = nil
		return nil
	}
	members, ok := v.([]any)
	if !ok {
		return fmt.Errorf("%s is no list; give one such as [{type: webhook, channel: updates}]", described(v))
	}
	var errs []error
	all := make([]sourceConfig, len(members))
	for i, m := range members {
		path := fmt.Sprintf("[%d]", i)
		keys, ok := m.(map[string]any)
		if !ok {
			errs = append(errs, &memberError{path, fmt.Errorf("%s is no source; give one such as {type: webhook, channel: updates}", described(m))})
			continue
		}
		errs = append(errs, all[i].set(path, keys)...)
	}
	*l.to = all
	return errors.Join(errs...)
}

// set takes the keys of one source.
func (s *sourceConfig) set(path string, keys map[string]any) []error {
	const types = "webhook"
	switch t, ok := keys["type"]; {
	case !ok:
		return []error{&memberError{path, errors.New("has no type; there is: " + types)}}
	case t != "webhook":
		return []error{&memberError{path + ".type", fmt.Errorf("there is no source %s in this version; there is: %s", described(t), types)}}
	}
	c := &s.webhook
	known := map[string]value{
		"type":    nil,
		"path":    text{&c.Path},
		"channel": text{&c.Channel},
		"event":   text{&c.Event},
		"secret":  secret{&c.Secret},
	}
	errs := setMembers(path, keys, known)
	if c.Path == "" {
		c.Path = webhook.DefaultPath
	}
	return errs
}

func (l sourceList) show() any {
	all := []any{}
	for _, s := range *l.to {
		c := s.webhook
		shown := yaml.MapSlice{{Key: "type", Value: "webhook"}, {Key: "path", Value: c.Path}, {Key: "channel", Value: c.Channel}}
		if strings.TrimSpace(c.Event) != "" {
			shown = append(shown, yaml.MapItem{Key: "event", Value: c.Event})
		}
		if c.Secret != "" {
			shown = append(shown, yaml.MapItem{Key: "secret", Value: masked(c.Secret)})
		}
		all = append(all, shown)
	}
	return all
}
