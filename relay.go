package eventsource

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Relays: streams whose events come from elsewhere than the logs.

// A Relay serves streams of events that it has from elsewhere than the logs. The server
// looks after the rest: who may have them, how many, heartbeats' pace, and how a stream
// begins and ends. Its methods are called for each request, on a goroutine of its own. A
// request that a page of another site has its browser send has no cookies, unless CORS
// lists the page's origin by name with credentials.
type Relay interface {
	// Admit looks at a request before anything else, and returns the channel that its
	// sender must be allowed to follow; "" asks for an administrator. An error, which
	// is a *Problem, refuses the request.
	Admit(r *http.Request) (channel string, err error)
	// Relay sends events until ctx ends or Send fails. What it returns before the
	// stream has begun is the answer, if it is a *Problem; one that will pass by itself
	// (429, 503) has consumers come back after its RetryAfter, or else Settings.Retry.
	// Afterwards it ends the stream: an *EndError is told to the consumer.
	Relay(ctx context.Context, r *http.Request, out *Stream) error
}

// A Stream is the response that a Relay sends events on. It belongs to one goroutine.
type Stream struct {
	server  *Server
	header  http.Header
	outlet  *responseOutlet
	beat    *time.Timer
	counted bool // in Stats.Sent, as what is sent to consumers is
	begun   bool
}

// Header is what the response will have besides the server's own headers of a stream,
// which it wins over, but for those that say how the response is framed. It counts until
// Begin.
func (o *Stream) Header() http.Header { return o.header }

// Limits returns the limits in force: no event's data may be longer than Body.
func (o *Stream) Limits() Limits { return *o.server.limits() }

// Begin sends the head of the response, the time after which to come back, and a
// comment. Its errors are those of Send.
func (o *Stream) Begin() error {
	if o.begun {
		return nil
	}
	o.begun = true
	return o.write(fmt.Appendf(nil, "retry: %d\n:\n\n", o.server.settings.Retry.Milliseconds()))
}

// Send writes an event, and returns when the system has taken all of it. An event
// without an ID has none. A *Problem is about the event, and nothing has been written;
// after any other error the other side has gone, or read nothing for Settings.Timeout,
// which is an os.ErrDeadlineExceeded.
func (o *Stream) Send(e Event) error {
	if p := e.validate(); p != nil {
		return p
	}
	if err := o.Begin(); err != nil {
		return err
	}
	text := newFrame(&e).text()
	if e.ID == "" {
		text = text[len(idField)+len(idHole)+1:]
	}
	return o.write(text)
}

// Idle returns what a value comes from when nothing has been sent for a heartbeat: then
// Beat is due. It never comes where there are no heartbeats.
func (o *Stream) Idle() <-chan time.Time {
	if o.beat == nil {
		return nil
	}
	return o.beat.C
}

// Beat sends a heartbeat. Its errors are those of Send.
func (o *Stream) Beat() error { return o.write([]byte(":\n\n")) }

func (o *Stream) write(b []byte) error {
	if err := o.outlet.write(b, o.server.settings.Timeout); err != nil {
		return err
	}
	if o.counted {
		o.server.stats.sent.Add(uint64(len(b)))
	}
	if o.beat != nil {
		o.beat.Reset(o.server.settings.Heartbeat)
	}
	return nil
}

// A relayed is one stream of a Relay. It never changes.
type relayed struct {
	policy   *policy // that it was judged by
	identity *identity
	channel  string // "": it is an administrator's
	open     bool   // nobody is asked for a token
	address  netip.Addr
	end      context.CancelCauseFunc
}

// HandleRelay serves a relay's streams at a path, such as "/queue", which is no channel's
// from then on. Call it before Router, Handler and Serve.
func (s *Server) HandleRelay(path string, relay Relay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages = append(s.pages, page{path, s.relayHandler(relay, false), true})
	taken := map[string]bool{path: true}
	if before := s.taken.Load(); before != nil {
		maps.Copy(taken, *before)
	}
	s.taken.Store(&taken)
}

// isTaken reports whether a path is a relay's.
func (s *Server) isTaken(path string) bool {
	taken := s.taken.Load()
	return taken != nil && (*taken)[path]
}

// RelayHandler serves a relay's streams to whoever reaches it, without a token and beyond
// the limits of consumers: for an address that only operators reach.
func (s *Server) RelayHandler(relay Relay) http.Handler { return s.relayHandler(relay, true) }

func (s *Server) relayHandler(relay Relay, open bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		switch r.Method {
		case http.MethodGet:
			if p := s.relay(w, r, relay, open); p != nil {
				s.refuse(w, r, p)
			}
		case http.MethodOptions:
			w.Header().Set("Allow", relayVerbs)
			w.WriteHeader(http.StatusNoContent)
		default:
			s.refuse(w, r, wrongVerb(r, relayVerbs))
		}
	})
}

const relayVerbs = "GET, OPTIONS"

// relay serves one stream until one side ends it.
func (s *Server) relay(w http.ResponseWriter, r *http.Request, relay Relay, open bool) *Problem {
	policy := s.policy.Load()
	seen := policy.cross.withoutCookies(r)
	channel, err := relay.Admit(seen)
	if err != nil {
		return s.relayProblem(err)
	}
	one := &relayed{policy: policy, channel: channel, open: open}
	undo := func() {}
	if !open {
		v, p := policy.visit(r, asking{subscribing: true})
		if p == nil {
			p = policy.access.mayHave(v, channel)
		}
		if p != nil {
			return p
		}
		if v.known() {
			one.identity = v.identity
		}
		if undo, p = policy.take(policy.connects, v, r, 1); p != nil {
			return p
		}
	}
	if !open && policy.limits.ConsumersPerAddress > 0 {
		one.address = policy.address(r)
	}
	ctx, end := context.WithCancelCause(r.Context())
	defer end(nil)
	one.end = end
	if id := one.identity; id != nil && !id.expires.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, id.expires, &EndError{endExpired})
		defer cancel()
	}
	if p := s.joinRelay(one); p != nil {
		undo()
		return p
	}
	defer s.leaveRelay(one)
	return s.relayTo(ctx, w, seen, relay, channel != "")
}

// mayHave refuses a visitor a channel that it may not follow, "" being what only
// administrators may.
func (a *access) mayHave(v visitor, channel string) *Problem {
	if channel == "" {
		return a.mayAdminister(v)
	}
	return a.mayFollow(v, channel)
}

// relayTo has a relay serve a response. What an administrator is sent is not counted:
// else who watches an idle server would see traffic.
func (s *Server) relayTo(ctx context.Context, w http.ResponseWriter, r *http.Request, relay Relay, counted bool) *Problem {
	rc := http.NewResponseController(w)
	if p := s.dropBody(w, r, rc); p != nil {
		return p
	}
	if err := rc.SetWriteDeadline(time.Now().Add(s.settings.Timeout)); err != nil {
		return newProblem(http.StatusInternalServerError,
			"this server's handlers can't be given a write deadline: a middleware must keep Unwrap")
	}
	if g, ok := r.Context().Value(gateKey{}).(*gatedConn); ok {
		s.limitSilence(g.TCPConn)
	}
	out := &Stream{server: s, header: http.Header{}, counted: counted}
	out.outlet = &responseOutlet{w: w, rc: rc, ctx: ctx, begin: sync.OnceFunc(func() {
		h := w.Header()
		s.streamHead(h)
		maps.Copy(h, out.header)
		for _, framing := range []string{"Content-Length", "Transfer-Encoding", "Trailer"} {
			h.Del(framing)
		}
		if r.ProtoMajor == 1 {
			h.Set("Connection", "keep-alive")
			if r.ProtoMinor == 0 {
				h.Set("Connection", "close")
			}
		}
		w.WriteHeader(http.StatusOK)
	})}
	if h := s.settings.Heartbeat; h > 0 {
		out.beat = time.NewTimer(h)
		defer out.beat.Stop()
	}
	err := relay.Relay(ctx, r, out)
	defer rc.SetWriteDeadline(time.Time{})
	ended, isEnd := errors.AsType[*EndError](context.Cause(ctx))
	if !isEnd {
		ended, isEnd = errors.AsType[*EndError](err)
	}
	switch {
	case !out.begun && isEnd && r.Context().Err() == nil:
		return s.endedEarly(ended.Reason)
	case !out.begun && err != nil && r.Context().Err() == nil:
		return s.relayProblem(err)
	case out.begun && isEnd:
		out.outlet.write([]byte(endText(ended.Reason, s.returnAfter(ended.Reason))), min(s.settings.Timeout, time.Second))
	}
	return nil
}

// endedEarly refuses a stream that was ended before it began.
func (s *Server) endedEarly(reason string) *Problem {
	switch reason {
	case endDraining:
		return drainingProblem(s.settings.Retry)
	case endExpired, endRevoked:
		return unknownToken("the token came to its end before the stream began: send a fresh one")
	}
	return newProblem(http.StatusServiceUnavailable, "the stream was ended before it began: come back later").after(s.settings.Retry)
}

// relayProblem returns the refusal that an error is.
func (s *Server) relayProblem(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		if p.passing() && p.RetryAfter == 0 {
			again := *p
			return again.after(s.settings.Retry)
		}
		return p
	}
	return newProblem(http.StatusInternalServerError, "the stream can't begin: "+clip(err.Error()))
}

// joinRelay counts a stream, or refuses it.
func (s *Server) joinRelay(one *relayed) *Problem {
	if p := s.registry.hold(one, s.settings.Retry); p != nil {
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relays == nil {
		s.relays = map[*relayed]struct{}{}
	}
	s.relays[one] = struct{}{}
	if s.draining.Load() {
		one.end(&EndError{endDraining})
	}
	if policy := s.policy.Load(); policy != one.policy && !policy.allowsRelay(one) {
		one.end(&EndError{endRevoked})
	}
	return nil
}

func (s *Server) leaveRelay(one *relayed) {
	s.registry.release(one.address)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.relays, one)
}

// endRelays ends the streams of relays that over says so of.
func (s *Server) endRelays(reason string, over func(*relayed) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for one := range s.relays {
		if over(one) {
			one.end(&EndError{reason})
		}
	}
}

// allowsRelay reports whether a stream of a relay may go on.
func (p *policy) allowsRelay(one *relayed) bool {
	if one.open {
		return true
	}
	id, ok := p.access.current(one.identity)
	if !ok {
		return false
	}
	if !p.access.asks {
		id = everybody
	}
	return p.access.mayHave(visitor{identity: id}, one.channel) == nil
}

// hold counts a stream that the registry does not serve, among the consumers that are
// limited. Operators are let in when those are too many: then they want to look.
func (r *registry) hold(one *relayed, retry time.Duration) *Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !one.open {
		if p := r.fullLocked(&subscription{address: one.address}, retry); p != nil {
			return p
		}
	}
	r.relayed++
	if one.address.IsValid() {
		r.addresses[one.address]++
	}
	return nil
}

// streams returns how many streams the registry does not serve.
func (r *registry) streams() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.relayed
}

// release counts the stream no longer.
func (r *registry) release(address netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.relayed--
	r.forgetAddressLocked(address)
}
