// Package eventsource is a server of Server-Sent Events (WHATWG HTML 9.2): it
// publishes with one POST, and is followed with the browser's own EventSource.
//
// It can be embedded, as a whole or by its Router, and runs as the program
// cmd/eventsource.
//
// What always holds:
//
//   - An event is encoded once and shared by all its consumers.
//   - A publisher never waits for a consumer.
//   - A consumer gets what it follows in one order, live and replayed, on any
//     number of channels.
//   - A consumer that comes back with its last id gets every event after it
//     exactly once, or is told of a gap first. This is so for ids that a
//     publisher does not use twice.
//   - Everything that is kept has a limit.
//
// With the backend in memory nothing survives the process.
//
// Lock order: Server.flight.mu, memory.mu, registry.mu, channel.mu. No call
// leaves the package under one of them.
package eventsource

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
)

// EventSource is the classic interface. New returns one, with a *Server behind
// it. All methods are safe for concurrent use.
type EventSource interface {
	// Router returns a router with the server's pages, for a program that
	// serves HTTP itself.
	Router() *mux.Router
	// SendMessage publishes the JSON event, or array of events, that it reads to
	// a channel, "all" being every consumer. What can't be published is logged.
	SendMessage(message io.Reader, channel string)
	// ChannelExists reports whether a consumer follows the channel by name, or
	// an event of it is kept.
	ChannelExists(channel string) bool
	// ConsumerCount returns how many consumers follow the channel by name.
	ConsumerCount(channel string) int
	// ConsumerCountAll returns how many consumers are connected.
	ConsumerCountAll() int
	// Channels returns the channels that exist, sorted.
	Channels() []string
	// Close disconnects who follows the channel by name and drops its events.
	Close(channel string)
	// CloseAll does so with every channel.
	CloseAll()
	// Run serves until Stop. It ends the process with status 1 when it can't
	// listen.
	Run()
	// Stop shuts the server down and lets publishes under way complete.
	Stop()
}

// A Server is one node. All its methods are safe for concurrent use.
type Server struct {
	// Set when made.
	settings Settings // effective
	node     string   // its name
	invalid  error    // what New could not refuse
	log      *slog.Logger
	stats    *stats
	registry *registry
	headers  http.Header // of streams, as configured
	backend  Backend
	shelf    shelf // what pages are read from
	feeds    []*Feed
	started  time.Time
	stop     context.CancelFunc // ends the sources

	policy   atomic.Pointer[policy]
	taken    atomic.Pointer[map[string]bool] // paths of relays
	draining atomic.Bool
	away     atomic.Pointer[away]
	replays  atomic.Int64  // consumers that are behind the logs
	recalls  chan struct{} // held by each page on its way to a consumer that is behind the logs
	turn     atomic.Uint64 // whose turn it is to get a consumer
	flight   flight
	closing  sync.Once
	closed   chan struct{} // when shut down
	closeErr error

	reactorsOnce sync.Once
	writers      []*reactorWriter

	reloading sync.Mutex // held by Reload

	mu         sync.Mutex
	pages      []page
	servers    []*http.Server
	relays     map[*relayed]struct{}
	interrupts map[*func()]struct{} // end what waits for a publisher's next line
}

var _ EventSource = (*Server)(nil)

// A page is a handler below a reserved first token, or a relay's.
type page struct {
	pattern string
	handler http.Handler
	asks    bool // the handler asks for a token itself, or is for everybody
}

// New returns a server with settings, nil being the defaults. What is wrong with
// them, Run says.
func New(settings *Settings) EventSource {
	s, err := Open(settings)
	if err != nil {
		s, _ = Open(nil)
		s.invalid = err
	}
	return s
}

// Open returns a server with settings, nil being the defaults, or every reason
// why it can't. The server takes events and serves its Router from now on; end
// it with Shutdown.
func Open(settings *Settings) (*Server, error) {
	if err := settings.Validate(); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	s := &Server{settings: settings.effective(), stats: newStats(), started: time.Now(), closed: make(chan struct{}), recalls: make(chan struct{}, recalls)}
	s.node = nodeName()
	s.log = s.settings.Logger
	s.headers = s.settings.streamHeaders()
	s.policy.Store(newPolicy(&s.settings, s.stats, nil))
	s.registry = newRegistry(&s.settings, s.stats)
	s.registry.policy = s.policy.Load()
	s.registry.moved = s.backendMoved
	s.away.Store(&away{})
	s.backend = s.settings.Backend
	if s.backend == nil {
		s.backend = newMemory()
	}
	if store, ok := s.backend.(Store); ok {
		s.shelf = store
	} else {
		s.shelf, s.registry.isShelf = s.registry, true
	}
	order, err := s.backend.Start(s.registry)
	if err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	s.registry.begin(order)
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	for i, src := range s.settings.Sources {
		s.feeds = append(s.feeds, s.runSource(ctx, i, src))
	}
	return s, nil
}

// limits returns the limits in force.
func (s *Server) limits() *Limits { return &s.policy.Load().limits }

// backendMoved hears from the backend that it takes events, or why it does not.
func (s *Server) backendMoved(reason error) {
	before := s.away.Swap(&away{reason}).reason
	switch {
	case reason == nil && before != nil:
		s.log.Info("the backend is back")
	case reason != nil && before == nil:
		s.log.Warn("the backend is away", "reason", reason)
	}
}

// reason returns why the backend takes no events, nil when it does.
func (s *Server) reason() error { return s.away.Load().reason }

// away is why the backend takes no events; nil: it does.
type away struct{ reason error }

// A Receipt says what became of a publish.
type Receipt struct {
	IDs       []string // of the events, in order
	Channels  []string // that they went to
	Consumers int      // followers of the logs that they went to, counted in each
}

// Publish publishes events to a channel, or to several joined by commas: each
// event is one, with one id, and who follows two of the channels gets it once.
// "all" reaches every consumer. The events are kept together, in order, or not
// at all.
//
// It never waits for a consumer; it waits up to Settings.Timeout while the
// writers have too much to offer. Errors are *Problem.
func (s *Server) Publish(ctx context.Context, channel string, events ...Event) (Receipt, error) {
	receipt, p := s.publishEvents(ctx, channel, events, s.publish)
	if p != nil {
		return Receipt{}, p
	}
	return receipt, nil
}

// publishEvents makes a record of events and has publish publish it.
func (s *Server) publishEvents(ctx context.Context, channel string, events []Event, publish func(context.Context, *Record) (Receipt, *Problem)) (Receipt, *Problem) {
	c := calls.Get().(*call)
	names, p := appendNames(c.name[:0], channel, false, s.limits().ChannelsPerConsumer)
	if p == nil && slices.Contains(names, personalName) {
		p = newProblem(http.StatusBadRequest, "@me stands for the subject of a request's token: name the channel")
	}
	if p != nil {
		return Receipt{}, p
	}
	if len(events) == 0 {
		return Receipt{}, newProblem(http.StatusBadRequest, "nothing to send: give at least one event")
	}
	for i := range events {
		if p := events[i].validate(); p != nil {
			return Receipt{}, p
		}
	}
	c.rec.Channels, c.rec.Events, c.rec.frames = names, append(c.event[:0], events...), c.frame[:0]
	receipt, p := publish(ctx, &c.rec)
	if p != nil {
		return Receipt{}, p
	}
	if s.publishesAtOnce() { // and nothing of a record is kept
		*c = call{}
		calls.Put(c)
	}
	return receipt, nil
}

// A call is a record with room for the channel, the event and the frame of most
// publishes, to be used again.
type call struct {
	rec   Record
	name  [1]string
	event [1]Event
	frame [1]*frame
}

var calls = sync.Pool{New: func() any { return &call{} }}

// publish hands a record of validated events to the backend, unless the server
// shuts down.
func (s *Server) publish(ctx context.Context, rec *Record) (Receipt, *Problem) {
	if !s.flight.enter() {
		return Receipt{}, drainingProblem(s.settings.Retry)
	}
	defer s.flight.leave()
	return s.commit(ctx, rec, s.settings.Timeout)
}

// feed is publish for sources, which shutting down waits for by itself.
func (s *Server) feed(ctx context.Context, rec *Record) (Receipt, *Problem) {
	return s.commit(ctx, rec, s.settings.Timeout)
}

// commit is publish for who is counted as a publish under way already. It waits
// so long for the writers to have room.
func (s *Server) commit(ctx context.Context, rec *Record, wait time.Duration) (Receipt, *Problem) {
	if slices.Contains(rec.Channels, globalName) {
		rec.Channels = append(rec.Channels[:0], globalName)
	}
	if p := s.registry.admit(ctx, rec.Channels, wait); p != nil {
		return Receipt{}, p
	}
	rec.prepare()
	kept, err := s.backend.Publish(ctx, rec)
	if err != nil {
		return Receipt{}, publishError(err, s.settings.Retry)
	}
	n := len(rec.frames)
	if kept.Repeated {
		return Receipt{IDs: kept.ids(rec), Channels: slices.Clone(rec.Channels), Consumers: s.registry.followers(rec.Channels)}, nil
	}
	texts := make([]string, n, n+len(rec.Channels)) // one allocation for both
	for i, f := range rec.frames {
		texts[i] = f.id()
	}
	texts = append(texts, rec.Channels...)
	s.stats.publish(n)
	return Receipt{IDs: texts[:n:n], Channels: texts[n:], Consumers: s.registry.followers(rec.Channels)}, nil
}

// purge drops the events of channels and disconnects who follows them by name.
func (s *Server) purge(ctx context.Context, names []string) (*Record, *Problem) {
	if slices.Contains(names, globalName) {
		names = []string{globalName}
	}
	if !s.flight.enter() {
		return nil, drainingProblem(s.settings.Retry)
	}
	defer s.flight.leave()
	rec := &Record{Channels: names, Purge: true}
	if _, err := s.backend.Publish(ctx, rec); err != nil {
		return nil, publishError(err, s.settings.Retry)
	}
	return rec, nil
}

// A Subscription says what Subscribe begins with and which events it yields.
// The zero value is every event from now on.
type Subscription struct {
	// LastEventID is the id after which to begin. If events after it are no
	// longer kept, the first event is of the type "eventsource.gap".
	LastEventID string
	// History is how many kept events to begin with. A LastEventID wins over it.
	History int
	// Types are the event types to yield, "message" being the untyped; nil is
	// all.
	Types []string
}

// An EndError is why the server ended a subscription: "closed", "slow" or
// "draining".
type EndError struct{ Reason string }

// Error says the reason.
func (e *EndError) Error() string { return "eventsource: the subscription was ended: " + e.Reason }

// Subscribe follows a channel or a wildcard, or several joined by commas, from
// now until ctx ends. What it returns can be ranged over once. It yields each
// event once, in order; an error is the last: a *Problem when the channel can't
// be followed, an *EndError when the server ends it. Who reads too slowly is
// ended, not waited for.
func (s *Server) Subscribe(ctx context.Context, channel string, sub *Subscription) iter.Seq2[Event, error] {
	if sub == nil {
		sub = &Subscription{}
	}
	fail := func(err error) iter.Seq2[Event, error] {
		return func(yield func(Event, error) bool) { yield(Event{}, err) }
	}
	names, p := parseNames(channel, true, s.limits().ChannelsPerConsumer)
	switch {
	case p != nil:
		return fail(p)
	case slices.Contains(names, globalName):
		return fail(followAll())
	case slices.Contains(names, personalName):
		return fail(newProblem(http.StatusBadRequest, "@me stands for the subject of a request's token: name the channel"))
	case len(sub.LastEventID) > maxID:
		return fail(longID())
	}
	wanted := subscription{names: names, id: sub.LastEventID, history: sub.History,
		filter: sub.Types, portable: true, raw: true, identity: everybody}
	if p := s.recall(ctx, &wanted); p != nil {
		s.registry.tidy(names) // of those that were filled for nobody
		return fail(p)
	}
	c, p := s.registry.join(wanted, s.registry.notifier(), s.settings.Retry)
	if p != nil && wanted.recalled {
		s.registry.tidy(names)
	}
	if p == behind && wanted.placed {
		return s.subscribeBehind(ctx, wanted)
	}
	if p != nil {
		return fail(p)
	}
	return s.subscribed(ctx, c)
}

// subscribed yields what a consumer gets.
func (s *Server) subscribed(ctx context.Context, c *consumer) iter.Seq2[Event, error] {
	var ranged atomic.Bool
	stop := context.AfterFunc(ctx, func() {
		c.end(endGone, 0)
		if !ranged.Swap(true) {
			s.registry.depart(c, endGone) // nobody ever ranges over it
		}
	})
	return func(yield func(Event, error) bool) {
		if ranged.Swap(true) {
			return
		}
		defer stop()
		reason := s.follow(ctx, c, yield)
		s.registry.depart(c, reason)
	}
}

// subscribeBehind yields what the Store has for a consumer that the logs don't reach,
// and goes on with them when they do.
func (s *Server) subscribeBehind(ctx context.Context, sub subscription) iter.Seq2[Event, error] {
	viewer := sub.viewer()
	var ranged atomic.Bool
	return func(yield func(Event, error) bool) {
		if ranged.Swap(true) {
			return
		}
		for {
			c, p := s.registry.join(sub, s.registry.notifier(), s.settings.Retry)
			if p == nil {
				s.subscribed(ctx, c)(yield)
				return
			}
			var frames []*frame
			var lost bool
			if p == behind {
				frames, lost, p = s.recallPage(ctx, &sub, viewer)
			}
			if p != nil {
				yield(Event{}, p)
				return
			}
			sub.begun = true
			if lost && !yield(Event{Type: gapType, Data: gapData("", ""), Time: time.Now()}, nil) {
				return
			}
			for _, f := range frames {
				if ctx.Err() != nil || !yield(f.event(viewer.came(f)), nil) {
					return
				}
			}
			s.stats.deliver(len(frames), 0)
			s.stats.recalled.Add(uint64(len(frames)))
		}
	}
}

// follow yields a consumer's events and returns why it ended.
func (s *Server) follow(ctx context.Context, c *consumer, yield func(Event, error) bool) string {
	if c.gap != "" && !yield(Event{Type: gapType, Data: c.gap, Time: time.Now()}, nil) {
		return endGone
	}
	c.pending = nil
	var frames []*frame
	for {
		ending := c.ending.Load() // what was published before it comes first
		if ending != nil && ending.reason == endGone {
			return endGone
		}
		mark := s.registry.mark.Load()
		if ending != nil { // and what is published while it is read does not
			mark = max(c.pos.Load(), ending.mark)
		}
		var upTo uint64
		var whole bool
		if frames, upTo, whole = c.collect(frames[:0], mark, batchBytes); !whole {
			yield(Event{}, &EndError{endSlow})
			return endSlow
		}
		for _, f := range frames {
			c.pos.Store(f.seq)
			if !yield(f.event(c.came(f)), nil) {
				return endGone
			}
			if ctx.Err() != nil {
				return endGone
			}
		}
		s.stats.deliver(len(frames), 0)
		clear(frames)
		c.pos.Store(upTo)
		if upTo < mark {
			continue
		}
		if ending != nil {
			yield(Event{}, &EndError{ending.reason})
			return ending.reason
		}
		<-c.wake
	}
}

// SendMessage publishes what it reads, as the classic interface says.
func (s *Server) SendMessage(message io.Reader, channel string) {
	if channel == "" {
		channel = "default"
	}
	err := func() error {
		body, err := io.ReadAll(io.LimitReader(message, s.limits().Body+1))
		if err != nil {
			return err
		}
		if int64(len(body)) > s.limits().Body {
			return tooLarge(s.limits().Body)
		}
		events, _, p := decodeBody("application/json", nil, body)
		if p != nil {
			return p
		}
		_, err = s.Publish(context.Background(), channel, events...)
		return err
	}()
	if err != nil {
		s.log.Error("a message was not published", "channel", channel, "error", err)
	}
}

// ChannelExists is documented at EventSource.
func (s *Server) ChannelExists(channel string) bool {
	exists, err := s.exist(context.Background(), []string{channel})
	if err != nil {
		s.log.Error("what is kept of a channel could not be read", "channel", channel, "error", err)
	}
	return exists
}

// ConsumerCount is documented at EventSource.
func (s *Server) ConsumerCount(channel string) int { return s.registry.count(channel) }

// ConsumerCountAll is documented at EventSource.
func (s *Server) ConsumerCountAll() int { return s.registry.connected() }

// Channels is documented at EventSource.
func (s *Server) Channels() []string {
	names, err := s.ChannelsAfter(context.Background(), "", "", math.MaxInt)
	if err != nil {
		s.log.Error("the channels that are kept could not be read", "error", err)
		return s.registry.names()
	}
	return names
}

// Close is documented at EventSource.
func (s *Server) Close(channel string) {
	names, p := parseNames(channel, false, s.limits().ChannelsPerConsumer)
	if p == nil {
		_, p = s.purge(context.Background(), names)
	}
	if p != nil {
		s.log.Error("a channel was not closed", "channel", channel, "error", p)
	}
}

// CloseAll is documented at EventSource.
func (s *Server) CloseAll() { s.Close(globalName) }

// Run is documented at EventSource.
func (s *Server) Run() {
	err := s.ListenAndServe()
	if !errors.Is(err, http.ErrServerClosed) {
		s.log.Error("the server could not run", "error", err)
		fmt.Fprintln(os.Stderr, "eventsource:", err)
		os.Exit(1)
	}
	<-s.closed
}

// Stop is documented at EventSource. It waits for Settings.Drain.
func (s *Server) Stop() {
	ctx, cancel := context.WithTimeout(context.Background(), s.settings.Drain)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		s.log.Error("the server did not shut down cleanly", "error", err)
	}
}

// ListenAndServe listens on Settings.Host and Port and serves, as Serve does.
func (s *Server) ListenAndServe() error {
	if s.invalid != nil {
		return s.invalid
	}
	l, err := net.Listen("tcp", s.settings.address())
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return s.Serve(l)
}

// Serve serves on a listener until Shutdown, and returns http.ErrServerClosed
// then. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	if s.invalid != nil {
		l.Close()
		return s.invalid
	}
	server := s.httpServer()
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		l.Close()
		return http.ErrServerClosed
	}
	s.servers = append(s.servers, server)
	s.mu.Unlock()
	var err error
	if server.TLSConfig != nil {
		err = server.ServeTLS(newGate(l), "", "")
	} else {
		err = server.Serve(newGate(s.front(l)))
	}
	if errors.Is(err, http.ErrServerClosed) {
		return http.ErrServerClosed
	}
	return fmt.Errorf("serve: %w", err)
}

// idleTimeout is how long a connection may stay without a request.
const idleTimeout = 2 * time.Minute

// httpServer returns an http.Server with the server's handler and bounds.
func (s *Server) httpServer() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // for proxies that know of it (RFC 9113, 3.3)
	return &http.Server{
		Protocols:         protocols,
		TLSConfig:         s.settings.TLS.Clone(),
		Handler:           s.Handler(),
		ReadHeaderTimeout: s.settings.Timeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    s.settings.Limits.Head,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext:       gateContext,
	}
}

// Handle adds a page below a reserved first token, such as "/metrics". It asks
// for an administrator once a token is set. Call it before Router, Handler and
// Serve.
func (s *Server) Handle(pattern string, h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages = append(s.pages, page{pattern, h, false})
}

// HandleOpen adds a page as Handle does, and asks nobody for a token: what it shows is
// for everybody.
func (s *Server) HandleOpen(pattern string, h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages = append(s.pages, page{pattern, h, true})
}

// MayFollow reports whether who sends a request may follow a channel or wildcard, by its
// token: for pages that show what not every administrator may know. It is safe for
// concurrent use.
func (s *Server) MayFollow(r *http.Request, channel string) bool {
	policy := s.policy.Load()
	v, p := policy.visit(r, asking{})
	return p == nil && policy.access.follows(v, channel)
}

// Node returns the name of the server: that of the machine, and what tells it from
// another run there.
func (s *Server) Node() string { return s.node }

// Shutdown refuses new publishes and consumers, waits until the publishes under
// way have completed, and ends every stream. Only then it closes the
// listeners. It returns an error when ctx ended first. The server can't be used
// again.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closing.Do(func() {
		defer close(s.closed)
		s.draining.Store(true)
		s.log.Info("draining", "consumers", s.registry.connected(), "relayed", s.registry.streams())
		s.stop()
		idle := s.flight.close()
		s.mu.Lock()
		for stop := range s.interrupts {
			(*stop)()
		}
		s.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			s.closeErr = fmt.Errorf("shutdown: publishes under way did not end: %w", context.Cause(ctx))
		}
		for _, f := range s.feeds {
			select {
			case <-f.done:
			case <-ctx.Done():
				s.closeErr = errors.Join(s.closeErr, fmt.Errorf("shutdown: the source %s did not end: %w", f.name, context.Cause(ctx)))
			}
		}
		s.endRelays(endDraining, func(*relayed) bool { return true })
		s.registry.drain(ctx, s.settings.Timeout) // who is connected gets them
		s.registry.close()
		s.closeErr = errors.Join(s.closeErr, s.backend.Close())
		s.mu.Lock()
		servers := s.servers
		s.mu.Unlock()
		for _, server := range servers {
			if err := server.Shutdown(ctx); err != nil {
				server.Close()
			}
		}
	})
	<-s.closed
	return s.closeErr
}

// interrupt has stop called when the server begins to drain, until the function
// that it returns is called.
func (s *Server) interrupt(stop func()) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		stop()
	}
	if s.interrupts == nil {
		s.interrupts = map[*func()]struct{}{}
	}
	s.interrupts[&stop] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.interrupts, &stop)
	}
}

// returnAfter returns the retry that a stream is ended with.
func (s *Server) returnAfter(reason string) time.Duration {
	if reason == endDraining {
		return jitter(s.settings.Retry, int(s.registry.drained.Load()))
	}
	return s.settings.Retry
}

// A flight counts the publishes under way.
type flight struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{}
}

// enter reports false when no more may begin.
func (f *flight) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.n++
	return true
}

func (f *flight) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 && f.closed {
		close(f.idle)
	}
}

// close lets none begin, and returns what is closed when the last has ended.
func (f *flight) close() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.idle = make(chan struct{})
	if f.n == 0 {
		close(f.idle)
	}
	return f.idle
}

// drainingProblem refuses who comes while the server shuts down.
func drainingProblem(retry time.Duration) *Problem {
	return newProblem(http.StatusServiceUnavailable, "the server is shutting down: come back later").after(retry)
}

func followAll() *Problem {
	return newProblem(http.StatusBadRequest,
		`"all" reaches every consumer and can't be followed: follow a channel, and you get what is published to "all" too`)
}

func longID() *Problem {
	return newProblem(http.StatusBadRequest, fmt.Sprintf("the last event id is longer than %d bytes: send one that came in a stream", maxID))
}

func tooLarge(limit int64) *Problem {
	return newProblem(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is longer than %d bytes: send less at once", limit))
}

// keyOf names a record for idempotency: who published what key to which
// channels.
func keyOf(v visitor, names []string, key string) string {
	who := "-"
	if v.known() {
		who = v.who
	}
	return who + "\x00" + strings.Join(slices.Sorted(slices.Values(names)), ",") + "\x00" + key
}

// bodyOf is the hash of what came with an idempotency key.
func bodyOf(parts ...[]byte) [sha256.Size]byte {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
