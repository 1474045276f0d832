package eventsource

import (
	"bytes"
	"net"
	"net/http"
	"net/netip"
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
// once, without a goroutine and buffers of net/http; so does a client that
// publishes or has sent nothing yet. Every other connection goes to net/http with
// what was read of it, and so does every request that is to be refused: there is
// one place that answers.
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
	request requestReader
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
		buf: make([]byte, requestBytes), head: s.newStreamHead(),
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
	defer f.drop()
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

// drop closes what waits for net/http: nobody will take it.
func (f *front) drop() {
	for {
		select {
		case c := <-f.out:
			c.Close()
		default:
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
	request := f.buf[:n]
	if n == 0 || f.s.publishesAtOnce() && bytes.HasPrefix(request, []byte("POST ")) {
		f.s.nextWriter().adopt(arrival{client{front: f, peer: peer.String(), fd: int32(fd)}, bytes.Clone(request)})
		return
	}
	if r, _ := f.request.read(request); r != nil && r.Method == http.MethodGet {
		if r.RemoteAddr = peer.String(); f.s.begin(fd, r, f.head) {
			return
		}
	}
	f.pass(fd, bytes.Clone(request))
}

// pass gives a connection to net/http with what was read of it.
func (f *front) pass(fd int, read []byte) {
	conn, err := reactor.Conn(fd)
	if err != nil {
		f.s.log.Warn("a connection could not be handed to net/http", "error", err)
		return
	}
	select {
	case f.out <- &readConn{conn, read}:
		select {
		case <-f.done:
			f.drop()
		default:
		}
	case <-f.done:
		conn.Close()
	}
}

// begin makes a consumer of who sends r; false when it is refused, which is
// net/http's to say.
func (s *Server) begin(fd int, r *http.Request, head *plainHead) bool {
	if !s.isChannel(r, nil) || s.draining.Load() {
		return false
	}
	sub, p := s.subscription(r, true)
	if p != nil {
		return false
	}
	sub.head, sub.greet = head.of(r), sub.policy.cross.cors == nil
	if s.hold(fd, sub) != nil {
		sub.undo() // net/http counts it once more
		return false
	}
	return true
}
