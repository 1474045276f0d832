package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A conn is one consumer. The thread that reads owns it.
type conn struct {
	fd     int32
	state  uint8
	head   headScanner
	body   chunkReader
	stamps stampScanner
	last   int64 // the newest stamp
}

const (
	closed = iota
	connecting
	awaitingHead
	following
)

// A reader is many consumers that are read by one thread.
type reader struct {
	// Set before it is opened, then only read.
	requests  [][]byte   // the consumers send them in turn
	window    int        // so many connect at a time
	ordered   bool       // the stamps of a connection increase; others do not count
	churn     bool       // close who has got a head, and connect again
	stalled   bool       // read nothing after the head
	abort     bool       // close with a reset
	followers []follower // one a consumer, if the streams are to be parsed

	addr    unix.SockaddrInet4
	sources int // source addresses in use
	source  int // the first of them
	tally   atomic.Pointer[tally]
	ready   atomic.Int64 // consumers that have got a head
	failure atomic.Pointer[error]
	stop    atomic.Bool
	done    chan struct{}

	// Owned by the thread that reads.
	conns   []conn
	epoll   int
	opened  int
	opening int
	in      []byte
	found   []int64
}

const (
	firstSource = 2 // 127.0.0.2
	perSource   = 10000

	// Stalled consumers have small windows, which only hold if they are set before
	// the handshake, and if segments are smaller than loopback's.
	stalledSource  = 200 << 8 // 127.0.200.0
	stalledBuffer  = 4096
	stalledSegment = 1460

	// How long something may stand still that should move.
	patience = 3 * time.Second
)

// open starts n consumers.
func (r *reader) open(addr string, n int) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	r.addr = unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	r.source, r.sources = firstSource, 1+n/perSource
	if r.stalled {
		r.source = stalledSource
	}
	if r.churn {
		r.sources = 32 // closed connections hold their ports for a minute
	}
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	r.conns, r.in, r.done = make([]conn, n), make([]byte, 256<<10), make(chan struct{})
	go r.run()
	return nil
}

// follow starts n consumers and waits until all have got a head. After an error
// there are none.
func (r *reader) follow(addr string, n int) error {
	if err := r.open(addr, n); err != nil {
		return err
	}
	if err := r.connected(); err != nil {
		r.close()
		return err
	}
	return nil
}

// connected waits until all consumers have got a head.
func (r *reader) connected() error {
	// Who finds the queue of the listener full is tried again after 1, 3 and 7 s.
	n := int64(len(r.conns))
	ended := func() int64 {
		if r.err() != nil {
			return n
		}
		return r.ready.Load()
	}
	if !await(ended, n, 2*patience) {
		return fmt.Errorf("%d of %d consumers were not answered", n-r.ready.Load(), n)
	}
	return r.err()
}

// close ends all connections.
func (r *reader) close() {
	r.stop.Store(true)
	<-r.done
}

// err is the first thing that went wrong.
func (r *reader) err() error {
	if p := r.failure.Load(); p != nil {
		return *p
	}
	return nil
}

func (r *reader) fail(err error) { r.failure.CompareAndSwap(nil, &err) }

func (r *reader) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(r.done)
	defer unix.Close(r.epoll)
	events := make([]unix.EpollEvent, 1024)
	for !r.stop.Load() {
		for r.opening < r.window && r.opened < len(r.conns) {
			r.connect(r.opened)
		}
		n, err := unix.EpollWait(r.epoll, events, 20)
		if err != nil && err != unix.EINTR {
			r.fail(os.NewSyscallError("epoll_wait", err))
			break
		}
		t := r.tally.Load()
		for i := range max(n, 0) {
			r.handle(int(events[i].Fd), events[i].Events, t)
		}
	}
	for i := range r.conns {
		if c := &r.conns[i]; c.state != closed {
			if r.abort {
				unix.SetsockoptLinger(int(c.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			}
			rawClose(c.fd)
		}
	}
}

func (r *reader) connect(i int) {
	c := &r.conns[i]
	*c = conn{}
	r.opened++
	r.opening++
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.fail(os.NewSyscallError("socket", err))
		return
	}
	// The port is chosen by connect, so that each source address has all of them.
	unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if r.stalled {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, stalledBuffer)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, stalledSegment)
	}
	host := r.source + r.opened%r.sources
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, byte(host >> 8), byte(host)}})
	if err == nil {
		if err = unix.Connect(fd, &r.addr); err == unix.EINPROGRESS {
			err = nil
		}
	}
	if err == nil {
		if e := rawEpollCtl(r.epoll, unix.EPOLL_CTL_ADD, int32(fd), int32(i), unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET); e != 0 {
			err = e
		}
	}
	if err != nil {
		unix.Close(fd)
		r.fail(fmt.Errorf("connect: %w", err))
		return
	}
	c.fd, c.state = int32(fd), connecting
}

func (r *reader) handle(i int, events uint32, t *tally) {
	c := &r.conns[i]
	if c.state == connecting {
		if events&(unix.EPOLLERR|unix.EPOLLHUP) == 0 && events&unix.EPOLLOUT == 0 {
			return
		}
		request := r.requests[i%len(r.requests)]
		if n, e := rawWrite(c.fd, request); n != len(request) {
			r.fail(fmt.Errorf("send a request: %w", e))
			r.shut(c)
			return
		}
		c.state = awaitingHead
	}
	const gone = unix.EPOLLRDHUP | unix.EPOLLERR | unix.EPOLLHUP
	for events&(unix.EPOLLIN|gone) != 0 && c.state != closed {
		n, e := rawRead(c.fd, r.in)
		switch {
		case e == unix.EAGAIN:
			return
		case e == unix.EINTR:
			continue
		case e != 0 || n == 0:
			r.fail(errors.New("the server has closed a connection"))
			r.shut(c)
			return
		}
		if err := r.take(i, r.in[:n], t); err != nil {
			r.fail(err)
			r.shut(c)
			return
		}
		if n < len(r.in) && events&gone == 0 {
			break // an edge tells of more
		}
	}
	if r.churn && c.state == closed && !r.stop.Load() {
		r.connect(i)
	}
}

// take looks at what a consumer has got.
func (r *reader) take(i int, b []byte, t *tally) (err error) {
	c := &r.conns[i]
	if c.state == awaitingHead {
		var done bool
		if b, done = c.head.scan(b); !done {
			return nil
		}
		if !c.head.ok() {
			return fmt.Errorf("a consumer was answered with %q", c.head.status)
		}
		c.state = following
		r.opening--
		r.ready.Add(1)
		if r.churn {
			r.shut(c)
			return nil
		}
		if r.stalled {
			rawEpollCtl(r.epoll, unix.EPOLL_CTL_DEL, c.fd, 0, 0)
			return nil
		}
	}
	r.found = r.found[:0]
	for len(b) > 0 {
		var piece []byte
		if piece, b, err = c.body.next(b); err != nil {
			return err
		}
		if r.followers != nil {
			r.followers[i].take(piece)
		} else {
			r.found = c.stamps.scan(piece, r.found)
		}
	}
	if t != nil && len(r.found) > 0 {
		r.count(c, t)
	}
	return nil
}

// count adds the stamps that were found to the tally.
func (r *reader) count(c *conn, t *tally) {
	at, n := now(), int64(0)
	for _, stamp := range r.found {
		if stamp < t.since || r.ordered && stamp <= c.last {
			continue
		}
		c.last = stamp
		t.latency.add(at - stamp)
		n++
	}
	t.delivered.Add(n)
	t.last.Store(at)
}

func (r *reader) shut(c *conn) {
	rawClose(c.fd)
	c.state = closed
}

// subscribeRequest follows a channel.
func subscribeRequest(channel, lastID string) []byte {
	last := ""
	if lastID != "" {
		last = "Last-Event-ID: " + lastID + "\r\n"
	}
	return fmt.Appendf(nil, "GET /%s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n%s\r\n", channel, last)
}
