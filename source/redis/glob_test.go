package redis_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/source/redis"
)

func TestWildcardsStandForAsLittleAsCanBe(t *testing.T) {
	for _, test := range []struct {
		pattern, name string
		want          []string
		ok            bool
	}{
		{"stream.tweet_updates.*", "stream.tweet_updates.2665", []string{"2665"}, true},
		{"a.*.*", "a.b.c", []string{"b", "c"}, true},
		{"a.*.*", "a.b.c.d", []string{"b", "c.d"}, true},
		{"a.*.*", "a.b", nil, false},
		{"*", "", []string{""}, true},
		{"*", "anything", []string{"anything"}, true},
		{"**a***", "bac", []string{"b", "c"}, true},
		{"a*", "a", []string{""}, true},
		{"*ab*ab", "abab", []string{"", ""}, true},
		{"*ab", "aab", []string{"a"}, true},
		{"a?c*", "abcd", []string{"d"}, true},
		{"a?", "a", nil, false},
		{"h[ae]llo.*", "hallo.1", []string{"1"}, true},
		{"h[^e]llo", "hello", nil, false},
		{"h[^e]llo", "hallo", nil, true},
		{"h[b-a]llo", "hallo", nil, true},
		{`[\]\-]*`, "-x", []string{"x"}, true},
		{`\*.*`, "*.x", []string{"x"}, true},
		{`\*.*`, "a.x", nil, false},
		{`a\`, `a\`, nil, true},
		{"[abc", "c", nil, true},
		{"a[]b", "ab", nil, false},
		{"*.\xff*", "a.\xffb", []string{"a", "b"}, true},
		{"", "", nil, true},
		{"", "a", nil, false},
		{strings.Repeat("*a", 40) + "b", strings.Repeat("a", 200), nil, false},
	} {
		got, ok := redis.Match(test.pattern, test.name)
		if ok != test.ok || !slices.Equal(got, test.want) {
			t.Errorf("%q %q: %q %t, want %q %t", test.pattern, test.name, got, ok, test.want, test.ok)
		}
	}
}

// FuzzPattern holds the matcher against Redis's own.
func FuzzPattern(f *testing.F) {
	for _, seed := range [][2]string{{"a*b?[c-e]", "axxbyd"}, {`\[a\*`, "[a*"}, {"[^a-c]", "d"}, {"[a-", "b"}, {"*a*", "bab"}, {"[\\]", "]"}, {"[a-]]", "^"},
		{"[", "x"}, {"[^", "x"}, {"[^]", "x"}, {"[]]", "]"}, {"**", "x"}, {"a**", "a"}, {"\\", "\\"}, {"[z-a]", "m"}, {"[\\a-c]", "b"}, {"[a-\\]", "b"}, {"[--0]", "/"}} {
		f.Add(seed[0], seed[1])
	}
	own := brokertest.OwnRedis(f, "--appendonly", "no")
	c := dial(f, own.URL)
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if name == "" || len(pattern) > 100 || len(name) > 100 {
			return // Redis has * not match the empty name, which nobody gives a channel
		}
		if strings.Contains(pattern, "[") && strings.ContainsFunc(pattern, func(r rune) bool { return r >= 0x80 }) {
			return // in ranges of bytes beyond ASCII Redis does as the machine's char does
		}
		p := c.Pipeline()
		p.Set(t.Context(), name, "", 0)
		found := p.Keys(t.Context(), pattern)
		p.Del(t.Context(), name)
		if _, err := p.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, ok := redis.Match(pattern, name)
		if want := len(found.Val()) == 1; ok != want {
			t.Errorf("%q %q: %t, for Redis %t", pattern, name, ok, want)
		}
		if !ok {
			return
		}
		length := 0
		for _, text := range got {
			length += len(text)
		}
		if length > len(name) {
			t.Errorf("%q %q: the wildcards stand for %q", pattern, name, got)
		}
	})
}
