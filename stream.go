package eventsource

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	batchBytes = 256 << 10 // what is assembled for one write
	pieceBytes = 16 << 10  // what must get through within one timeout
)

// errSlow is the end of a consumer that makes no progress.
var errSlow = fmt.Errorf("the consumer makes no progress: %w", os.ErrDeadlineExceeded)

// An outlet is where a portable consumer's bytes go.
type outlet interface {
	// write sends b, or returns errSlow when nothing of it moves for timeout.
	write(b []byte, timeout time.Duration) error
	// gone is closed when the other side has left.
	gone() <-chan struct{}
}

// A responseOutlet writes by net/http: TLS, HTTP/2, and systems without a
// reactor.
type responseOutlet struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	ctx context.Context

	begin func() // sends the response's head, once
}

func (o *responseOutlet) gone() <-chan struct{} { return o.ctx.Done() }

func (o *responseOutlet) write(b []byte, timeout time.Duration) error {
	o.begin()
	for len(b) > 0 {
		n := min(len(b), pieceBytes)
		if err := o.rc.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if _, err := o.w.Write(b[:n]); err != nil {
			return slowOr(err)
		}
		if err := o.rc.Flush(); err != nil {
			return slowOr(err)
		}
		b = b[n:]
	}
	// HTTP/2 resets a stream whose deadline passes, though nothing is written.
	return o.rc.SetWriteDeadline(time.Time{})
}

// A connOutlet writes to a hijacked connection that the reactor can't hold.
type connOutlet struct {
	conn net.Conn
	left chan struct{}
}

// newConnOutlet reads and drops what the other side sends, to notice when it
// leaves.
func newConnOutlet(conn net.Conn) *connOutlet {
	o := &connOutlet{conn: conn, left: make(chan struct{})}
	go func() {
		defer close(o.left)
		io.CopyN(io.Discard, conn, noisyBytes)
	}()
	return o
}

func (o *connOutlet) gone() <-chan struct{} { return o.left }

func (o *connOutlet) write(b []byte, timeout time.Duration) error {
	for len(b) > 0 {
		n := min(len(b), pieceBytes)
		if err := o.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if _, err := o.conn.Write(b[:n]); err != nil {
			return slowOr(err)
		}
		b = b[n:]
	}
	return nil
}

func (o *connOutlet) close() {
	o.conn.Close()
	<-o.left
}

func slowOr(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errSlow
	}
	return err
}

// streamHead sets the headers of a stream.
func (s *Server) streamHead(h http.Header) {
	maps.Copy(h, s.headers)
	h.Set("Content-Type", "text/event-stream")
	h["Cache-Control"] = headerNoCache
	h["X-Accel-Buffering"] = headerNo
}

var (
	headerNoCache = []string{"no-cache"}
	headerNo      = []string{"no"}
)

// open begins a stream: from the reactor where it can hold the connection, else
// on this goroutine until it ends.
func (s *Server) open(w http.ResponseWriter, r *http.Request, sub subscription) *Problem {
	rc := http.NewResponseController(w)
	if !hasReactor || s.settings.portable || r.ProtoMajor != 1 || r.TLS != nil {
		return s.openResponse(w, r, rc, sub)
	}
	s.streamHead(w.Header())
	conn, _, err := rc.Hijack()
	if err != nil {
		if errors.Is(err, http.ErrNotSupported) {
			return s.openResponse(w, r, rc, sub)
		}
		return newProblem(http.StatusInternalServerError, "the connection can't be taken over")
	}
	conn.SetDeadline(time.Time{})
	sub.raw = r.ProtoMinor == 0
	sub.head = responseHead(w.Header(), sub.raw)
	if g, ok := conn.(*gatedConn); ok {
		g.through()
		conn = g.TCPConn
	}
	switch p, err := s.replay(r.Context(), &sub, &connOutlet{conn: conn}); {
	case p != nil:
		s.stats.refuse(p)
		conn.SetDeadline(time.Now().Add(time.Second))
		conn.Write(sub.refusal(p))
		conn.Close()
		return nil
	case err != nil:
		conn.Close()
		return nil
	}
	conn.SetDeadline(time.Time{})
	if tcp, ok := conn.(*net.TCPConn); ok {
		if taken, p := s.react(tcp, sub); taken {
			if p != nil {
				s.stats.refuse(p)
			}
			return nil
		}
	}
	s.openConn(conn, sub)
	return nil
}

// responseHead is the head of a stream's response (RFC 9112, 4).
func responseHead(h http.Header, raw bool) []byte {
	var b bytes.Buffer
	b.Grow(512)
	if raw {
		b.WriteString("HTTP/1.0 200 OK\r\nConnection: close\r\n")
	} else {
		b.WriteString("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n")
	}
	b.WriteString("Date: ")
	b.WriteString(time.Now().UTC().Format(http.TimeFormat))
	b.WriteString("\r\n")
	h.Write(&b)
	b.WriteString("\r\n")
	return b.Bytes()
}

// openConn serves a stream on a hijacked connection, on this goroutine.
func (s *Server) openConn(conn net.Conn, sub subscription) {
	sub.portable = true
	o := newConnOutlet(conn)
	defer o.close()
	c, p := s.registry.join(sub, s.registry.notifier(), s.settings.Retry)
	if p != nil {
		s.stats.refuse(p)
		o.write(sub.refusal(p), s.settings.Timeout)
		return
	}
	s.stream(c, o)
}

// openResponse serves a stream by net/http, on this goroutine.
func (s *Server) openResponse(w http.ResponseWriter, r *http.Request, rc *http.ResponseController, sub subscription) *Problem {
	if p := s.dropBody(w, r, rc); p != nil {
		return p
	}
	if err := rc.SetWriteDeadline(time.Now().Add(s.settings.Timeout)); err != nil {
		return newProblem(http.StatusInternalServerError,
			"this server's handlers can neither be hijacked nor given a write deadline: a middleware must keep Unwrap")
	}
	if g, ok := r.Context().Value(gateKey{}).(*gatedConn); ok {
		s.limitSilence(g.TCPConn)
	}
	sub.portable, sub.raw = true, true
	begin := func() {
		s.streamHead(w.Header())
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "keep-alive")
			if r.ProtoMinor == 0 {
				w.Header().Set("Connection", "close")
			}
		}
		w.WriteHeader(http.StatusOK)
	}
	o := &responseOutlet{w: w, rc: rc, ctx: r.Context(), begin: sync.OnceFunc(begin)}
	c, p := (*consumer)(nil), behind
	for p == behind {
		refused, err := s.replay(r.Context(), &sub, o)
		if err != nil {
			return nil
		}
		if p = refused; p == nil {
			c, p = s.registry.join(sub, s.registry.notifier(), s.settings.Retry)
		}
		if p == behind && !sub.placed {
			break
		}
	}
	switch {
	case p != nil && sub.begun:
		s.stats.refuse(p)
		o.write(sub.refusal(p), s.settings.Timeout)
		return nil
	case p != nil:
		return p
	}
	o.begin()
	s.stream(c, o)
	rc.SetWriteDeadline(time.Time{})
	return nil
}

// dropBody reads what a request has besides its head, which a stream has no use for. Before
// that, net/http neither answers over HTTP/1 nor sees the other side leave.
func (s *Server) dropBody(w http.ResponseWriter, r *http.Request, rc *http.ResponseController) *Problem {
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		rc.SetReadDeadline(time.Now().Add(s.settings.Timeout))
		if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, noisyBytes)); err != nil {
			w.Header().Set("Connection", "close")
			return badRequest("a stream is asked for without a body: leave it out")
		}
	}
	rc.SetReadDeadline(time.Time{})
	return nil
}

// stream serves a portable consumer on this goroutine until one side ends it.
func (s *Server) stream(c *consumer, o outlet) {
	reason := s.drainLogs(c, o)
	if reason != endGone && reason != endSlow || reason == endSlow && c.pending == nil {
		tail := endText(reason, s.returnAfter(reason))
		if !c.raw {
			tail = string(newChunk(tail)) + "0\r\n\r\n"
		}
		o.write([]byte(tail), min(s.settings.Timeout, time.Second))
	}
	s.registry.depart(c, reason)
}

// depart takes a portable consumer out of the registry.
func (r *registry) depart(c *consumer, reason string) {
	w := c.global.side.writer
	r.mu.Lock()
	r.leaveLocked(c, reason)
	w.leaves = append(w.leaves, c)
	w.stir()
	r.mu.Unlock()
	w.wake()
}

// drainLogs writes what there is between the consumer's cursor and the mark,
// again and again, and returns why it ended.
func (s *Server) drainLogs(c *consumer, o outlet) string {
	var (
		frames []*frame
		batch  []byte
		beat   <-chan time.Time
		timer  *time.Timer
	)
	if h := s.settings.Heartbeat; h > 0 {
		timer = time.NewTimer(h)
		defer timer.Stop()
		beat = timer.C
	}
	for {
		ending := c.ending.Load() // what was published before it comes first
		if ending != nil && ending.reason == endGone {
			return endGone
		}
		mark := s.registry.mark.Load()
		if ending != nil { // and what is published while it is written does not
			mark = max(c.pos.Load(), ending.mark)
		}
		var last uint64
		var whole bool
		if frames, last, whole = c.collect(frames[:0], mark, batchBytes); !whole {
			return endSlow
		}
		if n := len(frames); n > 0 || c.pending != nil {
			batch = append(batch[:0], c.pending...)
			c.pending = nil
			for _, f := range frames {
				batch = append(batch, c.bytes(f)...)
			}
			if err := o.write(batch, s.settings.Timeout); err != nil {
				c.pending = batch // its frame may be half sent
				if errors.Is(err, errSlow) {
					return endSlow
				}
				return endGone
			}
			if n > 0 {
				c.untold = last > frames[n-1].seq
				s.stats.deliver(n, len(batch))
			} else if last > c.pos.Load() {
				c.untold = true
			}
			c.pos.Store(last)
			clear(frames)
			if cap(batch) > 2*pieceBytes {
				batch = nil
			}
			if timer != nil {
				timer.Reset(s.settings.Heartbeat)
			}
		} else if last > c.pos.Load() {
			c.pos.Store(last)
			c.untold = true
		}
		if ending != nil && (last >= mark || ending.reason == endExpired || ending.reason == endRevoked) {
			return ending.reason // who may follow no longer is not waited for
		}
		if last < mark {
			continue
		}
		select {
		case <-c.wake:
		case <-o.gone():
			return endGone
		case <-beat:
			b := s.heartbeat(c, mark)
			if err := o.write(b, s.settings.Timeout); err != nil {
				c.pending = b
				if errors.Is(err, errSlow) {
					return endSlow
				}
				return endGone
			}
			timer.Reset(s.settings.Heartbeat)
		}
	}
}

// heartbeat returns a comment, with the id of the mark for a consumer that has
// all up to it, when it has moved since an id was sent.
func (s *Server) heartbeat(c *consumer, mark uint64) []byte {
	text := ":\n\n"
	if c.untold {
		id := s.registry.position(mark)
		text = ":\nid: " + string(id[:]) + "\n\n"
		c.untold = false
	}
	if c.raw {
		return []byte(text)
	}
	return newChunk(text)
}

// position returns the id of a place in the order.
func (r *registry) position(seq uint64) [36]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.positionLocked(seq)
}

// positionLocked is position.
func (r *registry) positionLocked(seq uint64) [36]byte {
	return r.epoch.position(seq, time.Now()).encode()
}
