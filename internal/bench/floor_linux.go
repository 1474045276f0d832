package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// A floor is the least that a server can do: one thread, one epoll set, and for
// a consumer its place in a channel. A request has to come in one read.
//
// GET /x follows channel x, POST /x sends the body as an event to its
// consumers, and POST /all to everyone.
type floor struct {
	epoll, listener int
	names           map[string]int32
	channels        []floorChannel // none has the number 0

	// By descriptor.
	channelOf, placeOf []int32
	cursor             []int64 // of the batch floor: how far into the log
	full               []bool  // of the batch floor: waits for room

	batch bool
	dirty []int32 // of the batch floor: channels with something to send, from first on
	first int

	in    [64 << 10]byte
	frame []byte
}

const (
	floorHead   = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
	floorAnswer = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"

	floorEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET
)

var (
	floorHeadBytes   = []byte(floorHead)
	floorAnswerBytes = []byte(floorAnswer)
)

// serveFloor serves until the process is ended, or returns what went wrong. The
// batch floor keeps a log for each channel and sends all that is pending at once.
func serveFloor(addr string, batch bool) error {
	runtime.LockOSThread()
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1) // nothing here makes garbage, and the thread waits inside a raw call
	limit, err := raiseDescriptors()
	if err != nil {
		return err
	}
	limit = min(limit, 1<<20)
	f := &floor{
		names:     map[string]int32{},
		channels:  make([]floorChannel, 1),
		channelOf: make([]int32, limit),
		placeOf:   make([]int32, limit),
		batch:     batch,
	}
	if batch {
		f.cursor, f.full = make([]int64, limit), make([]bool, limit)
	}
	if err := f.listen(addr); err != nil {
		return err
	}
	return f.serve()
}

func (f *floor) listen(addr string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil || !at.Addr().Is4() {
		return fmt.Errorf("floor: %q is not an IPv4 address and port", addr)
	}
	if f.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("socket", err)
	}
	unix.SetsockoptInt(f.listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(f.listener, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(f.listener, 65535); err != nil {
		return os.NewSyscallError("listen", err)
	}
	if f.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if e := rawEpollCtl(f.epoll, unix.EPOLL_CTL_ADD, int32(f.listener), int32(f.listener), unix.EPOLLIN); e != 0 {
		return os.NewSyscallError("epoll_ctl", e)
	}
	return nil
}

// flushAtMost is how many consumers the batch floor sends to between two looks
// at the epoll set.
const flushAtMost = 128

func (f *floor) serve() error {
	events := make([]unix.EpollEvent, 512)
	for {
		wait := -1
		if f.first < len(f.dirty) {
			wait = 0
		}
		n, e := rawEpollWait(f.epoll, events, wait)
		if e != 0 && e != unix.EINTR {
			return os.NewSyscallError("epoll_wait", e)
		}
		for i := range max(n, 0) {
			ev := &events[i]
			if ev.Fd == int32(f.listener) {
				f.accept()
				continue
			}
			if f.batch && f.full[ev.Fd] && ev.Events&unix.EPOLLOUT != 0 {
				f.writable(ev.Fd)
			}
			f.read(ev.Fd, ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0)
		}
		if f.batch {
			f.flush(flushAtMost)
		}
	}
}

func (f *floor) accept() {
	for range 64 {
		fd, e := rawAccept(f.listener)
		if e != 0 {
			return
		}
		if int(fd) >= len(f.channelOf) {
			rawClose(fd)
			return
		}
		rawNoDelay(fd)
		rawEpollCtl(f.epoll, unix.EPOLL_CTL_ADD, fd, fd, floorEvents)
	}
}

// read takes a request, and goes on until the end if the other side has closed.
func (f *floor) read(fd int32, closed bool) {
	for {
		n, e := rawRead(fd, f.in[:])
		if e == unix.EAGAIN || e == unix.EBADF {
			return
		}
		if e != 0 || n == 0 {
			f.drop(fd)
			return
		}
		f.request(fd, f.in[:n])
		if !closed {
			return
		}
	}
}

func (f *floor) request(fd int32, req []byte) {
	verb, rest, _ := bytes.Cut(req, []byte(" /"))
	name, _, _ := bytes.Cut(rest, []byte(" "))
	if len(verb) == 3 {
		f.follow(fd, f.channel(name))
		return
	}
	_, body, _ := bytes.Cut(rest, []byte("\r\n\r\n"))
	f.frame = strconv.AppendInt(f.frame[:0], int64(len("data: ")+len(body)+len("\n\n")), 16)
	f.frame = append(f.frame, "\r\ndata: "...)
	f.frame = append(f.frame, body...)
	f.frame = append(f.frame, "\n\n\r\n"...)
	switch all := string(name) == "all"; {
	case all && f.batch:
		for i := range f.channels {
			f.publish(int32(i))
		}
	case all:
		for fd, id := range f.channelOf {
			if id != 0 {
				f.write(int32(fd))
			}
		}
	default:
		f.publish(f.channel(name))
	}
	if n, _ := rawWrite(fd, floorAnswerBytes); n != len(floorAnswerBytes) {
		f.drop(fd)
	}
}

func (f *floor) channel(name []byte) int32 {
	id, ok := f.names[string(name)]
	if !ok {
		id = int32(len(f.channels))
		f.names[string(name)] = id
		f.channels = append(f.channels, floorChannel{})
	}
	return id
}

func (f *floor) follow(fd, id int32) {
	c := &f.channels[id]
	f.channelOf[fd], f.placeOf[fd] = id, int32(len(c.consumers))
	c.consumers = append(c.consumers, fd)
	if f.batch {
		f.cursor[fd] = c.end()
	}
	if n, _ := rawWrite(fd, floorHeadBytes); n != len(floorHeadBytes) {
		f.drop(fd)
	}
}

// publish sends the frame to the consumers of a channel: with one write each,
// or by way of the log.
func (f *floor) publish(id int32) {
	c := &f.channels[id]
	if f.batch {
		if len(c.consumers) > 0 {
			f.append(id)
		}
		return
	}
	for i := len(c.consumers) - 1; i >= 0; i-- {
		f.write(c.consumers[i])
	}
}

// write sends the frame to a consumer, and drops who has no room for it.
func (f *floor) write(fd int32) {
	if n, _ := rawWrite(fd, f.frame); n != len(f.frame) {
		f.drop(fd)
	}
}

// drop closes a connection; the last consumer of its channel takes its place.
func (f *floor) drop(fd int32) {
	if id := f.channelOf[fd]; id != 0 {
		c := &f.channels[id]
		last := c.consumers[len(c.consumers)-1]
		c.consumers[f.placeOf[fd]], f.placeOf[last] = last, f.placeOf[fd]
		c.consumers = c.consumers[:len(c.consumers)-1]
		f.channelOf[fd] = 0
		if f.batch && f.full[fd] {
			f.full[fd] = false
			c.behind--
		}
	}
	rawClose(fd)
}
