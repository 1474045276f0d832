package eventsource

import (
	"bytes"
	"net/http"
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
// or that has not said yet what it wants. Its writer answers what it publishes
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
	answer  []byte

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
	w.tick()
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
	case closed:
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
		if answer, ok := w.published(r, body); ok {
			if n, _, _ := reactor.Write(int(c.fd), answer); n < len(answer) {
				// It has gone, or sends without ever reading.
				reactor.Abort(w.release(place))
			}
			return
		}
	}
	w.clients.loop.Remove(int(c.fd))
	front := c.front
	fd := w.release(place)
	if r == nil || r.Method != http.MethodGet || !w.s.begin(fd, r, w.head) {
		go front.pass(fd, bytes.Clone(request)) // which may have to wait
	}
}

// published publishes what a request carries and returns the answer; false when
// it is not the reactor's to judge, and nothing is published.
func (w *reactorWriter) published(r *http.Request, body []byte) ([]byte, bool) {
	s := w.s
	if !s.publishesAtOnce() || !s.isChannel(r, nil) || s.isEndpoint(r) || int64(len(body)) > s.settings.Limits.Body {
		return nil, false
	}
	if len(body) > batchRequestBytes && firstByte(body) == '[' {
		return nil, false
	}
	if hasLines(r) {
		return nil, false
	}
	names, v, p := s.mayPublish(r)
	if p != nil || !s.flight.enter() {
		return nil, false
	}
	defer s.flight.leave()
	receipt, batch, p := s.publishRead(r, names, v, body, 0)
	if p != nil {
		return nil, false
	}
	a := w.clients
	b := receipt.encode(batch)
	a.answer = append(a.answer[:0], a.head.of(r)...)
	a.answer = append(a.answer, "Content-Length: "...)
	a.answer = strconv.AppendInt(a.answer, int64(len(b)), 10)
	a.answer = append(a.answer, "\r\n\r\n"...)
	a.answer = append(a.answer, b...)
	return a.answer, true
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
