package main

import "golang.org/x/sys/unix"

// A floorChannel is who follows a channel and, for the batch floor, what was
// published and the pass over the consumers that sends it.
type floorChannel struct {
	consumers []int32

	log    []byte
	base   int64 // offset of the log's first byte since the beginning
	upTo   int64 // the log's end when the pass began
	next   int   // so many consumers are still to be looked at
	dirty  bool
	behind int // consumers that wait for room
}

// A log with consumers behind is kept until it has logMost bytes, then cut to
// logLeast. Who is further behind is dropped.
const (
	logMost  = 8 << 20
	logLeast = 4 << 20
)

func (c *floorChannel) end() int64 { return c.base + int64(len(c.log)) }

// append puts the frame into the log.
func (f *floor) append(id int32) {
	c := &f.channels[id]
	c.log = append(c.log, f.frame...)
	if !c.dirty {
		c.dirty = true
		f.begin(id)
	}
}

// begin starts a pass over the consumers of a channel.
func (f *floor) begin(id int32) {
	c := &f.channels[id]
	c.upTo, c.next = c.end(), len(c.consumers)
	if f.first > 1024 && f.first >= len(f.dirty)/2 {
		f.dirty = f.dirty[:copy(f.dirty, f.dirty[f.first:])]
		f.first = 0
	}
	f.dirty = append(f.dirty, id)
}

// flush sends what is pending to so many consumers.
func (f *floor) flush(budget int) {
	for budget > 0 && f.first < len(f.dirty) {
		id := f.dirty[f.first]
		c := &f.channels[id]
		c.next = min(c.next, len(c.consumers))
		for budget > 0 && c.next > 0 {
			c.next--
			if c.next >= len(c.consumers) {
				continue // some were dropped on the way
			}
			fd := c.consumers[c.next]
			if !f.full[fd] && f.cursor[fd] < c.end() {
				f.send(c, fd)
				budget--
			}
		}
		if c.next > 0 {
			return
		}
		c.trim()
		f.first++
		if c.end() > c.upTo {
			f.begin(id)
		} else {
			c.dirty = false
		}
	}
	if f.first == len(f.dirty) {
		f.dirty, f.first = f.dirty[:0], 0
	}
}

// trim lets go of what everyone has been offered.
func (c *floorChannel) trim() {
	n := c.upTo - c.base
	if c.behind > 0 {
		n = 0
		if len(c.log) > logMost {
			n = int64(len(c.log) - logLeast)
		}
	}
	c.log = c.log[:copy(c.log, c.log[n:])]
	c.base += n
}

// send writes all that is pending for a consumer.
func (f *floor) send(c *floorChannel, fd int32) {
	if f.cursor[fd] < c.base {
		f.drop(fd)
		return
	}
	pending := c.log[f.cursor[fd]-c.base:]
	n, e := rawWrite(fd, pending)
	if e != 0 && e != unix.EAGAIN {
		f.drop(fd)
		return
	}
	f.cursor[fd] += int64(max(n, 0))
	if n < len(pending) {
		f.full[fd] = true
		c.behind++
		rawEpollCtl(f.epoll, unix.EPOLL_CTL_MOD, fd, fd, floorEvents|unix.EPOLLOUT)
	}
}

// writable goes on with a consumer whose socket was full.
func (f *floor) writable(fd int32) {
	c := &f.channels[f.channelOf[fd]]
	f.full[fd] = false
	c.behind--
	if f.cursor[fd] < c.end() {
		f.send(c, fd)
	}
}
