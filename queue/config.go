package queue

import (
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Validate returns everything that is wrong, joined, or nil. Each begins with the member's
// name: "nodes[0]: …", "pattern: …", "expires: …", "headers: …", "event: …". No URL is in
// it, since it may hold a password.
func (c *Config) Validate() error {
	var errs []error
	bad := func(member string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", member, err))
		}
	}
	if len(c.Nodes) == 0 {
		bad("nodes", errors.New("none is given; give a broker's URL such as amqp://guest:guest@localhost:5672/"))
	}
	for i, u := range c.Nodes {
		bad(fmt.Sprintf("nodes[%d]", i), checkNode(u))
	}
	_, err := parsePattern(c.pattern())
	bad("pattern", err)
	bad("expires", checkExpires(c.Expires))
	for _, k := range slices.Sorted(maps.Keys(c.Header)) {
		bad("headers", checkHeader(k, c.Header[k]))
	}
	_, err = parseType(c.Event)
	bad("event", err)
	return errors.Join(errs...)
}

func (c *Config) pattern() string {
	if c.Pattern == "" {
		return DefaultPattern
	}
	return c.Pattern
}

// checkNode reports why a text is no URL of a broker, without the text.
func checkNode(node string) error {
	wrong := errors.New("is no URL of a broker, such as amqp://guest:guest@localhost:5672/ or amqps://…; " +
		"in a name or password write what is no letter and no digit as % and two hexadecimal digits")
	u, err := url.Parse(node)
	if err != nil || u.Host == "" || u.Scheme != "amqp" && u.Scheme != "amqps" {
		return wrong
	}
	if _, err := amqp.ParseURI(node); err != nil {
		return wrong
	}
	return nil
}

func checkExpires(d time.Duration) error {
	switch {
	case d == -1:
		return nil
	case d < 0 || d > maxExpires:
		return fmt.Errorf("%v is not between 1ms and %v; give one such as 30m", d, maxExpires)
	case d%time.Millisecond != 0:
		return fmt.Errorf("%v is not in whole milliseconds", d)
	}
	return nil
}

// checkHeader reports why a header can't be set on the responses.
func checkHeader(name string, values []string) error {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Transfer-Encoding", "Content-Length", "Connection", "Keep-Alive", "Trailer", "Upgrade", "Te", "Date":
		return fmt.Errorf("%s is the server's to set, which frames the response; leave it out", name)
	case "Content-Type":
		for _, v := range values {
			if media, _, err := mime.ParseMediaType(v); err != nil || media != "text/event-stream" {
				return fmt.Errorf("Content-Type: %q is no stream of events; give text/event-stream, or text/event-stream; charset=utf-8", v)
			}
		}
	}
	if !isToken(name) {
		return fmt.Errorf("%q is no name of a header", name)
	}
	for _, v := range values {
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return fmt.Errorf("%s: %q has control characters", name, v)
		}
	}
	return nil
}

// isToken reports whether s may name a header or a cookie (RFC 9110, 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}
