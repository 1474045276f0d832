package eventsource

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gorilla/mux"
)

// The management API: JSON below apiBase. What it has is the table operations; the
// document openapi.json says the same to others.

// apiBase is the path of the API, whatever the base path of channels.
const apiBase = "/api/v1"

// apiVersion is that of the API, as its document says it.
const apiVersion = "1.0.0"

// openAPI is the document that describes the API (OpenAPI 3.1).
//
//go:embed openapi.json
var openAPI []byte

// An operation is what a verb does on a path of the API.
type operation struct {
	verb string
	path string // below apiBase; {channel} and {id} stand for any segment
	who  authority
	kind scope
	// query names the parameters that may come.
	query []string
	// serve answers, or returns why it does not.
	serve func(s *Server, w http.ResponseWriter, c *apiCall) *Problem
}

// A scope says which channels an operation is for.
type scope int

const (
	oneChannel scope = iota // a name or "@me"
	orGlobal                // "all", too
	orWildcard              // a wildcard, too
	orBoth                  // both
	onePerson               // below "users", or "@me"
)

// operations are all of the API.
var operations = []operation{
	{"GET", "/", anybody, oneChannel, nil, (*Server).apiHome},
	{"GET", "/openapi.json", anybody, oneChannel, nil, (*Server).apiDocument},
	{"GET", "/channels", administrator, oneChannel, []string{"prefix", "limit", "page"}, (*Server).listChannels},
	{"GET", "/channels/{channel}", administrator, oneChannel, nil, (*Server).showChannel},
	{"DELETE", "/channels/{channel}", administrator, orGlobal, nil, (*Server).deleteChannel},
	{"GET", "/channels/{channel}/events", follower, orWildcard, []string{"id", "after", "before", "limit", "event", "status", "order"}, (*Server).listEvents},
	{"POST", "/channels/{channel}/events", toOne, orGlobal, []string{"id", "event", "retry", "ttl", "raw", "answers"}, (*Server).publishToOne},
	{"GET", "/channels/{channel}/events/{id}", follower, orWildcard, nil, (*Server).showEvent},
	{"PUT", "/channels/{channel}/events/{id}/read", person, onePerson, nil, (*Server).markEvent},
	{"DELETE", "/channels/{channel}/events/{id}/read", person, onePerson, nil, (*Server).markEvent},
	{"POST", "/channels/{channel}/read", person, onePerson, nil, (*Server).markEvents},
	{"PUT", "/channels/{channel}/read", person, onePerson, []string{"id"}, (*Server).markEvent},
	{"DELETE", "/channels/{channel}/read", person, onePerson, []string{"id"}, (*Server).markEvent},
	{"GET", "/channels/{channel}/unread", follower, onePerson, nil, (*Server).showUnread},
	{"GET", "/channels/{channel}/consumers", administrator, orBoth, []string{"limit", "after"}, (*Server).listConsumers},
	{"GET", "/channels/{channel}/consumers/{id}", administrator, orBoth, nil, (*Server).showConsumer},
	{"DELETE", "/channels/{channel}/consumers/{id}", administrator, orBoth, nil, (*Server).disconnectConsumer},
	{"POST", "/events", someone, oneChannel, nil, (*Server).publishToSeveral},
	{"GET", "/stats", administrator, oneChannel, nil, (*Server).showStats},
	{"GET", "/nodes", administrator, oneChannel, nil, (*Server).listNodes},
}

// An apiCall is a request to the API, and what is known of it so far.
type apiCall struct {
	*http.Request
	op      *operation
	policy  *policy
	visitor visitor
	channel string     // of the path, "" where it has none
	id      string     // of the path or the query, likewise
	query   url.Values // each parameter once, none unknown
}

// An authority refuses who may not do something.
type authority func(c *apiCall) *Problem

func anybody(*apiCall) *Problem { return nil }

func administrator(c *apiCall) *Problem { return c.policy.access.mayAdminister(c.visitor) }

func follower(c *apiCall) *Problem { return c.policy.access.mayFollow(c.visitor, c.channel) }

func toOne(c *apiCall) *Problem { return c.policy.access.mayPublish(c.visitor, c.channel) }

// someone is who came with a token, where there are any: what it is for, the body
// says.
func someone(c *apiCall) *Problem {
	if c.visitor.identity != nil {
		return nil
	}
	return c.visitor.refused("publish", "one that is granted to publish")
}

// person is who the channel is of.
func person(c *apiCall) *Problem {
	if v := c.visitor; v.identity != nil && (v.everything || v.personal() == c.channel) {
		return nil
	}
	return c.visitor.refused("mark what is read in "+c.channel, "that of the person whose channel it is")
}

// isAPI reports whether a request is for the API.
func isAPI(r *http.Request, _ *mux.RouteMatch) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, apiBase)
	return ok && (rest == "" || rest[0] == '/')
}

// api is every request to the API.
func (s *Server) api(w http.ResponseWriter, r *http.Request) {
	c, p := s.apiCall(w, r)
	if p == nil && c.op != nil {
		p = c.op.serve(s, w, c)
	}
	if p != nil { // also to who says that it wants a stream, which there is none of here
		s.stats.refuse(p)
		p.ServeHTTP(w, r)
	}
}

// apiCall returns what a request wants, when it may have it. It has no operation
// where it is answered already.
func (s *Server) apiCall(w http.ResponseWriter, r *http.Request) (*apiCall, *Problem) {
	c := &apiCall{Request: r, policy: s.policy.Load()}
	verbs := c.match()
	switch {
	case len(verbs) == 0:
		return nil, newProblem(http.StatusNotFound, "nothing is here: "+apiBase+"/openapi.json says what there is")
	case r.Method == http.MethodOptions:
		w.Header().Set("Allow", strings.Join(verbs, ", "))
		w.WriteHeader(http.StatusNoContent)
		return c, nil
	case c.op == nil:
		return nil, wrongVerb(r, strings.Join(verbs, ", "))
	}
	if strings.Contains(c.op.path, "{channel}") {
		if p := c.nameProblem(); p != nil {
			return nil, p
		}
	}
	if p := c.authorize(); p != nil {
		return nil, p
	}
	return c, c.readQuery()
}

// match finds the operation of a request, and returns the verbs that its path has.
func (c *apiCall) match() (verbs []string) {
	verb := c.Method
	if verb == http.MethodHead {
		verb = http.MethodGet
	}
	path := strings.TrimPrefix(c.URL.EscapedPath(), apiBase)
	if path == "" {
		path = "/"
	}
	segments := strings.Split(path, "/")
	for i := range operations {
		op := &operations[i]
		channel, id, ok := op.match(segments)
		if !ok {
			continue
		}
		if verbs = append(verbs, op.verb); op.verb == http.MethodGet {
			verbs = append(verbs, http.MethodHead)
		}
		if op.verb == verb {
			c.op, c.channel, c.id = op, channel, id
		}
	}
	if verbs != nil {
		verbs = append(verbs, http.MethodOptions)
	}
	return verbs
}

// match returns what stands for {channel} and {id}, if these are the escaped segments
// of a path that the operation has.
func (o *operation) match(segments []string) (channel, id string, ok bool) {
	own := strings.Split(o.path, "/")
	if len(own) != len(segments) {
		return "", "", false
	}
	for i, name := range own {
		text, err := url.PathUnescape(segments[i])
		switch {
		case err != nil:
			return "", "", false
		case name == "{channel}":
			channel = text
		case name == "{id}":
			id = text
			if id == "" {
				return "", "", false
			}
		case name != text:
			return "", "", false
		}
	}
	return channel, id, true
}

// nameProblem refuses a channel that the operation is not for.
func (c *apiCall) nameProblem() *Problem {
	name, kind := c.channel, c.op.kind
	switch err := validName(name); {
	case name == personalName:
		return nil
	case name == globalName && (kind == orGlobal || kind == orBoth):
		return nil
	case name == globalName && kind == orWildcard:
		return followAll()
	case name == globalName && kind == oneChannel:
		return newProblem(http.StatusNotFound, `"all" reaches every consumer and is no channel of its own: `+apiBase+"/stats has the numbers of all")
	case kind == onePerson && (err == nil || name == globalName || validPattern(name) == nil):
		if private(name) && err == nil {
			return nil
		}
		return marksElsewhere(name)
	case err == nil:
		return nil
	case validPattern(name) != nil:
		return newProblem(http.StatusNotFound, clip(err.Error())+"; a path of the API names one, with dots")
	case kind == orWildcard || kind == orBoth:
		return nil
	}
	return newProblem(http.StatusNotFound, quote(name)+" is a wildcard, which can only be followed and read: name the channel itself")
}

// marksElsewhere refuses read marks where there are none.
func marksElsewhere(name string) *Problem {
	return newProblem(http.StatusNotFound, "only the channel of a person, such as users.joe, has events that are read or unread, and "+quote(name)+" is none")
}

// authorize refuses who may not do what the call is for. Who may is its visitor, and
// "@me" the name that it stands for.
func (c *apiCall) authorize() (p *Problem) {
	if c.op.path == "/" || c.op.path == "/openapi.json" {
		return nil // whoever asks, and with whatever token
	}
	if c.visitor, p = c.policy.visit(c.Request, asking{}); p != nil {
		return p
	}
	if c.channel != "" {
		names, p := c.policy.access.expandPersonal(c.visitor, []string{c.channel})
		if p != nil {
			return p
		}
		c.channel = names[0]
	}
	return c.op.who(c)
}

// readQuery reads the parameters, none of which is passed over.
func (c *apiCall) readQuery() (p *Problem) {
	if c.query, p = query(c.Request); p != nil {
		return p
	}
	var unknown []string
	for name, values := range c.query {
		if !slices.Contains(c.op.query, name) {
			unknown = append(unknown, name)
		} else if len(values) > 1 {
			return badRequest(name + ": it comes twice in the query; give it once")
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	for i, name := range unknown {
		unknown[i] = quote(name) + meant(name, c.op.query)
	}
	rule := "there are none"
	if len(c.op.query) > 0 {
		rule = "there are " + strings.Join(c.op.query, ", ")
	}
	return badRequest(clip("the query has " + strings.Join(unknown, ", ") + ", which has no meaning here; " + rule))
}

// limit returns how many entries an answer may have.
func (c *apiCall) limit() (int, *Problem) {
	const most, usual = 1000, 100
	if !c.query.Has("limit") {
		return usual, nil
	}
	n, err := strconv.Atoi(c.query.Get("limit"))
	if err != nil || n < 1 || n > most {
		return 0, badRequest(fmt.Sprintf("limit: %s is no number from 1 to %d", quote(c.query.Get("limit")), most))
	}
	return n, nil
}

// oneOf returns a parameter that is one of a few words, the first where it is not
// there.
func (c *apiCall) oneOf(name string, words ...string) (string, *Problem) {
	word := c.query.Get(name)
	switch {
	case !c.query.Has(name):
		return words[0], nil
	case slices.Contains(words, word):
		return word, nil
	}
	return "", badRequest(fmt.Sprintf("%s: %s is none of %s%s", name, quote(word), strings.Join(words, ", "), meant(word, words)))
}

// jsonBody reads a body that is a JSON object, and judges anew who sends it: it may
// have come slowly.
func (s *Server) jsonBody(w http.ResponseWriter, c *apiCall) ([]byte, *Problem) {
	if media, _, err := mediaType(c.Header.Get("Content-Type")); err != nil || media != "application/json" {
		p := newProblem(http.StatusUnsupportedMediaType, "the body is no application/json: send "+exampleOf[c.op.path]+" with this Content-Type")
		return nil, p.with("Accept", "application/json")
	}
	body, p := s.readBody(w, c.Request)
	if p == nil {
		p = checkJSON(body)
	}
	if p != nil {
		return nil, p
	}
	if body = trimSpace(body); body[0] != '{' {
		return nil, badRequest("the body is " + kind(body) + "; send " + exampleOf[c.op.path])
	}
	c.policy = s.policy.Load()
	return body, c.authorize()
}

// exampleOf is a body of each path that reads one.
var exampleOf = map[string]string{
	"/channels/{channel}/read": `an object such as {"id": "…"} or {"ids": ["…", "…"]}`,
	"/events":                  `an object such as {"channels": ["news", "sport"], "data": "hello"}`,
}

// problemOf returns an error of one of the server's methods as the refusal that it
// is.
func (s *Server) problemOf(err error) *Problem {
	if err == nil {
		return nil
	}
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	return publishError(err, s.settings.Retry)
}

// answerTagged answers with a document, or with 304 to who has it already (RFC 9110,
// 13.1.2).
func answerTagged(w http.ResponseWriter, c *apiCall, text []byte) {
	h := w.Header()
	sum := sha256.New()
	sum.Write(text)
	sum.Write([]byte(h.Get("Link")))
	tag := `"` + hex.EncodeToString(sum.Sum(nil)[:16]) + `"`
	h.Set("ETag", tag)
	h.Set("Cache-Control", "private, no-cache")
	if hasTag(c.Header.Values("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(http.StatusOK)
	w.Write(text)
}

// hasTag reports whether a list of entity tags, as of If-None-Match, has one.
func hasTag(lists []string, tag string) bool {
	for _, list := range lists {
		for one := range strings.SplitSeq(list, ",") {
			if one = strings.TrimSpace(one); one == "*" || strings.TrimPrefix(one, "W/") == tag {
				return true
			}
		}
	}
	return false
}

// apiHome says where everything else is.
func (s *Server) apiHome(w http.ResponseWriter, _ *apiCall) *Problem {
	answer(w, http.StatusOK, struct {
		Version string `json:"version"`
		OpenAPI string `json:"openapi"`
	}{apiVersion, apiBase + "/openapi.json"})
	return nil
}

// apiDocument is the document that describes the API.
func (s *Server) apiDocument(w http.ResponseWriter, c *apiCall) *Problem {
	answerTagged(w, c, bytes.TrimSpace(openAPI))
	return nil
}
