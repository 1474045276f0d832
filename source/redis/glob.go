package redis

// most is how many wildcards of a pattern have a variable.
const most = 9

// A glob is a pattern of Redis's PSUBSCRIBE: * stands for any bytes, ? for one, [a-z^] for
// one of a class, and \ takes the next one literally.
type glob struct {
	tokens []token
	stars  int // as several side by side are one
}

// A token stands for one byte, or for any number of them.
type token struct {
	star bool
	any  bool      // ?
	not  bool      // of the class
	set  [256]bool // the class; one byte is a class, too
}

// matches reports whether the token stands for a byte.
func (t *token) matches(c byte) bool { return t.any || t.set[c] != t.not }

// compile reads a pattern, as Redis reads it: there is none that is wrong.
func compile(pattern string) glob {
	var g glob
	for rest := pattern; rest != ""; {
		var t token
		switch c := rest[0]; {
		case c == '*':
			rest = rest[1:]
			if n := len(g.tokens); n > 0 && g.tokens[n-1].star {
				continue
			}
			t.star = true
			g.stars++
		case c == '?':
			rest = rest[1:]
			t.any = true
		case c == '[':
			rest = t.class(rest[1:])
		case c == '\\' && len(rest) > 1:
			t.set[rest[1]] = true
			rest = rest[2:]
		default:
			t.set[c] = true
			rest = rest[1:]
		}
		g.tokens = append(g.tokens, t)
	}
	return g
}

// class reads a class behind its bracket, and returns what follows it. One that is not
// closed ends with the pattern.
func (t *token) class(rest string) string {
	if rest != "" && rest[0] == '^' {
		t.not = true
		rest = rest[1:]
	}
	for rest != "" {
		switch {
		case rest[0] == '\\' && len(rest) > 1:
			t.set[rest[1]] = true
			rest = rest[2:]
		case rest[0] == ']':
			return rest[1:]
		case len(rest) > 2 && rest[1] == '-':
			low, high := min(rest[0], rest[2]), max(rest[0], rest[2])
			for c := int(low); c <= int(high); c++ {
				t.set[c] = true
			}
			rest = rest[3:]
		default:
			t.set[rest[0]] = true
			rest = rest[1:]
		}
	}
	return ""
}

// match returns what each wildcard * stands for, from the left as little as can be, and
// whether the pattern matches the name.
func (g *glob) match(name string) (found []string, ok bool) {
	var begins []int      // of what the stars stand for
	var ends []int        // likewise
	star, resume := -1, 0 // the last star, and where in name what follows it was tried last
	at, next := 0, 0      // in name, in tokens
	for at < len(name) || next < len(g.tokens) {
		switch {
		case next < len(g.tokens) && g.tokens[next].star:
			star, resume = next, at
			begins, ends = append(begins, at), append(ends, at)
			next++
		case next < len(g.tokens) && at < len(name) && g.tokens[next].matches(name[at]):
			at++
			next++
		case star >= 0 && resume < len(name): // the last star takes one byte more
			resume++
			at, next = resume, star+1
			ends[len(ends)-1] = resume
		default:
			return nil, false
		}
	}
	for i := range begins {
		found = append(found, name[begins[i]:ends[i]])
	}
	return found, true
}
