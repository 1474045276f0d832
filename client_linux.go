package eventsource

import (
	"bytes"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/railsmechanic/eventsource/internal/reactor"
)

const (
	// requestBytes is the longest request that the reactor reads itself, with its
	// body: it must not keep the streams of its writer waiting.
	requestBytes = 4 << 10
	// batchRequestBytes is the longest batch: a receipt for each event has to fit
	// into the socket, whatever else it holds.
	batchRequestBytes = 512
	// consumersToken is the token of the consumers' epoll set in the clients';
	// no client's is as large.
	consumersToken = ^uint64(1)
)

// A client is a connection whose requests the reactor reads: one that publishes,
// or that has not said yet what it wants. Its writer publishes for it
// between two passes: that costs neither a goroutine nor a wake-up, and events
// don't come faster than they are offered. Who asks for a stream becomes a
// consumer. Every other request, and what is to be refused, is passed on to
// net/http with the connection.
type client struct {
	front      *front // nil: it is closed
	peer       string
	fd         int32
	generation uint32
	until      int64 // when it has been silent for too long
}

// An arrival is a client that the writer has not met, with what it has sent.
type arrival struct {
	client
	request []byte
}

// A dueAnswer is one that a client waits for. It is sent after the deliveries of a
// pass, unless they are many: a publisher that hears back earlier only sends its next
// event into the way of the ones before it.
type dueAnswer struct {
	place      uint32
	generation uint32
	end        int // of its bytes
}

// clients are what a writer has of them: an epoll set with that of the consumers
// in it, so that the writer waits for both and can look at this one alone when
// many consumers want something.
type clients struct {
	loop *reactor.Loop // set when made

	// Owned by the goroutine of run.
	all     []client
	events  []reactor.Event
	free    []uint32 // places in all
	swept   int      // the next to look at for its silence
	request requestReader
	head    *plainHead
	due     []dueAnswer
	bytes   []byte // of due

	mu     sync.Mutex
	arrive []arrival
	met    []arrival // used by turns with arrive
	closed bool
}

// adopt has the writer serve a client. Safe for concurrent use.
func (w *reactorWriter) adopt(a arrival) {
	p := w.clients
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		reactor.Close(int(a.fd))
		return
	}
	p.arrive = append(p.arrive, a)
	p.mu.Unlock()
	w.stir()
	w.wake()
}

// welcome meets the clients that have arrived.
func (w *reactorWriter) welcome() {
	p := w.clients
	p.mu.Lock()
	p.arrive, p.met = p.met[:0], p.arrive
	p.mu.Unlock()
	for i := range p.met {
		a := &p.met[i]
		var place uint32
		if n := len(p.free); n > 0 {
			place, p.free = p.free[n-1], p.free[:n-1]
			a.generation = p.all[place].generation
		} else {
			place = uint32(len(p.all))
			p.all = append(p.all, client{})
		}
		a.until = w.now + int64(w.s.settings.Timeout)
		p.all[place] = a.client
		if err := p.loop.Add(int(a.fd), uint64(a.generation)<<32|uint64(place)); err != nil {
			w.s.log.Warn("a connection could not be taken into the reactor", "error", err)
			go a.front.pass(w.release(place), a.request)
			continue
		}
		if len(a.request) > 0 {
			w.answer(place, a.request)
		}
	}
	clear(p.met)
}

// listen waits up to timeout until something happens, serves the clients that have
// sent something, and reports whether there is something of consumers.
func (w *reactorWriter) listen(timeout time.Duration) (consumers bool) {
	p := w.clients
	var err error
	if p.events, err = p.loop.Wait(p.events[:0], timeout); err != nil {
		w.fail(err)
	}
	w.sleeping.Store(false) // what is published from here on needs no waking
	w.tick()
	if p.loop.Waited {
		w.rested = w.now
	} else if w.now-w.rested >= int64(spell) {
		runtime.Gosched()
		w.rested = w.now
	}
	for _, e := range p.events {
		if e.Token == consumersToken {
			consumers = true
			continue
		}
		w.hear(e)
	}
	return consumers
}

// hear reads what a client has sent.
func (w *reactorWriter) hear(e reactor.Event) {
	place := uint32(e.Token)
	c := &w.clients.all[place]
	if c.generation != uint32(e.Token>>32) { // its place was given up
		return
	}
	n, closed := 0, e.Closed
	if e.Readable {
		n, closed = reactor.Read(int(c.fd), w.scratch[:requestBytes])
	}
	switch {
	case n > 0:
		w.answer(place, w.scratch[:n])
	case closed && w.settled(place): // it may have closed its half only
		reactor.Close(w.release(place))
	}
}

// answer does what a client's request asks for, or passes it on.
func (w *reactorWriter) answer(place uint32, request []byte) {
	c := &w.clients.all[place]
	c.until = w.now + int64(idleTimeout)
	r, body := w.clients.request.read(request)
	if r != nil {
		r.RemoteAddr = c.peer
	}
	if r != nil && r.Method == http.MethodPost {
		if w.published(r, body) {
			p := w.clients
			p.due = append(p.due, dueAnswer{place, c.generation, len(p.bytes)})
			return
		}
	}
	if !w.settled(place) {
		return
	}
	w.clients.loop.Remove(int(c.fd))
	front := c.front
	fd := w.release(place)
	if r == nil || r.Method != http.MethodGet || !w.s.begin(fd, r, w.head) {
		go front.pass(fd, bytes.Clone(request)) // which may have to wait
	}
}

// reply sends the answers that are due.
func (w *reactorWriter) reply() {
	p := w.clients
	begin := 0
	for _, a := range p.due {
		b := p.bytes[begin:a.end]
		begin = a.end
		c := &p.all[a.place]
		if c.generation != a.generation {
			continue // it has gone
		}
		if n, _, _ := reactor.Write(int(c.fd), b); n < len(b) {
			// It has gone, or sends without ever reading.
			reactor.Abort(w.release(a.place))
		}
	}
	p.due, p.bytes = p.due[:0], p.bytes[:0]
}

// settled sends the answers that are due, and reports whether a client is still
// there.
func (w *reactorWriter) settled(place uint32) bool {
	c := &w.clients.all[place]
	generation := c.generation
	w.reply()
	return c.generation == generation
}

// published publishes what a request carries and appends the answer to those that
// are due; false when it is not the reactor's to judge, and nothing is published.
func (w *reactorWriter) published(r *http.Request, body []byte) bool {
	s := w.s
	if !s.publishesAtOnce() || !s.isChannel(r, nil) || s.isEndpoint(r) || int64(len(body)) > s.limits().Body {
		return false
	}
	if len(body) > batchRequestBytes && firstByte(body) == '[' {
		return false
	}
	if hasLines(r) {
		return false
	}
	by, refused := s.mayPublish(r, true)
	if refused != nil || !s.flight.enter() {
		return false
	}
	defer s.flight.leave()
	receipt, batch, refused := s.publishRead(r, by, body, 0)
	if refused != nil {
		return false
	}
	p := w.clients
	b := receipt.encode(batch)
	p.bytes = append(p.bytes, p.head.of(r)...)
	p.bytes = append(p.bytes, "Content-Length: "...)
	p.bytes = strconv.AppendInt(p.bytes, int64(len(b)), 10)
	p.bytes = append(p.bytes, "\r\n\r\n"...)
	p.bytes = append(p.bytes, b...)
	return true
}

// release gives up a client's place and returns its descriptor.
func (w *reactorWriter) release(place uint32) (fd int) {
	p := w.clients
	fd = int(p.all[place].fd)
	p.all[place] = client{generation: p.all[place].generation + 1}
	p.free = append(p.free, place)
	return fd
}

// sweep closes some of the clients that have been silent for too long.
func (w *reactorWriter) sweep() {
	const share = 16
	p := w.clients
	for range (len(p.all) + share - 1) / share {
		if p.swept >= len(p.all) {
			p.swept = 0
		}
		if c := &p.all[p.swept]; c.front != nil && w.now >= c.until {
			reactor.Close(w.release(uint32(p.swept)))
		}
		p.swept++
	}
}

// dismiss closes every client's connection.
func (w *reactorWriter) dismiss() {
	p := w.clients
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	for _, a := range p.arrive {
		reactor.Close(int(a.fd))
	}
	for i := range p.all {
		if p.all[i].front != nil {
			reactor.Close(w.release(uint32(i)))
		}
	}
	p.loop.Close()
}
