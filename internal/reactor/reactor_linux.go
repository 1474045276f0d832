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
	epoll  int
	wakeup int // an eventfd; -1 in an inner loop
	raw    [256]unix.EpollEvent
}

const wakeToken = ^uint64(0)

// New opens a loop, or says which limit is in the way.
func New() (*Loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, os.NewSyscallError("eventfd", err)
	}
	l := &Loop{epoll: epoll, wakeup: wakeup}
	if err := l.control(unix.EPOLL_CTL_ADD, wakeup, unix.EPOLLIN, wakeToken); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close closes the loop, not the descriptors in it.
func (l *Loop) Close() {
	if l.wakeup >= 0 {
		unix.Close(l.wakeup)
	}
	unix.Close(l.epoll)
}

func (l *Loop) control(op, fd int, events uint32, token uint64) error {
	ev := unix.EpollEvent{Events: events}
	*(*uint64)(unsafe.Pointer(&ev.Fd)) = token // the kernel's epoll_data: Fd and Pad
	for {
		err := unix.EpollCtl(l.epoll, op, fd, &ev)
		if err != unix.EINTR {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
}

const always = unix.EPOLLIN | unix.EPOLLRDHUP

// Add holds fd, which must not block, and reports what happens on it with
// token.
func (l *Loop) Add(fd int, token uint64) error {
	return l.control(unix.EPOLL_CTL_ADD, fd, always, token)
}

// Inner opens a loop within l, which reports with token, as Readable, that
// something has happened in it. Only l can be woken.
func (l *Loop) Inner(token uint64) (*Loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := l.control(unix.EPOLL_CTL_ADD, epoll, unix.EPOLLIN, token); err != nil {
		unix.Close(epoll)
		return nil, err
	}
	return &Loop{epoll: epoll, wakeup: -1}, nil
}

// Remove lets go of fd, which stays open.
func (l *Loop) Remove(fd int) error {
	return l.control(unix.EPOLL_CTL_DEL, fd, 0, 0)
}

// Writable has the loop report that fd has room, or no longer.
func (l *Loop) Writable(fd int, token uint64, on bool) error {
	events := uint32(always)
	if on {
		events |= unix.EPOLLOUT
	}
	return l.control(unix.EPOLL_CTL_MOD, fd, events, token)
}

// Wait appends what happened to events. It waits up to timeout, for ever if
// that is negative, and returns at once for Wake.
func (l *Loop) Wait(events []Event, timeout time.Duration) ([]Event, error) {
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.EpollWait(l.epoll, l.raw[:], ms)
	if err == unix.EINTR {
		return events, nil
	}
	if err != nil {
		return events, os.NewSyscallError("epoll_wait", err)
	}
	for i := range l.raw[:n] {
		ev := &l.raw[i]
		token := *(*uint64)(unsafe.Pointer(&ev.Fd))
		if token == wakeToken {
			var b [8]byte
			unix.Read(l.wakeup, b[:])
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

// Wake makes a Wait return, this one or the next. Safe for concurrent use.
func (l *Loop) Wake() {
	some := [8]byte{1} // a number above 0 in either byte order, as eventfd wants
	unix.Write(l.wakeup, some[:])
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

// A Listener accepts descriptors.
type Listener struct {
	f   *os.File // a duplicate: the net package's own can't be waited for
	raw syscall.RawConn
}

// Listen accepts the connections of l in its place: without delay (TCP_NODELAY),
// only when something has come over them, or nothing for about silent
// (TCP_DEFER_ACCEPT), and with no more than about unsent bytes of each in the
// kernel that could not be sent yet (TCP_NOTSENT_LOWAT). Both have to be closed.
func Listen(l *net.TCPListener, silent time.Duration, unsent int) (*Listener, error) {
	seconds := int((silent + time.Second - 1) / time.Second)
	err := Control(l, func(fd int) error {
		return os.NewSyscallError("setsockopt", errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), // its connections inherit it
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, seconds)))
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

// Accept waits for connections and stores their descriptors, which do not block,
// and the addresses of the other sides. There may be some with an error, too.
func (l *Listener) Accept(fds []int, peers []netip.AddrPort) (n int, err error) {
	var failed error
	err = l.raw.Read(func(listener uintptr) bool {
		for n < len(fds) {
			fd, peer, err := unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			switch err {
			case nil:
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
		n, err := unix.Read(fd, b)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, false
		case err != nil || n == 0:
			return 0, true
		default:
			return n, false
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
