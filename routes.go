package eventsource

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
)

// channelVerbs are what a channel answers to.
const channelVerbs = "GET, POST, DELETE, HEAD, OPTIONS"

// availableBytes bounds X-Available-Channels.
const availableBytes = 4 << 10

// maxKey is the longest Idempotency-Key in bytes.
const maxKey = 255

// Router returns a new router with every page of the server: the verbs on
// channels, the short page at /, /health, the sources' paths, and what Handle
// added. Pages below other reserved first tokens can be added to it.
func (s *Server) Router() *mux.Router {
	router := mux.NewRouter().SkipClean(true)
	router.Use(s.wrap)
	router.NotFoundHandler = s.wrap(http.HandlerFunc(s.notFound))
	router.MethodNotAllowedHandler = s.wrap(http.HandlerFunc(s.notAllowed))

	if !s.isTaken("/") {
		router.Path("/").Methods(http.MethodGet, http.MethodHead).HandlerFunc(s.home)
	}
	router.Path("/health").Methods(http.MethodGet, http.MethodHead).HandlerFunc(s.health)
	router.Path("/health/live").Methods(http.MethodGet, http.MethodHead).HandlerFunc(s.live)
	router.Path("/health/ready").Methods(http.MethodGet, http.MethodHead).HandlerFunc(s.health)
	for _, f := range s.feeds {
		if e, ok := f.source.(Endpoint); ok {
			router.Path(e.Path()).Methods(http.MethodPost).Handler(s.endpoint(e))
		}
	}
	router.MatcherFunc(isAPI).HandlerFunc(s.api)
	s.mu.Lock()
	for _, p := range s.pages {
		h := p.handler
		if !p.asks {
			h = s.administrators(h)
		}
		router.Path(p.pattern).Handler(h)
	}
	s.mu.Unlock()

	channels := router.MatcherFunc(s.isChannel).Subrouter()
	channels.Methods(http.MethodGet).HandlerFunc(s.subscribe)
	channels.Methods(http.MethodPost).HandlerFunc(s.publishHandler)
	channels.Methods(http.MethodDelete).HandlerFunc(s.remove)
	channels.Methods(http.MethodHead).HandlerFunc(s.inform)
	channels.Methods(http.MethodOptions).HandlerFunc(s.options)
	return router
}

// Handler returns what Serve serves: the Router's pages.
func (s *Server) Handler() http.Handler {
	router := s.Router()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		passGate(r.Context())
		router.ServeHTTP(w, r)
	})
}

// wrap does what every answer needs.
func (s *Server) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.ContentLength != 0 {
			// Whoever reads the body, net/http too before it answers.
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(10 * s.settings.Timeout))
		}
		if s.invalid != nil {
			s.refuse(w, r, newProblem(http.StatusInternalServerError, "this server can't work with its settings: its program must see what Run says of them"))
			return
		}
		s.policy.Load().cross.serve(w, r, h)
	})
}

// path returns what a request asks for below the base path, without the leading
// slash; false where it lies elsewhere.
func (s *Server) path(r *http.Request) (string, bool) {
	rest, ok := strings.CutPrefix(r.URL.Path, s.settings.BasePath)
	if !ok {
		return "", false
	}
	return strings.CutPrefix(rest, "/")
}

// isChannel reports whether a request is for channels: what lies below the base
// path and does not begin with a token that is the server's own.
func (s *Server) isChannel(r *http.Request, _ *mux.RouteMatch) bool {
	path, ok := s.path(r)
	if !ok || path == "" || isAPI(r, nil) || s.isTaken(r.URL.Path) {
		return false
	}
	first, _, _ := strings.Cut(path, ",")
	return first == globalName || first == personalName || !reserved(strings.ReplaceAll(first, "/", "."))
}

// isEndpoint reports whether a source is fed by requests to this path.
func (s *Server) isEndpoint(r *http.Request) bool {
	return slices.ContainsFunc(s.feeds, func(f *Feed) bool {
		e, ok := f.source.(Endpoint)
		return ok && e.Path() == r.URL.Path
	})
}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	detail := nameRule + "; " + reservedRule
	if base := s.settings.BasePath; base != "" {
		detail += "; channels are below " + base
	}
	s.refuse(w, r, newProblem(http.StatusNotFound, "nothing is here: "+detail))
}

func (s *Server) notAllowed(w http.ResponseWriter, r *http.Request) {
	allow := "GET, HEAD"
	if s.isChannel(r, nil) {
		allow = channelVerbs
	} else if s.isEndpoint(r) {
		allow = http.MethodPost
	}
	s.refuse(w, r, wrongVerb(r, allow))
}

func wrongVerb(r *http.Request, allow string) *Problem {
	return newProblem(http.StatusMethodNotAllowed, "the method "+clip(r.Method)+" means nothing here: use "+allow).with("Allow", allow)
}

// refuse answers a request with a problem. One that will pass is told to an
// EventSource by a stream that ends at once, since a browser gives up for ever
// on any status but 200.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, p *Problem) {
	s.stats.refuse(p)
	if p.passing() && r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		s.streamHead(w.Header())
		w.WriteHeader(http.StatusOK)
		io.WriteString(w, refusalText(p))
		return
	}
	p.ServeHTTP(w, r)
}

// refusalText is the stream of a refusal that will pass.
func refusalText(p *Problem) string {
	retry := jitter(max(p.RetryAfter, time.Second), 0)
	return fmt.Sprintf("retry: %d\n: %s\n\n", retry.Milliseconds(), p.Detail)
}

// names returns the channels that a request is for.
func (s *Server) names(r *http.Request, wild bool) ([]string, *Problem) {
	path, _ := s.path(r)
	return parseNames(path, wild, s.limits().ChannelsPerConsumer)
}

// administrators lets only administrators reach a page, once a token is set.
func (s *Server) administrators(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		policy := s.policy.Load()
		v, p := policy.visit(r, asking{})
		if p == nil {
			p = policy.access.mayAdminister(v)
		}
		if p != nil {
			s.refuse(w, r, p)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// subscribe is GET on channels: the stream.
func (s *Server) subscribe(w http.ResponseWriter, r *http.Request) {
	sub, p := s.subscription(r, false)
	if p == nil && s.draining.Load() {
		p = drainingProblem(s.settings.Retry)
	}
	if p == nil {
		p = s.registry.full(&sub, s.settings.Retry)
	}
	if p == nil {
		p = s.recall(r.Context(), &sub)
	}
	if p == nil {
		p = s.open(w, r, sub)
	}
	if sub.recalled || p != nil {
		s.registry.tidy(sub.names) // of those that were filled for nobody
	}
	if p != nil {
		s.refuse(w, r, p)
	}
}

// subscription reads what a request wants to follow, and checks that it may. With
// atOnce it waits for nothing, and refuses what it would have to wait for.
func (s *Server) subscription(r *http.Request, atOnce bool) (subscription, *Problem) {
	policy := s.policy.Load()
	sub := subscription{policy: policy}
	names, p := s.names(r, true)
	if p != nil {
		return sub, p
	}
	if slices.Contains(names, globalName) {
		return sub, followAll()
	}
	v, p := policy.visit(r, asking{subscribing: true, atOnce: atOnce})
	if p == nil {
		names, p = policy.access.expandPersonal(v, names)
	}
	if p != nil {
		return sub, p
	}
	for _, name := range names {
		if p := policy.access.mayFollow(v, name); p != nil {
			return sub, p
		}
	}
	sub.names = names
	if v.known() {
		sub.identity = v.identity
		sub.hides = v.hides() && slices.Contains(names, "*")
	}
	if policy.limits.ConsumersPerAddress > 0 {
		sub.address = policy.address(r)
	}
	q, p := query(r)
	if p == nil {
		p = sub.readQuery(q)
	}
	if p != nil {
		return sub, p
	}
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		sub.id = id
	}
	if len(sub.id) > maxID {
		return sub, longID()
	}
	sub.undo, p = policy.take(policy.connects, v, r, 1)
	return sub, p
}

// query returns the parameters of a request, none of which is passed over.
func query(r *http.Request) (url.Values, *Problem) {
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query can't be read: separate parameters by an ampersand and escape what is not a letter or digit by %")
	}
	return q, nil
}

// readQuery reads what the query says of a stream.
func (sub *subscription) readQuery(q url.Values) *Problem {
	for _, key := range []string{"last_event_id", "lastEventId", "lastEventID"} {
		if sub.id == "" {
			sub.id = q.Get(key)
		}
	}
	if h := q.Get("history"); h != "" {
		n, err := strconv.ParseUint(h, 10, 31)
		if err != nil {
			return badRequest("history=" + quote(h) + " is no number of events: give one such as history=10")
		}
		sub.history = int(n)
	}
	if t := q.Get("event"); t != "" {
		if sub.filter = splitList(t); len(sub.filter) > 100 {
			return badRequest("event names more than 100 types: give fewer")
		}
	}
	switch e := q.Get("envelope"); e {
	case "", "0":
	case "1":
		sub.envelope = true
	default:
		return badRequest("envelope=" + quote(e) + " is neither 0 nor 1")
	}
	return nil
}

// encode returns the answer to a publish of one event, or of a batch.
func (r Receipt) encode(batch bool) []byte {
	b := make([]byte, 0, 128)
	if !batch {
		return append(r.appendDocument(b, r.IDs[0]), '\n')
	}
	b = append(b, '[')
	for i, id := range r.IDs {
		if i > 0 {
			b = append(b, ',')
		}
		b = r.appendDocument(b, id)
	}
	return append(b, "]\n"...)
}

// appendDocument appends what is answered for one event to b.
func (r Receipt) appendDocument(b []byte, id string) []byte {
	b = appendText(append(b, `{"id":`...), id)
	b = append(b, `,"channels":[`...)
	for i, name := range r.Channels {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, name)
	}
	b = strconv.AppendInt(append(b, `],"consumers":`...), int64(r.Consumers), 10)
	return append(b, '}')
}

// appendText appends a string of JSON to b.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || strings.IndexByte(`"\<>&`, c) >= 0 {
			text, _ := json.Marshal(s) // a string can't fail
			return append(b, text...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// publishHandler is POST on channels.
func (s *Server) publishHandler(w http.ResponseWriter, r *http.Request) {
	by, p := s.mayPublish(r, false)
	if p != nil {
		s.refuse(w, r, p)
		return
	}
	s.publishAs(w, r, by)
}

// publishAs publishes what a request carries.
func (s *Server) publishAs(w http.ResponseWriter, r *http.Request, by publisher) {
	if hasLines(r) {
		s.publishLines(w, r, by)
		return
	}
	receipt, batch, p := s.publishBody(w, r, by)
	if p != nil {
		s.refuse(w, r, p)
		return
	}
	answerText(w, http.StatusCreated, receipt.encode(batch))
}

// hasLines reports whether a request's body is lines of JSON.
func hasLines(r *http.Request) bool {
	media, _, _ := mediaType(r.Header.Get("Content-Type"))
	return media == "application/x-ndjson"
}

// A publisher is who publishes by a request.
type publisher struct {
	visitor
	names  []string // the channels that it publishes to
	policy *policy  // that it was judged by
}

// mayPublish returns who sends a POST, when it may. With atOnce it waits for
// nothing, and refuses what it would have to wait for.
func (s *Server) mayPublish(r *http.Request, atOnce bool) (publisher, *Problem) {
	names, p := s.names(r, false)
	if p != nil {
		return publisher{}, p
	}
	by := publisher{policy: s.policy.Load(), names: names}
	if by.visitor, p = by.policy.visit(r, asking{atOnce: atOnce}); p != nil {
		return by, p
	}
	if by.names, p = by.policy.access.expandPersonal(by.visitor, by.names); p != nil {
		return by, p
	}
	return by, by.allowed()
}

// allowed refuses a publisher a channel that it may not publish to.
func (by *publisher) allowed() *Problem {
	for _, name := range by.names {
		if p := by.policy.access.mayPublish(by.visitor, name); p != nil {
			return p
		}
	}
	return nil
}

// mayStill refuses who was allowed to publish and is no longer: its token has
// ended, or a reload has taken it away.
func (s *Server) mayStill(by *publisher) *Problem {
	if by.known() && by.expired(time.Now()) {
		return expiredToken(by.expires)
	}
	policy := s.policy.Load()
	if policy == by.policy {
		return nil
	}
	id, ok := policy.access.current(by.identity)
	if !ok {
		return revokedToken()
	}
	if !policy.access.asks {
		id = everybody
	} else if id == everybody {
		id = nil
	}
	by.identity, by.policy = id, policy
	return by.allowed()
}

// publishBody publishes a whole body.
func (s *Server) publishBody(w http.ResponseWriter, r *http.Request, by publisher) (Receipt, bool, *Problem) {
	if !s.flight.enter() {
		return Receipt{}, false, drainingProblem(s.settings.Retry)
	}
	defer s.flight.leave()
	body, p := s.readBody(w, r)
	if p == nil {
		p = s.mayStill(&by) // it may have come slowly
	}
	if p != nil {
		return Receipt{}, false, p
	}
	return s.publishRead(r, by, body, s.settings.Timeout)
}

// publishRead publishes a body that was read, for who is counted as a publish
// under way already. It waits so long for the writers to have room.
func (s *Server) publishRead(r *http.Request, by publisher, body []byte, wait time.Duration) (Receipt, bool, *Problem) {
	key, p := idempotencyKey(r)
	if p != nil {
		return Receipt{}, false, p
	}
	q, p := query(r)
	if p != nil {
		return Receipt{}, false, p
	}
	contentType := r.Header.Get("Content-Type")
	events, batch, p := decodeBody(contentType, q, body)
	if p != nil {
		return Receipt{}, false, p
	}
	rec := &Record{Channels: by.names, Events: events}
	if key != "" {
		rec.Key = keyOf(by.visitor, by.names, key)
		rec.Body = bodyOf([]byte(contentType), []byte(r.URL.RawQuery), body)
	}
	receipt, p := s.commitFor(r, by, rec, wait)
	return receipt, batch, p
}

// commitFor is commit for a publisher, whose rate it counts for.
func (s *Server) commitFor(r *http.Request, by publisher, rec *Record, wait time.Duration) (Receipt, *Problem) {
	undo, p := by.policy.take(by.policy.publishes, by.visitor, r, len(rec.Events))
	if p != nil {
		return Receipt{}, p
	}
	receipt, p := s.commit(r.Context(), rec, wait)
	if p != nil {
		undo()
	}
	return receipt, p
}

// idempotencyKey returns the request's key, "" where it has none.
func idempotencyKey(r *http.Request) (string, *Problem) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	if key := values[0]; len(values) == 1 && key != "" && len(key) <= maxKey {
		return key, nil
	}
	return "", badRequest(fmt.Sprintf("one Idempotency-Key of 1 to %d bytes may come with a publish", maxKey))
}

// readBody reads a body within its limit, and within the time that wrap gives it.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) ([]byte, *Problem) {
	limit := s.limits().Body
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close")
		return nil, tooLarge(limit)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		http.NewResponseController(w).SetReadDeadline(time.Time{})
		return body, nil
	}
	var long *http.MaxBytesError
	if errors.As(err, &long) {
		return nil, tooLarge(limit)
	}
	w.Header().Set("Connection", "close")
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, badRequest("the body ended before its length: send it whole")
	}
	return nil, newProblem(http.StatusRequestTimeout, "the body did not come in time: send it faster")
}

// answer writes a JSON document.
func answer(w http.ResponseWriter, status int, document any) {
	answerText(w, status, encodeAnswer(document))
}

// encodeAnswer returns a JSON document as it is answered.
func encodeAnswer(document any) []byte {
	b, err := json.Marshal(document)
	if err != nil {
		panic("eventsource: an answer can't fail to encode: " + err.Error())
	}
	return append(b, '\n')
}

// answerHead sets the headers of a JSON document.
func answerHead(h http.Header) {
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
}

// answerText writes the text of a JSON document.
func answerText(w http.ResponseWriter, status int, text []byte) {
	h := w.Header()
	answerHead(h)
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	w.Write(text)
}

// administered returns the channels of a DELETE or HEAD, and the administrator who
// sends it.
func (s *Server) administered(r *http.Request) ([]string, visitor, *Problem) {
	policy := s.policy.Load()
	names, p := s.names(r, false)
	if p != nil {
		return nil, visitor{}, p
	}
	v, p := policy.visit(r, asking{})
	if p == nil {
		names, p = policy.access.expandPersonal(v, names)
	}
	if p == nil {
		p = policy.access.mayAdminister(v)
	}
	return names, v, p
}

// remove is DELETE on channels.
func (s *Server) remove(w http.ResponseWriter, r *http.Request) {
	names, v, p := s.administered(r)
	if p != nil {
		s.refuse(w, r, p)
		return
	}
	removed, p := s.purgeFor(r, v, names)
	if p != nil {
		s.refuse(w, r, p)
		return
	}
	answer(w, http.StatusOK, removed)
}

// A removal says what a DELETE did.
type removal struct {
	Channels     []string `json:"channels"`
	Disconnected int      `json:"disconnected"`
}

// purgeFor is purge for an administrator.
func (s *Server) purgeFor(r *http.Request, v visitor, names []string) (removal, *Problem) {
	rec, p := s.purge(r.Context(), names)
	if p != nil {
		return removal{}, p
	}
	if v.hides() && slices.Contains(names, globalName) { // those that it named, it knows
		rec.Purged = slices.DeleteFunc(rec.Purged, private)
	}
	return removal{rec.Purged, rec.disconnected}, nil
}

// inform is HEAD on channels.
func (s *Server) inform(w http.ResponseWriter, r *http.Request) {
	names, v, p := s.administered(r)
	if p != nil {
		s.refuse(w, r, p)
		return
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if !slices.Contains(names, globalName) {
		exist, err := s.exist(r.Context(), names)
		if err != nil {
			s.refuse(w, r, readError(err, s.settings.Retry))
			return
		}
		h.Set("X-Consumer-Count", strconv.Itoa(s.registry.count(names...)))
		h.Set("X-Channel-Exists", strconv.FormatBool(exist))
		w.WriteHeader(http.StatusOK)
		return
	}
	channels, err := s.ChannelsAfter(r.Context(), "", "", math.MaxInt)
	if err != nil {
		s.refuse(w, r, readError(err, s.settings.Retry))
		return
	}
	if v.hides() {
		channels = slices.DeleteFunc(channels, private)
	}
	h.Set("X-Consumer-Count", strconv.Itoa(s.registry.connected()))
	h.Set("X-Channel-Count", strconv.Itoa(len(channels)))
	list, cut := available(channels)
	h.Set("X-Available-Channels", list)
	if cut {
		h.Set("X-Available-Channels-Truncated", "true")
	}
	w.WriteHeader(http.StatusOK)
}

// available lists channels in brackets, as many as fit.
func available(channels []string) (list string, cut bool) {
	n := len("[]")
	for i, name := range channels {
		if n += len(name) + 1; n > availableBytes {
			return "[" + strings.Join(channels[:i], ",") + "]", true
		}
	}
	return "[" + strings.Join(channels, ",") + "]", false
}

// options is OPTIONS on channels, where it is no preflight of CORS.
func (s *Server) options(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Allow", channelVerbs)
	w.WriteHeader(http.StatusNoContent)
}

// home is a short page that says what this is.
func (s *Server) home(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	base, scheme := s.settings.BasePath, "http"
	if r.TLS != nil {
		scheme = "https"
	}
	fmt.Fprintf(w, `EventSource: publish with curl, follow with a browser.

Follow the channel "updates":
  curl -N %[3]s://%[1]s%[2]s/updates

Publish to it:
  curl -d "Hello" -H "Content-Type: text/plain" %[3]s://%[1]s%[2]s/updates

State: %[3]s://%[1]s/health
`, safeHost(r.Host), base, scheme)
}

// safeHost returns the host of a request as far as it is one.
func safeHost(host string) string {
	if host == "" || strings.ContainsFunc(host, func(c rune) bool {
		return !(c == '.' || c == '-' || c == ':' || c == '[' || c == ']' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	}) {
		return "localhost:8080"
	}
	return host
}

// health is the state of the server: 503 while it can't take events.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	h := s.Health()
	if h.Reason != "" && !s.administers(r) {
		h.Reason = ""
	}
	status := http.StatusOK
	if !h.Ready {
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	}
	answer(w, status, h)
}

// administers reports whether an administrator sends a request.
func (s *Server) administers(r *http.Request) bool {
	policy := s.policy.Load()
	v, p := policy.visit(r, asking{})
	return p == nil && policy.access.mayAdminister(v) == nil
}

// live says that the process answers.
func (s *Server) live(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusOK, map[string]bool{"live": true})
}

// endpoint serves a source that is fed by requests.
func (s *Server) endpoint(e Endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		policy := s.policy.Load()
		v, p := visitor{}, (*Problem)(nil)
		if e.Channel() != "" {
			if v, p = policy.visit(r, asking{}); p == nil {
				p = policy.access.mayPublish(v, e.Channel())
			}
		} else {
			p = policy.cross.mayWrite(r, v)
		}
		if p == nil {
			_, p = policy.take(policy.publishes, v, r, 1)
		}
		if p == nil && r.ContentLength > s.limits().Body {
			w.Header().Set("Connection", "close")
			p = tooLarge(s.limits().Body)
		}
		if p != nil {
			s.refuse(w, r, p)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, s.limits().Body)
		e.ServeHTTP(w, r)
	})
}
