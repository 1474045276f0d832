package amqp

import "strings"

// everything is the binding that matches every routing key.
const everything = "#"

// A binding is a routing key with wildcards: "*" stands for one word between dots, "#"
// for any number of them (AMQP 0-9-1, 3.1.3.3).
type binding struct {
	words     []string
	wildcards int
}

func parseBinding(text string) binding {
	b := binding{words: words(text)}
	for _, w := range b.words {
		if w == "*" || w == everything {
			b.wildcards++
		}
	}
	return b
}

func words(key string) []string {
	if key == "" {
		return nil
	}
	return strings.Split(key, ".")
}

// A span is the words of a key that a wildcard stands for.
type span struct{ from, to int }

// match returns what each wildcard stands for in a key, each "#" for as few words as
// can be but for the last. It reports false where the key does not match.
func (b *binding) match(key string) ([]string, bool) {
	names := words(key)
	spans := make([]span, 0, b.wildcards)
	i, n := 0, 0         // the next words of the binding and of the key
	again, kept := -1, 0 // the word after the last "#", and how many spans are up to it
	for i < len(b.words) || n < len(names) {
		switch {
		case i < len(b.words) && b.words[i] == everything:
			spans = append(spans, span{n, n})
			i++
			again, kept = i, len(spans)
			continue
		case i < len(b.words) && n < len(names) && b.words[i] == "*":
			spans = append(spans, span{n, n + 1})
			i, n = i+1, n+1
			continue
		case i < len(b.words) && n < len(names) && b.words[i] == names[n]:
			i, n = i+1, n+1
			continue
		}
		// The last "#" has one word more.
		if again < 0 || spans[kept-1].to == len(names) {
			return nil, false
		}
		spans = spans[:kept]
		spans[kept-1].to++
		i, n = again, spans[kept-1].to
	}
	found := make([]string, len(spans))
	for i, s := range spans {
		found[i] = strings.Join(names[s.from:s.to], ".")
	}
	return found, true
}
