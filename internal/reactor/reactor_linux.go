package reactor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An Event is what happened on a descriptor.
type Event struct {
	Token    uint64 // as given to Add
	Readable bool   // there are bytes to read, or the other side has closed its half
	Writable bool   // there is room, after Writable was asked for
	Closed   bool   // hung up, reset or half-closed
}

// A Loop waits for events on many descriptors.
type Loop struct {
	// Waited says that the last Wait had to wait, and its goroutine with it.
	Waited bool

	epoll int
	raw   [256]unix.EpollEvent
	n     int // of raw, after a look

	// Not in an inner loop.
	wakeup int // an eventfd
	bell   *bell
}

// A bell wakes the goroutine that waits for a loop: the loop's epoll set stands in
// the bell's, and that in the one of Go's runtime, which parks the goroutine. A
// thread that waited in epoll_wait itself would look blocked to the runtime's monitor
// thread, which then wakes up again and again to take its processor away.
//
// It rings once each time that it was armed (EPOLLONESHOT). What happens while the
// goroutine is at work wakes nobody.
type bell struct {
	epoll *os.File
	raw   syscall.RawConn
	until time.Time // the deadline that was set last
	armed bool
	rung  func(epoll uintptr) bool // reports whether there is something, and arms it if not
	err   error                    // of rung
}

const wakeToken = ^uint64(0)

// New opens a loop, or says which limit is in the way.
func New() (*Loop, error) {
	l := &Loop{wakeup: -1}
	var err error
	if l.epoll, err = newEpoll(); err != nil {
		return nil, err
	}
	if err = l.open(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// open makes what is needed to wait and to wake.
func (l *Loop) open() error {
	bell, err := newBell(l)
	if err != nil {
		return err
	}
	l.bell = bell
	if l.wakeup, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	return control(l.epoll, unix.EPOLL_CTL_ADD, l.wakeup, unix.EPOLLIN, wakeToken)
}

func newBell(l *Loop) (*bell, error) {
	epoll, err := newEpoll()
	if err != nil {
		return nil, err
	}
	unix.SetNonblock(epoll, true) // which is how os learns that it can be waited for
	b := &bell{epoll: os.NewFile(uintptr(epoll), "epoll")}
	if err = b.epoll.SetDeadline(time.Time{}); err == nil {
		if b.raw, err = b.epoll.SyscallConn(); err == nil {
			err = control(epoll, unix.EPOLL_CTL_ADD, l.epoll, unix.EPOLLONESHOT, 0)
		}
	}
	if err != nil {
		b.epoll.Close()
		return nil, err
	}
	b.rung = func(epoll uintptr) bool {
		if b.armed {
			var told [1]unix.EpollEvent
			look(int(epoll), told[:])
			b.armed = false
			if b.err = l.poll(); l.n > 0 || b.err != nil {
				return true
			}
		}
		if b.err = control(int(epoll), unix.EPOLL_CTL_MOD, l.epoll, unix.EPOLLIN|unix.EPOLLONESHOT, 0); b.err != nil {
			return true
		}
		b.armed = true
		return false
	}
	return b, nil
}

// wait waits up to timeout until there is something in the loop, and looks at it.
func (b *bell) wait(timeout time.Duration) error {
	var until time.Time
	if timeout > 0 {
		until = time.Now().Add(timeout)
	}
	// To set a deadline may wake another thread.
	if until.Sub(b.until).Abs() > time.Millisecond {
		b.epoll.SetReadDeadline(until)
		b.until = until
	}
	if err := b.raw.Read(b.rung); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return b.err
}

func newEpoll() (int, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return epoll, os.NewSyscallError("epoll_create1", err)
}

// Close closes the loop, not the descriptors in it.
func (l *Loop) Close() {
	if l.bell != nil {
		l.bell.epoll.Close()
	}
	if l.wakeup >= 0 {
		unix.Close(l.wakeup)
	}
	unix.Close(l.epoll)
}

func control(epoll, op, fd int, events uint32, token uint64) error {
	ev := unix.EpollEvent{Events: events}
	*(*uint64)(unsafe.Pointer(&ev.Fd)) = token // the kernel's epoll_data: Fd and Pad
	for {
		err := unix.EpollCtl(epoll, op, fd, &ev)
		if err != unix.EINTR {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
}

const always = unix.EPOLLIN | unix.EPOLLRDHUP

// Add holds fd, which must not block, and reports what happens on it with
// token.
func (l *Loop) Add(fd int, token uint64) error {
	return control(l.epoll, unix.EPOLL_CTL_ADD, fd, always, token)
}

// Inner opens a loop within l, which reports with token, as Readable, that
// something has happened in it. It can be looked at, with a timeout of 0, and
// neither waited for nor woken.
func (l *Loop) Inner(token uint64) (*Loop, error) {
	epoll, err := newEpoll()
	if err != nil {
		return nil, err
	}
	if err := control(l.epoll, unix.EPOLL_CTL_ADD, epoll, unix.EPOLLIN, token); err != nil {
		unix.Close(epoll)
		return nil, err
	}
	return &Loop{epoll: epoll, wakeup: -1}, nil
}

// Remove lets go of fd, which stays open.
func (l *Loop) Remove(fd int) error {
	return control(l.epoll, unix.EPOLL_CTL_DEL, fd, 0, 0)
}

// Writable has the loop report that fd has room, or no longer.
func (l *Loop) Writable(fd int, token uint64, on bool) error {
	events := uint32(always)
	if on {
		events |= unix.EPOLLOUT
	}
	return control(l.epoll, unix.EPOLL_CTL_MOD, fd, events, token)
}

// Wait appends what happened to events. It waits up to timeout, for ever if
// that is negative, and returns at once for Wake. It may return early, with
// nothing.
func (l *Loop) Wait(events []Event, timeout time.Duration) ([]Event, error) {
	err := l.poll()
	l.Waited = l.n == 0 && err == nil && timeout != 0
	if l.Waited {
		err = l.bell.wait(timeout)
	}
	if err != nil {
		return events, err
	}
	for i := range l.raw[:l.n] {
		ev := &l.raw[i]
		token := *(*uint64)(unsafe.Pointer(&ev.Fd))
		if token == wakeToken {
			var b [8]byte
			Read(l.wakeup, b[:])
			continue
		}
		events = append(events, Event{
			Token:    token,
			Readable: ev.Events&unix.EPOLLIN != 0,
			Writable: ev.Events&unix.EPOLLOUT != 0,
			Closed:   ev.Events&(unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLRDHUP) != 0,
		})
	}
	return events, nil
}

// poll looks at what has happened.
func (l *Loop) poll() error {
	n, err := look(l.epoll, l.raw[:])
	l.n = n
	return err
}

// look is epoll_wait without waiting. It can't block, so the scheduler is not told
// of it (Write).
func look(epoll int, events []unix.EpollEvent) (int, error) {
	n, _, err := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if err == unix.EINTR {
		return 0, nil
	}
	if err != 0 {
		return 0, os.NewSyscallError("epoll_pwait", err)
	}
	return int(n), nil
}

// Wake makes a Wait return, this one or the next. Safe for concurrent use.
func (l *Loop) Wake() {
	some := [8]byte{1} // a number above 0 in either byte order, as eventfd wants
	Write(l.wakeup, some[:])
}

// Control calls f with the descriptor of a connection or a listener, which stays
// theirs.
func Control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("reactor: %w", err)
	}
	var result error
	err = raw.Control(func(fd uintptr) { result = f(int(fd)) })
	return errors.Join(err, result)
}

// LimitSilence sets how long data may stay unacknowledged before the kernel gives
// the peer up (TCP_USER_TIMEOUT, RFC 5482).
func LimitSilence(fd int, idle time.Duration) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(idle/time.Millisecond)))
}

// LimitUnsent sets about how many bytes the kernel takes for fd that it can't send
// yet (TCP_NOTSENT_LOWAT). What is in flight has no limit by it.
func LimitUnsent(fd, bytes int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes))
}

// A Listener accepts descriptors.
type Listener struct {
	f   *os.File // a duplicate: the net package's own can't be waited for
	raw syscall.RawConn
}

// Listen accepts the connections of l in its place, when something has come over
// them, or nothing for about silent (TCP_DEFER_ACCEPT). Both have to be closed.
func Listen(l *net.TCPListener, silent time.Duration) (*Listener, error) {
	seconds := int((silent + time.Second - 1) / time.Second)
	err := Control(l, func(fd int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, seconds))
	})
	if err != nil {
		return nil, err
	}
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Listener{f, raw}, nil
}

// Close ends Accept.
func (l *Listener) Close() error { return l.f.Close() }

// Accept waits for connections and stores their descriptors, which neither block nor
// delay (TCP_NODELAY, which those don't inherit that came before Listen), and the
// addresses of the other sides. There may be some with an error, too.
func (l *Listener) Accept(fds []int, peers []netip.AddrPort) (n int, err error) {
	var failed error
	err = l.raw.Read(func(listener uintptr) bool {
		for n < len(fds) {
			fd, peer, err := unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			switch err {
			case nil:
				unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
				fds[n], peers[n] = fd, addrPort(peer)
				n++
			case unix.EAGAIN:
				return n > 0
			case unix.EINTR, unix.ECONNABORTED:
			default:
				failed = os.NewSyscallError("accept4", err)
				return true
			}
		}
		return true
	})
	return n, errors.Join(err, failed)
}

// Passing reports whether Accept failed for a reason that will pass: the process
// or the system is at a limit.
func Passing(err error) bool {
	for _, passing := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EPERM} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(a.Addr).Unmap()
		if a.ZoneId != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(a.ZoneId), 10))
		}
		return netip.AddrPortFrom(addr, uint16(a.Port))
	}
	return netip.AddrPort{}
}

// Conn makes fd a connection of the net package.
func Conn(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // the connection has a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("reactor: a connection is a %T", c)
	}
	return tcp, nil
}

// Take takes the descriptor out of conn: a duplicate that does not block, in
// the caller's hands. conn is closed, the connection is not.
func Take(conn *net.TCPConn) (fd int, err error) {
	err = Control(conn, func(f int) error {
		fd, err = unix.FcntlInt(uintptr(f), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl", err)
	})
	if err != nil {
		return -1, err
	}
	conn.Close()
	return fd, nil
}

// Write writes b and returns how much of it the socket took. Full says that it
// has no room for the rest.
//
// The scheduler is not told of the system call: it can't block, and what it is
// told costs more than the rest of a write's user time.
func Write(fd int, b []byte) (n int, full bool, err error) {
	for n < len(b) {
		m, _, err := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[n])), uintptr(len(b)-n))
		switch err {
		case 0:
			n += int(m)
			if n < len(b) {
				return n, true, nil
			}
		case unix.EINTR:
		case unix.EAGAIN:
			return n, true, nil
		default:
			return n, false, os.NewSyscallError("write", err)
		}
	}
	return n, false, nil
}

// Read reads what has come in, up to the size of b, and reports whether the other
// side has closed its half or reset. It does not wait.
func Read(fd int, b []byte) (n int, closed bool) {
	for {
		n, _, err := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, false
		case err != 0 || n == 0:
			return 0, true
		default:
			return int(n), false
		}
	}
}

// Close closes fd after what was written to it.
func Close(fd int) { unix.Close(fd) }

// Abort resets fd's connection: what the kernel still holds for it is freed.
func Abort(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

// Finish ends what is written to fd, lets the other side know, and closes it.
func Finish(fd int) {
	unix.Shutdown(fd, unix.SHUT_WR)
	// Unread bytes would make the kernel reset the connection, and what was
	// written to it be lost.
	var scratch [4096]byte
	for range 16 {
		if n, closed := Read(fd, scratch[:]); n == 0 || closed {
			break
		}
	}
	unix.Close(fd)
}
