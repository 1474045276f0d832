package queue

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/railsmechanic/eventsource"
)

const (
	maxName = 255    // bytes of a queue's name (AMQP 0-9-1, 4.2.5.3)
	kept    = "amq." // begins the names that are the broker's own
)

// A pattern names the queue of a request.
type pattern []part

// A part is text, or what a request has for a name.
type part struct {
	source string // "query" or "cookie"; empty: text
	text   string // or the name
}

const patternRule = "give text with ${query:NAME} or ${cookie:NAME} in it, such as queue-${query:id}"

// parsePattern reads a pattern. Its error says what would be right.
func parsePattern(s string) (pattern, error) {
	var all pattern
	asks := false
	for rest := s; rest != ""; {
		text, after, found := strings.Cut(rest, "${")
		if text != "" {
			all = append(all, part{text: text})
		}
		if !found {
			break
		}
		name, next, closed := strings.Cut(after, "}")
		if !closed {
			return nil, fmt.Errorf("${%s has no closing brace; %s", after, patternRule)
		}
		p, err := parsePart(name)
		if err != nil {
			return nil, err
		}
		all, rest, asks = append(all, p), next, true
	}
	if !asks {
		return nil, fmt.Errorf("%q names one queue for everybody; %s", s, patternRule)
	}
	return all, all.checkText()
}

// parsePart reads what stands between braces.
func parsePart(s string) (part, error) {
	source, name, _ := strings.Cut(s, ":")
	switch {
	case source != "query" && source != "cookie":
		return part{}, fmt.Errorf("${%s} is neither ${query:NAME} nor ${cookie:NAME}", s)
	case name == "":
		return part{}, fmt.Errorf("${%s} has no name; %s", s, patternRule)
	case source == "cookie" && !isToken(name):
		return part{}, fmt.Errorf("${%s}: %q is no name of a cookie", s, name)
	}
	return part{source, name}, nil
}

// checkText reports why text can't be in the name of a queue.
func (all pattern) checkText() error {
	n := 0
	for i, p := range all {
		if p.source != "" {
			continue
		}
		if n += len(p.text); n > maxName {
			return fmt.Errorf("its text is longer than %d bytes, which a queue's name may have", maxName)
		}
		if err := checkText(p.text); err != nil {
			return err
		}
		if i == 0 && strings.HasPrefix(p.text, kept) {
			return fmt.Errorf("names that begin with %s are the broker's own; begin with another text", kept)
		}
	}
	return nil
}

func checkText(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("it is not valid UTF-8")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return errors.New("it has control characters; leave them out")
	}
	return nil
}

// name returns the name of a request's queue.
func (all pattern) name(r *http.Request) (string, *eventsource.Problem) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", problem(http.StatusBadRequest, "the query can't be read: separate parameters by an ampersand and escape what is not a letter or digit by %%")
	}
	var b strings.Builder
	for _, p := range all {
		value := p.text
		switch p.source {
		case "query":
			if value = query.Get(p.text); value == "" {
				return "", problem(http.StatusBadRequest, "the query has no %s, which names the queue: ask with ?%s=…", p.text, url.QueryEscape(p.text))
			}
		case "cookie":
			if value = cookie(r, p.text); value == "" {
				return "", problem(http.StatusBadRequest, "there is no cookie %s, which names the queue: ask with one; that of a page of another origin counts where cors lists the origin, with allow_credentials", p.text)
			}
		}
		b.WriteString(value)
	}
	name := b.String()
	switch err := checkText(name); {
	case err != nil:
		return "", problem(http.StatusBadRequest, "the name of the queue can't be used: %v", err)
	case len(name) > maxName:
		return "", problem(http.StatusBadRequest, "the name of the queue would have %d bytes: at most %d are possible", len(name), maxName)
	case strings.HasPrefix(name, kept):
		return "", problem(http.StatusBadRequest, "the name of the queue begins with %s, which is the broker's own: ask for another", kept)
	}
	return name, nil
}

// cookie returns the value of a cookie, empty where there is none.
func cookie(r *http.Request, name string) string {
	c, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return c.Value
}
