package amqp_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource/source/amqp"
)

func TestWhatCanNotBeUsedIsRefusedWithWhatWouldBeRight(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, test := range []struct {
		change func(c *amqp.Config)
		want   string
	}{
		{func(c *amqp.Config) { c.URLs = []string{"http://u:GEHEIM@host"} }, "url: is no URL of AMQP"},
		{func(c *amqp.Config) { c.URLs = []string{"amqp://u:GE HEIM@host"} }, "url: is no URL of AMQP"},
		{func(c *amqp.Config) { c.URLs = []string{"amqp://ok", "amqp://u:GEHEIM%zz@host"} }, "url[1]: is no URL of AMQP"},
		{func(c *amqp.Config) { c.URLs = []string{"amqp://u:GEHEIM@host?heartbeat=GEHEIM"} }, "url: is no URL of AMQP, or a value in it is none"},
		{func(c *amqp.Config) { c.URLs = []string{"amqp://host?auth_mechanism=GEHEIM"} }, "url: its auth_mechanism is none of plain, amqplain, external"},
		{func(c *amqp.Config) { c.Queue = "" }, "queue: none is given, and no exchange; name a queue, an exchange, or both"},
		{func(c *amqp.Config) { c.Queue = long }, "queue: it is longer than 255 bytes"},
		{func(c *amqp.Config) { c.QueueType = "lazy" }, `queue_type: "lazy" is none of classic, quorum, stream`},
		{func(c *amqp.Config) { c.Queue, c.Exchange, c.QueueType = "", "x", "quorum" }, "queue_type: a quorum needs a name; give one in queue"},
		{func(c *amqp.Config) { c.QueueType, c.Transient = "stream", true }, "durable: a stream always is; leave it out"},
		{func(c *amqp.Config) { c.QueueType, c.DeadLetterExchange = "stream", "x" }, "dead_letter_exchange: a stream has no dead letters; leave it out"},
		{func(c *amqp.Config) { c.DeadLetterExchange = long }, "dead_letter_exchange: it is longer than 255 bytes"},
		{func(c *amqp.Config) { c.Exchange = long }, "exchange: it is longer than 255 bytes"},
		{func(c *amqp.Config) { c.Bindings = []string{"a"} }, "bindings: there is no exchange to bind to; name it in exchange"},
		{func(c *amqp.Config) { c.Exchange, c.Bindings = "x", []string{} }, `bindings: the list is empty; name routing keys, or leave it out for "#"`},
		{func(c *amqp.Config) { c.Exchange, c.Bindings = "x", []string{long} }, "bindings: one is longer than 255 bytes"},
		{func(c *amqp.Config) { c.Offset = "first" }, "offset: only a stream has one; say queue_type: stream, or leave it out"},
		{func(c *amqp.Config) { c.QueueType, c.Offset = "stream", "middle" }, `offset: "middle" is none of first, last, next`},
		{func(c *amqp.Config) { c.QueueType, c.Offset = "stream", "-1" }, `offset: "-1" is none of first, last, next`},
		{func(c *amqp.Config) { c.Prefetch = -1 }, "prefetch: -1 is not between 1 and 65535"},
		{func(c *amqp.Config) { c.Prefetch = 65536 }, "prefetch: 65536 is not between 1 and 65535"},
		{func(c *amqp.Config) { c.Channel = "" }, "channel: none is given; name the one that events go to"},
		{func(c *amqp.Config) { c.Channel = "{nam}" }, `channel: "{nam}": there is no {nam} here`},
		{func(c *amqp.Config) { c.Channel = "{1}" }, "there is no {1} here"},
		{func(c *amqp.Config) { c.Exchange, c.Bindings, c.Channel = "x", []string{"a.*", "#.*"}, "{3}" }, "there is no {3} here"},
		{func(c *amqp.Config) { c.Event = "{header:}" }, "there is no {header:} here"},
		{func(c *amqp.Config) { c.ID = "{offset}" }, "there is no {offset} here"},
		{func(c *amqp.Config) { c.ID, c.Rollup = "{message_id}", time.Second }, "id: a roll-up is of many payloads"},
	} {
		c := amqp.Config{URLs: []string{"amqp://host"}, Queue: "q", Channel: "a"}
		test.change(&c)
		_, err := amqp.New(c)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "GEHEIM") {
			t.Errorf("the error is %v\nand does not say %s", err, test.want)
		}
	}
}

func TestEachWildcardStandsForItsWords(t *testing.T) {
	for _, test := range []struct {
		binding, key string
		found        []string // nil: it does not match
	}{
		{"", "", []string{}},
		{"a", "", nil},
		{"", "a", nil},
		{"a.b", "a.b", []string{}},
		{"a.b", "a.b.c", nil},
		{"#", "", []string{""}},
		{"#", "a.b", []string{"a.b"}},
		{"*", "", nil},
		{"*", "a", []string{"a"}},
		{"*", "a.b", nil},
		{"*.*", "a.b", []string{"a", "b"}},
		{"a.*.c", "a..c", []string{""}},
		{"a.#", "a", []string{""}},
		{"a.#", "a.b.c", []string{"b.c"}},
		{"a.#", "b.c", nil},
		{"#.c", "a.b.c", []string{"a.b"}},
		{"#.c", "c", []string{""}},
		{"#.c", "c.c.b", nil},
		{"#.*", "a.b", []string{"a", "b"}},
		{"*.#.*", "a.b.c.d", []string{"a", "b.c", "d"}},
		{"*.#.*", "a", nil},
		{"#.x.#", "a.x.b.x.c", []string{"a", "b.x.c"}},
		{"#.x.#.y", "a.x.b.y.c.y", []string{"a", "b.y.c"}},
		{"#.#", "a.b", []string{"", "a.b"}},
		{"a*", "ab", nil},
	} {
		found, ok := amqp.Match(test.binding, test.key)
		if ok != (test.found != nil) || !slices.Equal(found, test.found) {
			t.Errorf("%q in %q: %q %v, not %q", test.binding, test.key, found, ok, test.found)
		}
	}
}

// What a binding matches is what the plain rule says, and its words with what was found
// in place of its wildcards are the key.
func FuzzABindingMatchesByTheRule(f *testing.F) {
	for _, seed := range [][2]string{{"a.*.#", "a.b.c.d"}, {"#.a.#.b", "a.a.b.b"}, {"*..#", "a..b"}, {"", ""}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, binding, key string) {
		if len(binding) > 20 || len(key) > 20 {
			return
		}
		split := func(s string) []string {
			if s == "" {
				return nil
			}
			return strings.Split(s, ".")
		}
		found, ok := amqp.Match(binding, key)
		if want := matches(split(binding), split(key)); ok != want {
			t.Fatalf("%q and %q: %v", binding, key, ok)
		}
		if !ok {
			return
		}
		var all []string
		for _, w := range split(binding) {
			switch w {
			case "*":
				all = append(all, found[0])
				found = found[1:]
			case "#":
				if found[0] != "" || strings.Count(key, "..") > 0 { // an empty word and no word read alike
					all = append(all, split(found[0])...)
				}
				found = found[1:]
			default:
				all = append(all, w)
			}
		}
		if got := strings.Join(all, "."); len(found) != 0 || strings.ReplaceAll(got, ".", "") != strings.ReplaceAll(key, ".", "") {
			t.Errorf("%q and %q: %q", binding, key, got)
		}
	})
}

func matches(binding, key []string) bool {
	switch {
	case len(binding) == 0:
		return len(key) == 0
	case binding[0] == "#":
		return matches(binding[1:], key) || len(key) > 0 && matches(binding, key[1:])
	case len(key) == 0:
		return false
	}
	return (binding[0] == "*" || binding[0] == key[0]) && matches(binding[1:], key[1:])
}
