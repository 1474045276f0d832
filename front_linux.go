package eventsource

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/railsmechanic/eventsource/internal/reactor"
)

const (
	// frontTogether is how many connections are accepted before they are looked
	// at.
	frontTogether = 64
	// frontLook is how often a front looks whether its listener was closed by
	// somebody else.
	frontLook = time.Second
	// frontWaiting is how many may wait for net/http to take them, while streams
	// still begin.
	frontWaiting = 64
)

// A front accepts connections for the reactor. A consumer whose request has come
// whole, as all do that follow a channel with a plain GET, goes to a writer at
// once, without a goroutine and buffers of net/http. Every other connection goes
// to net/http with what was read of it, and so does every request that is to be
// refused: there is one place that answers.
//
// It is net/http's listener.
type front struct {
	// Set when made.
	s      *Server
	l      *net.TCPListener
	accept *reactor.Listener
	out    chan net.Conn
	done   chan struct{} // closed when nothing more is accepted

	once sync.Once
	err  error // why nothing more is accepted; set before done is closed

	// Owned by the goroutine of run.
	fds     [frontTogether]int
	peers   [frontTogether]netip.AddrPort
	buf     []byte
	request *bufio.Reader
	head    *plainHead
}

// front returns what net/http is to accept from: a front, where the listener can
// have one.
func (s *Server) front(l net.Listener) net.Listener {
	tcp, ok := l.(*net.TCPListener)
	if !ok || s.settings.portable || len(s.reactors()) == 0 {
		return l
	}
	accept, err := reactor.Listen(tcp, s.settings.Timeout)
	if err != nil {
		s.log.Warn("connections can't be accepted by the reactor", "error", err)
		return l
	}
	f := &front{
		s: s, l: tcp, accept: accept,
		out: make(chan net.Conn, frontWaiting), done: make(chan struct{}),
		buf: make([]byte, 4<<10), request: bufio.NewReaderSize(nil, 4<<10),
		head: s.newPlainHead(),
	}
	go f.watch()
	go f.run()
	return f
}

// watch ends the front when its listener was closed: the descriptor that the
// front accepts from is a duplicate, and does not know.
func (f *front) watch() {
	look := time.NewTicker(frontLook)
	defer look.Stop()
	for {
		select {
		case <-f.done:
			return
		case <-look.C:
			if err := reactor.Control(f.l, func(int) error { return nil }); err != nil {
				f.end(err)
				return
			}
		}
	}
}

// Accept returns the next connection that is net/http's.
func (f *front) Accept() (net.Conn, error) {
	select {
	case c := <-f.out:
		return c, nil
	case <-f.done:
		return nil, f.err
	}
}

// Addr returns the listener's address.
func (f *front) Addr() net.Addr { return f.l.Addr() }

// Close closes the listener.
func (f *front) Close() error {
	err := f.l.Close()
	f.end(net.ErrClosed)
	return err
}

// end accepts nothing more.
func (f *front) end(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.done)
		f.accept.Close()
	})
}

// run accepts until the listener is closed.
func (f *front) run() {
	defer func() { // what waits for net/http has nobody to take it
		for {
			select {
			case c := <-f.out:
				c.Close()
			default:
				return
			}
		}
	}()
	var pause time.Duration
	for {
		n, err := f.accept.Accept(f.fds[:], f.peers[:])
		for i := range n {
			f.take(f.fds[i], f.peers[i])
		}
		switch {
		case err == nil:
			pause = 0
		case reactor.Passing(err): // such as no descriptor being left
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			f.s.log.Warn("no connection can be accepted for the moment", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-f.done:
				return
			}
		default:
			f.end(err)
			return
		}
	}
}

// take gives a new connection to a writer or to net/http.
func (f *front) take(fd int, peer netip.AddrPort) {
	n, closed := reactor.Read(fd, f.buf)
	if closed {
		reactor.Close(fd)
		return
	}
	head := f.buf[:n]
	if r := f.stream(head); r != nil {
		r.RemoteAddr = peer.String()
		if f.join(fd, r) {
			return
		}
	}
	conn, err := reactor.Conn(fd)
	if err != nil {
		f.s.log.Warn("a connection could not be handed to net/http", "error", err)
		return
	}
	select {
	case f.out <- &readConn{conn, bytes.Clone(head)}:
	case <-f.done:
		conn.Close()
	}
}

// join makes a consumer of who sends r, unless it is refused: then net/http
// says so.
func (f *front) join(fd int, r *http.Request) bool {
	s := f.s
	sub, p := s.subscription(r)
	if p != nil || s.draining.Load() {
		return false
	}
	if sub.greet = s.cross.cors == nil; sub.greet {
		sub.head = f.head.at(time.Now().Unix())
	} else {
		h := headerOnly(f.head.header.Clone())
		s.cross.cors.HandlerFunc(h, r)
		sub.head = responseHead(http.Header(h), false)
	}
	return s.hold(fd, sub) == nil
}

// headerOnly is a response of which only the header is wanted.
type headerOnly http.Header

// Header returns it.
func (h headerOnly) Header() http.Header { return http.Header(h) }

// Write drops what is no header.
func (h headerOnly) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader does nothing.
func (h headerOnly) WriteHeader(int) {}

// stream returns the request that a connection begins with, if it is one for a
// stream that leaves nothing to decide: the whole of it, a GET of HTTP/1.1 for
// channels, without a body, of visible ASCII, with one Host, and nothing about
// the connection itself. Everything else is nil and net/http's to judge.
func (f *front) stream(head []byte) *http.Request {
	if !plainRequest(head) {
		return nil
	}
	f.request.Reset(bytes.NewReader(head))
	r, err := http.ReadRequest(f.request)
	if err != nil || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Host == "" || r.ContentLength != 0 || !f.s.isChannel(r, nil) {
		return nil
	}
	return r
}

// plainRequest reports whether b is the head of a GET (RFC 9112, 3) as stream
// describes it.
func plainRequest(b []byte) bool {
	const get, end = "GET /", "\r\n\r\n"
	if len(b) < len(get)+len(end) || string(b[:len(get)]) != get || string(b[len(b)-len(end):]) != end {
		return false
	}
	hosts := 0
	for lines := b[:len(b)-2]; len(lines) > 0; {
		i := bytes.IndexByte(lines, '\n')
		if i < 2 || lines[i-1] != '\r' { // an empty line is one of a second request
			return false
		}
		line := lines[:i-1]
		for _, c := range line {
			if c < ' ' || c > '~' {
				return false
			}
		}
		if len(lines) < len(b)-2 { // not the request's own line
			colon := bytes.IndexByte(line, ':')
			if colon <= 0 {
				return false
			}
			for _, c := range line[:colon] {
				if !nameByte[c] || c == '@' || c == ':' {
					return false
				}
			}
			switch name, value := line[:colon], bytes.TrimSpace(line[colon+1:]); {
			case bytes.EqualFold(name, []byte("Host")):
				if hosts++; hosts > 1 || !plainHost(value) {
					return false
				}
			case bytes.EqualFold(name, []byte("Connection")):
				if !bytes.EqualFold(value, []byte("keep-alive")) {
					return false
				}
			case len(name) > 1 && name[0]|0x20 == 't' && bytes.EqualFold(name, []byte("Transfer-Encoding")),
				bytes.EqualFold(name, []byte("Content-Length")),
				bytes.EqualFold(name, []byte("Expect")),
				bytes.EqualFold(name, []byte("Upgrade")):
				return false
			}
		}
		lines = lines[i+1:]
	}
	return hosts == 1
}

// plainHost reports whether host is a name or an address, with a port or not.
func plainHost(host []byte) bool {
	for _, c := range host {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(".-_:[]", c) >= 0) {
			return false
		}
	}
	return len(host) > 0
}
