// Package redis is a source that is fed by Redis: by channels (pub/sub), where what comes
// while nobody listens is lost, or by streams with a consumer group, where what was not
// acknowledged comes again.
package redis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
)

// What a Config without it has.
const (
	DefaultURL   = "redis://localhost:6379"
	DefaultGroup = "eventsource"
	DefaultStart = "$"
	DefaultClaim = time.Minute
	defaultField = "data"
)

// Config says what is fed in, and how it is published. It has either Subscribe and
// Psubscribe, or Streams.
type Config struct {
	// URL is where the server is: redis://USER:PASSWORD@HOST:PORT/DATABASE, with
	// rediss for TLS, or unix://USER:PASSWORD@/PATH?db=DATABASE. Empty is DefaultURL.
	// What it says of a user and a password is in no error and no log.
	URL string

	// Subscribe are names of channels of Redis, and Psubscribe patterns of names.
	Subscribe, Psubscribe []string

	// Streams are the keys of streams, which are read as the consumer Consumer of the
	// group Group.
	Streams []string
	// Group is made where it is missing. Empty is DefaultGroup.
	Group string
	// Consumer is the name in the group that belongs to this process alone. Empty: the
	// name of the machine.
	Consumer string
	// Start is where a group that is made begins: "$" behind what the stream holds, "0"
	// with all of it, or behind the entry of an id. Empty is DefaultStart.
	Start string
	// Field is the field of an entry that is the payload. Empty: "data", or the only
	// one that there is.
	Field string
	// Claim is after which time entries that another consumer of the group has not
	// acknowledged are taken over. 0 is DefaultClaim.
	Claim time.Duration
	// DeadLetter is the key of a stream that entries which can't be published are
	// copied to. Empty: they are only acknowledged.
	DeadLetter string

	// Channel is the template of the channel that events go to, or of several joined by
	// commas. {name} is the channel or the stream; {1} to {9} what the wildcards * of
	// the pattern stand for; {id} the id of the stream's entry, and {field:x} a field
	// of it.
	Channel string
	// Event is the template of their type. Empty: they have none.
	Event string
	// ID is the template of their id. Empty, or where it comes out empty: the server
	// gives one.
	ID string
	// JSON refuses payloads that are no JSON document.
	JSON bool
	// Rollup is a period in which equal payloads are counted, and published as one JSON
	// object {"payload": n}. 0: each payload is an event.
	Rollup time.Duration
}

// A Source publishes what comes in. It is safe for concurrent use; Run is called once at
// a time.
type Source struct {
	// Set when made.
	config    Config
	options   *redis.Options
	intake    *intake.Intake
	patterns  map[string]glob // of Psubscribe
	pingAfter time.Duration

	mu     sync.Mutex
	places map[string]place // where each stream was read up to
}

var _ eventsource.Source = (*Source)(nil)

// New returns a source. Its error says what in the configuration can't be used, and
// what would be right.
func New(c Config) (*Source, error) {
	s := &Source{config: c.withDefaults(), pingAfter: pingAfter, patterns: map[string]glob{}, places: map[string]place{}}
	c = s.config
	var err error
	if s.options, err = parseURL(c.URL); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	for _, pattern := range c.Psubscribe {
		s.patterns[pattern] = compile(pattern)
	}
	s.intake, err = intake.New(intake.Config{Channel: c.Channel, Event: c.Event, ID: c.ID, JSON: c.JSON, Rollup: c.Rollup}, s.variables())
	if err != nil {
		return nil, err
	}
	return s, nil
}

// withDefaults fills what is empty.
func (c Config) withDefaults() Config {
	or := func(to *string, value string) {
		if *to == "" {
			*to = value
		}
	}
	or(&c.URL, DefaultURL)
	or(&c.Group, DefaultGroup)
	or(&c.Start, DefaultStart)
	if host, err := os.Hostname(); err == nil {
		or(&c.Consumer, host)
	}
	or(&c.Consumer, DefaultGroup)
	if c.Claim == 0 {
		c.Claim = DefaultClaim
	}
	return c
}

// starts are the places at which a group may begin.
var starts = regexp.MustCompile(`^(\$|\d+(-\d+)?)$`)

// check reports what of it can't be used.
func (c *Config) check() error {
	listens := len(c.Subscribe)+len(c.Psubscribe) > 0
	switch {
	case !listens && len(c.Streams) == 0:
		return errors.New("it has nothing to follow: give subscribe, psubscribe or streams")
	case listens && len(c.Streams) > 0:
		return errors.New("streams: they have a source of their own; leave out subscribe and psubscribe")
	}
	for _, list := range []struct {
		name  string
		names []string
	}{{"subscribe", c.Subscribe}, {"psubscribe", c.Psubscribe}, {"streams", c.Streams}} {
		for i, name := range list.names {
			switch {
			case name == "":
				return fmt.Errorf("%s: a name is empty", list.name)
			case slices.Contains(list.names[:i], name):
				return fmt.Errorf("%s: %q stands there twice", list.name, name)
			}
		}
	}
	switch {
	case !starts.MatchString(c.Start):
		return fmt.Errorf("start: %q is neither $ nor 0 nor an entry's id such as 1700000000000-0", c.Start)
	case slices.Contains(c.Streams, c.DeadLetter):
		return fmt.Errorf("dead_letter: %q is one of streams: what is put there would come again", c.DeadLetter)
	case c.Claim < time.Second:
		return fmt.Errorf("claim: %v is below 1s", c.Claim)
	case len(c.Streams) > 0 && c.Rollup > 0 && c.Rollup > c.Claim/2:
		return fmt.Errorf("claim: %v is not twice as long as rollup, which is %v: what is counted would be taken over", c.Claim, c.Rollup)
	}
	return nil
}

// wildcards is how many every name has.
func (s *Source) wildcards() int {
	if len(s.config.Subscribe) > 0 {
		return 0
	}
	fewest := most
	for _, pattern := range s.patterns {
		fewest = min(fewest, pattern.stars)
	}
	return fewest
}

// variables are those of templates.
func (s *Source) variables() intake.Variables {
	if len(s.config.Streams) > 0 {
		return intake.Variables{Names: []string{"name", "id", "field:"}}
	}
	return intake.Variables{Names: []string{"name"}, Wildcards: s.wildcards()}
}

// Run publishes what comes in until ctx ends or the connection is lost.
func (s *Source) Run(ctx context.Context, feed *eventsource.Feed) error {
	if len(s.config.Streams) > 0 {
		return s.runStreams(ctx, feed)
	}
	return s.runChannels(ctx, feed)
}
