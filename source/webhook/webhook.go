// Package webhook is a source that is fed by POST requests to the server
// itself: any JSON becomes the data of one event.
package webhook

import (
	"bytes"
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
	"github.com/railsmechanic/eventsource/internal/intake"
)

// DefaultPath is where a webhook is served unless Config says otherwise.
const DefaultPath = "/api/events"

// The forms of signatures.
const (
	GitHub = "github" // X-Hub-Signature-256
	Stripe = "stripe" // Stripe-Signature
)

// Config says how a webhook publishes.
type Config struct {
	// Path is where it is served. Empty is DefaultPath.
	Path string
	// Channel is the template of the channel that it publishes to. Templates may have
	// {header:NAME}, what a header of the request says, and {body:NAME}, what is said by
	// the text or the number of that name in the document, which is an object. A channel
	// with either needs a Secret: a grant is for one channel.
	Channel string
	// Event is the template of the type of its events. Empty: they have none.
	Event string
	// ID is the template of their id. Empty, or where it comes out empty: the server
	// gives one.
	ID string
	// Secret is what a request must send as "Authorization: Bearer SECRET" or
	// "Auth-Token: SECRET", or with a Signature the key that it is made with. Empty: the
	// server asks for a grant to publish to Channel, once it has a token.
	Secret string
	// Signature is the form in which requests are signed: GitHub or Stripe. Empty: they
	// are not.
	Signature string
}

// A Source publishes what is posted to it: the whole document, checked and
// untouched. It is safe for concurrent use.
type Source struct {
	// Set when made.
	config Config
	intake *intake.Intake
	secret [sha256.Size]byte

	feed atomic.Pointer[eventsource.Feed] // while Run runs
	came deliveries
}

var _ eventsource.Endpoint = (*Source)(nil)

// variables are those of templates.
var variables = intake.Variables{Names: []string{"header:", "body:"}}

// New returns a webhook. Its error says what in the configuration can't be
// used, and what would be right.
func New(c Config) (*Source, error) {
	if c.Path == "" {
		c.Path = DefaultPath
	}
	if !strings.HasPrefix(c.Path, "/") || strings.ContainsAny(c.Path, "?#{}%\\ ") || strings.Contains(c.Path, "//") {
		return nil, fmt.Errorf("path %q is no path such as %s", c.Path, DefaultPath)
	}
	if strings.Contains(c.Channel, ",") {
		return nil, fmt.Errorf("channel: %q holds ',': a webhook publishes to one channel", c.Channel)
	}
	s := &Source{config: c, secret: sha256.Sum256([]byte(c.Secret)), came: newDeliveries(remembered)}
	var err error
	if s.intake, err = intake.New(intake.Config{Channel: c.Channel, Event: c.Event, ID: c.ID}, variables); err != nil {
		return nil, err
	}
	if c.Secret != strings.TrimSpace(c.Secret) || strings.ContainsFunc(c.Secret, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, errors.New("secret: it has control characters, or a space at an end, and could not come in a header")
	}
	switch {
	case c.Signature != "" && c.Signature != GitHub && c.Signature != Stripe:
		return nil, fmt.Errorf("signature: %q is none of %s, %s", c.Signature, GitHub, Stripe)
	case c.Signature != "" && c.Secret == "":
		return nil, errors.New("secret: none is given; with a signature it is the key that both sides know")
	case c.Secret == "" && s.intake.Varies():
		return nil, fmt.Errorf("channel: %q has variables, and no grant is for that; give a secret", c.Channel)
	}
	return s, nil
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
func (s *Source) Run(ctx context.Context, feed *eventsource.Feed) error {
	s.feed.Store(feed)
	defer s.feed.Store(nil)
	feed.Connected()
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
	signed, detail := s.asked(r)
	if detail != "" {
		s.unauthorized(w, r, detail)
		return
	}
	body, err := io.ReadAll(r.Body)
	if long, ok := errors.AsType[*http.MaxBytesError](err); ok {
		s.count(eventsource.RefusedTooLarge, fmt.Errorf("the body is above limits.body, which is %d", long.Limit))
		refuse(w, r, http.StatusRequestEntityTooLarge, "the body is longer than "+strconv.FormatInt(long.Limit, 10)+" bytes: send a shorter one")
		return
	}
	if err != nil {
		refuse(w, r, http.StatusBadRequest, "the body ended early: "+err.Error())
		return
	}
	if signed != nil && !signed.by(s.config.Secret, body) {
		s.unauthorized(w, r, "the signature is not that of this body with this webhook's secret: give both sides the same secret, and sign the body's bytes as they are sent")
		return
	}
	if refused := check(body); refused != nil {
		s.count(refused.Reason, refused.Err)
		refuse(w, r, http.StatusBadRequest, refused.Err.Error())
		return
	}
	s.publish(w, r, body)
}

// publish publishes a document, unless it has been before.
func (s *Source) publish(w http.ResponseWriter, r *http.Request, body []byte) {
	feed := s.feed.Load()
	if feed == nil {
		p := problem(http.StatusServiceUnavailable, "the webhook does not run at present: send it again later")
		p.RetryAfter = time.Second
		p.ServeHTTP(w, r)
		return
	}
	d := document{header: r.Header, body: body}
	channel, e, refused := s.intake.Event(body, d.value)
	if err := eventsource.CheckChannel(channel); refused == nil && err != nil {
		refused = &eventsource.RefusedError{Reason: eventsource.RefusedName, Err: err}
	}
	if refused != nil {
		s.count(refused.Reason, refused.Err)
		refuse(w, r, http.StatusBadRequest, "this makes no name of a channel: "+refused.Err.Error())
		return
	}
	delivery, err := s.came.begin(r.Context(), s.key(&d))
	if err != nil {
		return // the sender has gone
	}
	if delivery.id == "" && s.config.Signature != "" && kept(r.Context(), feed, channel, e.ID) {
		delivery.id = e.ID
	}
	if delivery.id != "" {
		feed.Repeated()
		s.came.end(delivery, delivery.id)
		answer(w, delivery.id)
		return
	}
	receipt, err := feed.Try(r.Context(), channel, e)
	if err != nil {
		s.came.end(delivery, "")
		s.failed(w, r, err)
		return
	}
	s.came.end(delivery, receipt.IDs[0])
	answer(w, receipt.IDs[0])
}

// kept reports whether an event is kept. While the backend is away the sender has its answer
// soon: publishing is refused then.
func kept(ctx context.Context, feed *eventsource.Feed, channel, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return feed.Kept(ctx, channel, id)
}

// failed answers that an event was not published.
func (s *Source) failed(w http.ResponseWriter, r *http.Request, err error) {
	p, ok := errors.AsType[*eventsource.Problem](err)
	if !ok {
		refuse(w, r, http.StatusInternalServerError, "the event could not be published: "+err.Error())
		return
	}
	switch p.Status {
	case http.StatusRequestEntityTooLarge:
		s.count(eventsource.RefusedTooLarge, p)
	case http.StatusBadRequest:
		s.count(eventsource.RefusedInvalid, p)
	}
	p.ServeHTTP(w, r)
}

// answer says which id an event has.
func answer(w http.ResponseWriter, id string) {
	body, err := json.Marshal(struct {
		ID string `json:"id"`
	}{id})
	if err != nil {
		panic("webhook: a string can't fail to encode: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.Write(append(body, '\n'))
}

// asked looks for what a request must come with before its body is read. It returns
// what the body must be signed with, if it must be, or what is wrong.
func (s *Source) asked(r *http.Request) (signed *signature, wrong string) {
	switch {
	case s.config.Secret == "":
		return nil, ""
	case s.config.Signature == GitHub:
		return signedByGitHub(r.Header)
	case s.config.Signature == Stripe:
		return signedByStripe(r.Header, time.Now())
	case !s.knows(r):
		return nil, "this webhook has a secret: send it as Authorization: Bearer SECRET or Auth-Token: SECRET"
	}
	return nil, ""
}

// unauthorized answers that the secret, or a signature, is missing or wrong.
func (s *Source) unauthorized(w http.ResponseWriter, r *http.Request, detail string) {
	scheme := "Bearer"
	if s.config.Signature != "" {
		scheme = "HMAC-SHA256" // RFC 9110, 15.5.2: a 401 has a challenge
	}
	w.Header().Set("WWW-Authenticate", scheme+` realm="eventsource"`)
	refuse(w, r, http.StatusUnauthorized, detail)
}

// count counts a payload that is not published.
func (s *Source) count(reason string, err error) {
	if feed := s.feed.Load(); feed != nil {
		feed.Refuse(&eventsource.RefusedError{Reason: reason, Err: err})
	}
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
func check(body []byte) *eventsource.RefusedError {
	if len(body) == 0 {
		return &eventsource.RefusedError{Reason: eventsource.RefusedEmpty, Err: errors.New("the body is empty: send a JSON document")}
	}
	if !utf8.Valid(body) {
		return &eventsource.RefusedError{Reason: eventsource.RefusedNotUTF8, Err: errors.New("the body is not valid UTF-8, as JSON must be (RFC 8259, 8.1)")}
	}
	var text json.RawMessage
	err := json.Unmarshal(body, &text)
	if at, ok := errors.AsType[*json.SyntaxError](err); ok {
		err = fmt.Errorf("the body is no JSON document: %v at byte %d", at, at.Offset)
		if bytes.HasPrefix(body, []byte("payload=")) {
			err = errors.New("the body is no JSON document but a form: choose application/json as the content type where the webhook is set up")
		}
	}
	if err != nil {
		return &eventsource.RefusedError{Reason: eventsource.RefusedNotJSON, Err: err}
	}
	return nil
}

func problem(status int, detail string) *eventsource.Problem {
	return &eventsource.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

func refuse(w http.ResponseWriter, r *http.Request, status int, detail string) {
	problem(status, detail).ServeHTTP(w, r)
}
