// Package webhook is a source that is fed by POST requests to the server
// itself: any JSON becomes the data of one event.
package webhook

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/railsmechanic/eventsource"
)

// DefaultPath is where a webhook is served unless Config says otherwise.
const DefaultPath = "/api/events"

// Config says how a webhook publishes.
type Config struct {
	// Path is where it is served. Empty is DefaultPath.
	Path string
	// Channel is the one that it publishes to.
	Channel string
	// Event is the type of its events. Empty: they have none.
	Event string
	// Secret is what a request must send as "Authorization: Bearer SECRET" or
	// "Auth-Token: SECRET". Empty: the server asks for a grant to publish to
	// Channel, once it has a token.
	Secret string
}

// A Source publishes what is posted to it: the whole document, checked and
// untouched. It is safe for concurrent use.
type Source struct {
	// Set when made.
	config Config
	secret [sha256.Size]byte

	publish atomic.Pointer[eventsource.Publisher] // while Run runs
}

var _ eventsource.Endpoint = (*Source)(nil)

// New returns a webhook. Its error says what in the configuration can't be
// used, and what would be right.
func New(c Config) (*Source, error) {
	if c.Path == "" {
		c.Path = DefaultPath
	}
	if !strings.HasPrefix(c.Path, "/") || strings.ContainsAny(c.Path, "?#{}%\\ ") || strings.Contains(c.Path, "//") {
		return nil, fmt.Errorf("path %q is no path such as %s", c.Path, DefaultPath)
	}
	if c.Channel == "" {
		return nil, errors.New("channel: none is given; name the one that events go to")
	}
	if strings.HasSuffix(c.Channel, "*") {
		return nil, fmt.Errorf("channel: %q is a wildcard, which can only be followed; name the channel itself", c.Channel)
	}
	// The rule of names is the server's, which knows it for what keys may publish to, too.
	grants := eventsource.Settings{Keys: []eventsource.Key{{Token: "a token", Publish: []string{c.Channel}}}}
	if err := grants.Validate(); err != nil {
		_, what, _ := strings.Cut(err.Error(), ": ")
		return nil, fmt.Errorf("channel: %s", what)
	}
	if strings.HasPrefix(c.Event, "eventsource.") || strings.ContainsFunc(c.Event, func(r rune) bool { return r < ' ' || r == 0x7f }) || !utf8.ValidString(c.Event) {
		return nil, fmt.Errorf("event: %q has control characters or begins with eventsource., which is the server's own", c.Event)
	}
	if c.Secret != strings.TrimSpace(c.Secret) || strings.ContainsFunc(c.Secret, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, errors.New("secret: it has control characters, or a space at an end, and could not come in a header")
	}
	return &Source{config: c, secret: sha256.Sum256([]byte(c.Secret))}, nil
}

// Path is where the webhook is served.
func (s *Source) Path() string { return s.config.Path }

// Channel is what a request must be granted to publish to; "" when the webhook
// has a secret.
func (s *Source) Channel() string {
	if s.config.Secret != "" {
		return ""
	}
	return s.config.Channel
}

// Run has requests publish until ctx ends.
func (s *Source) Run(ctx context.Context, publish eventsource.Publisher) error {
	s.publish.Store(&publish)
	defer s.publish.Store(nil)
	<-ctx.Done()
	return nil
}

// ServeHTTP publishes the body of a POST and answers with the event's id.
func (s *Source) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, r, http.StatusMethodNotAllowed, r.Method+" is not possible here: POST a JSON document")
		return
	}
	if s.config.Secret != "" && !s.knows(r) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="eventsource"`)
		refuse(w, r, http.StatusUnauthorized,
			"this webhook has a secret: send it as Authorization: Bearer SECRET or Auth-Token: SECRET")
		return
	}
	body, err := io.ReadAll(r.Body)
	if long, ok := errors.AsType[*http.MaxBytesError](err); ok {
		refuse(w, r, http.StatusRequestEntityTooLarge,
			"the body is longer than "+strconv.FormatInt(long.Limit, 10)+" bytes: send a shorter one")
		return
	}
	if err != nil {
		refuse(w, r, http.StatusBadRequest, "the body ended early: "+err.Error())
		return
	}
	if err := check(body); err != nil {
		refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	publish := s.publish.Load()
	if publish == nil {
		p := problem(http.StatusServiceUnavailable, "the webhook does not run at present: send it again later")
		p.RetryAfter = time.Second
		p.ServeHTTP(w, r)
		return
	}
	receipt, err := (*publish)(r.Context(), s.config.Channel, eventsource.Event{Type: s.config.Event, Data: string(body)})
	if err != nil {
		if p, ok := errors.AsType[*eventsource.Problem](err); ok {
			p.ServeHTTP(w, r)
			return
		}
		refuse(w, r, http.StatusInternalServerError, "the event could not be published: "+err.Error())
		return
	}
	answer, err := json.Marshal(struct {
		ID string `json:"id"`
	}{receipt.IDs[0]})
	if err != nil {
		panic("webhook: a string can't fail to encode: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.Write(append(answer, '\n'))
}

// knows reports whether a request comes with the secret.
func (s *Source) knows(r *http.Request) bool {
	token := strings.TrimSpace(r.Header.Get("Auth-Token"))
	if scheme, t, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && token == "" && strings.EqualFold(scheme, "Bearer") {
		token = strings.TrimSpace(t)
	}
	hash := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(hash[:], s.secret[:]) == 1
}

// check reports why body is no JSON document in UTF-8 (RFC 8259).
func check(body []byte) error {
	if len(body) == 0 {
		return errors.New("the body is empty: send a JSON document")
	}
	if !utf8.Valid(body) {
		return errors.New("the body is not valid UTF-8, as JSON must be (RFC 8259, 8.1)")
	}
	var document json.RawMessage
	err := json.Unmarshal(body, &document)
	if at, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("the body is no JSON document: %v at byte %d", at, at.Offset)
	}
	return err
}

func problem(status int, detail string) *eventsource.Problem {
	return &eventsource.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

func refuse(w http.ResponseWriter, r *http.Request, status int, detail string) {
	problem(status, detail).ServeHTTP(w, r)
}
