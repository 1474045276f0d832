package reactor

import (
	"errors"
	"fmt"
	"net"
	"os"
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
	wakeup int // an eventfd
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
	unix.Close(l.wakeup)
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

// UserTimeout sets how long data may stay unacknowledged before the kernel gives
// the peer up (TCP_USER_TIMEOUT, RFC 5482).
func UserTimeout(conn *net.TCPConn, idle time.Duration) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("reactor: %w", err)
	}
	var set error
	err = raw.Control(func(f uintptr) {
		set = unix.SetsockoptInt(int(f), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(idle/time.Millisecond))
	})
	return errors.Join(err, set)
}

// Take takes the descriptor out of conn: a duplicate that does not block, in
// the caller's hands. conn is closed, the connection is not. idle is as in
// UserTimeout; 0 leaves it to the kernel.
func Take(conn *net.TCPConn, idle time.Duration) (fd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("reactor: %w", err)
	}
	var dup error
	err = raw.Control(func(f uintptr) {
		if fd, dup = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0); dup != nil {
			return
		}
		if idle > 0 {
			dup = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(idle/time.Millisecond))
		}
	})
	if err = errors.Join(err, dup); err != nil {
		if fd > 0 {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("reactor: %w", err)
	}
	conn.Close()
	return fd, nil
}

// Write writes b and returns how much of it the socket took. Full says that it
// has no room for the rest.
func Write(fd int, b []byte) (n int, full bool, err error) {
	for n < len(b) {
		m, err := unix.Write(fd, b[n:])
		switch err {
		case nil:
			n += m
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

// Drain reads and drops what has come in, up to the size of scratch, and
// reports whether the other side has closed its half or reset.
func Drain(fd int, scratch []byte) (n int, closed bool) {
	for {
		n, err := unix.Read(fd, scratch)
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

// Finish ends what is written to fd, lets the other side know, and closes it.
func Finish(fd int) {
	unix.Shutdown(fd, unix.SHUT_WR)
	// Unread bytes would make the kernel reset the connection, and what was
	// written to it be lost.
	var scratch [4096]byte
	for range 16 {
		if n, closed := Drain(fd, scratch[:]); n == 0 || closed {
			break
		}
	}
	unix.Close(fd)
}
