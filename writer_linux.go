package eventsource

import (
	"bytes"
	"errors"
	"math"
	"net"
	"runtime"
	"time"

	"github.com/railsmechanic/eventsource/internal/reactor"
)

// stalled is what the reactor keeps of a consumer whose socket is full, or that
// sends something. Owned by its writer.
type stalled struct {
	place    int   // in reactorWriter.full
	moved    int64 // when bytes last left
	received int   // bytes after the request
}

const (
	beatSteps  = 64 // in a heartbeat's period
	beatSweeps = 8  // of all slots in that time

	// roomBytes is what is assembled for a socket that was full: it has seldom
	// room for more.
	roomBytes = 32 << 10

	// eventsTogether is how many events of the epoll set are handled before
	// clients are listened to, and what is new is looked for.
	eventsTogether = 16

	// offersTogether is how many consumers are offered what is new before
	// clients are listened to and answered: a publisher does not wait for all of
	// them to be served, and the events that it publishes meanwhile leave in one
	// write.
	offersTogether = 128

	// spell is how long the writer goes on before it lets other goroutines run.
	// The scheduler's monitor thread, which would see to that, may sleep, since
	// the writer makes no system call that it knows of. To step aside wakes a
	// thread that finds nothing to do and takes time from whoever reads the
	// events: a spell is longer than a pass over some thousand consumers.
	spell = 30 * time.Millisecond

	// touchedTogether is how many consumers are brought into the cache at a time:
	// few enough for them to stay in it.
	touchedTogether = 16

	// cutsTogether is how many slow consumers are cut off in one go: to free what
	// the kernel holds for one takes as long as to serve a dozen others.
	cutsTogether = 16
)

// A reactorWriter serves the consumers whose descriptors stand in its epoll
// set.
type reactorWriter struct {
	// Set when made.
	*writer
	s    *Server
	loop *reactor.Loop
	beat int64 // a heartbeat's period in nanoseconds; 0 none

	// Owned by the goroutine of run.
	pass    pass
	now     int64
	rested  int64 // when the goroutine last let others run
	events  []reactor.Event
	slots   []slot
	free    []uint32 // slots without a consumer
	full    []*consumer
	step    int64 // of now, beatSteps a period
	swept   int   // the next slot to look at for a heartbeat
	sweptAt int64 // the step in which that was done last
	frames  []*frame
	batch   []byte
	scratch []byte
	shared  shared
	counted counted
	touched uint64 // keeps the compiler from leaving touch out
	head    *plainHead

	clients *clients
}

// A slot is a consumer in the epoll set. Its generation tells an event of an
// earlier one with the same number apart.
type slot struct {
	c          *consumer
	generation uint32
	moved      uint32 // the step in which bytes last left
}

// shared are the bytes that several consumers at the same cursors get: every
// frame of one channel and of "all" above a Seq, up to the pass's mark.
type shared struct {
	channel *channel
	from    uint64
	frames  []*frame
	bytes   []byte
	ends    []int // where each frame ends in bytes
	whole   bool
}

// counted are the deliveries of a pass.
type counted struct{ events, bytes int }

// reactors returns the writers of the reactor, started when the first consumer
// comes: one for two cores. The other is for requests, the kernel's half of the
// network, and everything else on the machine; two writers on two cores only
// took turns with them.
func (s *Server) reactors() []*reactorWriter {
	s.reactorsOnce.Do(func() {
		for range (runtime.GOMAXPROCS(0) + 1) / 2 {
			w, err := s.newReactorWriter()
			if err != nil {
				s.log.Warn("no reactor: consumers are served by a goroutine each", "error", err)
				return
			}
			r := s.registry
			r.mu.Lock()
			w.closed = r.closed
			r.writers = append(r.writers[:len(r.writers):len(r.writers)], w.writer)
			r.mu.Unlock()
			s.writers = append(s.writers, w)
			go w.run()
		}
	})
	return s.writers
}

func (s *Server) newReactorWriter() (*reactorWriter, error) {
	outer, err := reactor.New()
	if err != nil {
		return nil, err
	}
	loop, err := outer.Inner(consumersToken)
	if err != nil {
		outer.Close()
		return nil, err
	}
	return &reactorWriter{
		writer:  &writer{r: s.registry, signal: outer.Wake, done: make(chan struct{})},
		s:       s,
		loop:    loop,
		beat:    int64(s.settings.Heartbeat),
		scratch: make([]byte, 16<<10),
		head:    s.newStreamHead(),
		clients: &clients{loop: outer, head: s.newReceiptHead()},
	}, nil
}

// limitSilence has the kernel give up a peer that acknowledges nothing for two
// heartbeats.
func (s *Server) limitSilence(tcp *net.TCPConn) {
	if s.settings.Heartbeat > 0 {
		if err := reactor.Control(tcp, func(fd int) error { return reactor.LimitSilence(fd, 2*s.settings.Heartbeat) }); err != nil {
			s.log.Debug("no TCP_USER_TIMEOUT", "error", err)
		}
	}
}

// react serves a subscription from the reactor; it reports false when the
// connection can't be held there.
func (s *Server) react(tcp *net.TCPConn, sub subscription) (bool, *Problem) {
	if len(s.reactors()) == 0 {
		return false, nil
	}
	fd, err := reactor.Take(tcp)
	if err != nil {
		s.log.Warn("a connection could not be handed to the reactor", "error", err)
		return false, nil
	}
	p := s.hold(fd, sub)
	if p != nil {
		refuseConsumer(fd, sub, p)
	}
	return true, p
}

// nextWriter returns the writers by turns.
func (s *Server) nextWriter() *reactorWriter {
	return s.writers[s.turn.Add(1)%uint64(len(s.writers))]
}

// hold has a writer serve a subscription on a descriptor, which stays the
// caller's when it is refused.
func (s *Server) hold(fd int, sub subscription) *Problem {
	w := s.nextWriter()
	// A listener of Multipath TCP, as Go opens them, hands neither down.
	err := reactor.LimitUnsent(fd, roomBytes)
	if h := s.settings.Heartbeat; h > 0 {
		err = errors.Join(err, reactor.LimitSilence(fd, 2*h))
	}
	if err != nil {
		s.log.Debug("a consumer's connection has not all its limits", "error", err)
	}
	sub.fd = fd
	_, p := s.registry.join(sub, w.writer, s.settings.Retry)
	return p
}

// refuseConsumer tells a consumer whose response has begun that it is refused.
func refuseConsumer(fd int, sub subscription, p *Problem) {
	reactor.Write(fd, sub.refusal(p))
	reactor.Finish(fd)
}

// run is the writer's life.
func (w *reactorWriter) run() {
	defer close(w.done)
	defer w.loop.Close()
	w.tick()
	next := w.now
	for {
		w.serve()
		if w.pass.closed {
			for i := range w.slots {
				if c := w.slots[i].c; c != nil {
					w.disconnect(c, endDraining)
				}
			}
			w.take(&w.pass)
			w.dismiss()
			return
		}
		if w.now >= next {
			next = w.now + w.tend()
		}
		w.sleeping.Store(true)
		timeout := time.Duration(next - w.r.clock())
		if w.stirred.Load() || w.pass.unfinished() {
			w.sleeping.Store(false)
			timeout = 0
		}
		if w.listen(max(timeout, 0)) {
			w.attend()
		}
	}
}

// attend handles what the consumers' epoll set tells.
func (w *reactorWriter) attend() {
	var err error
	if w.events, err = w.loop.Wait(w.events[:0], 0); err != nil {
		w.fail(err)
		return
	}
	w.tick()
	for i, e := range w.events {
		if i%eventsTogether == eventsTogether-1 {
			w.listen(0)
			if w.stirred.Load() {
				w.serve() // what is new does not wait for who was behind
			} else {
				w.reply()
			}
		}
		w.handle(e)
	}
}

// fail says that an epoll set can't be waited for, and waits.
func (w *reactorWriter) fail(err error) {
	w.s.log.Error("the reactor can't wait for its connections", "error", err)
	time.Sleep(10 * time.Millisecond)
}

// tick reads the clock.
func (w *reactorWriter) tick() {
	w.now = w.r.clock()
	if w.beat > 0 {
		w.step = w.now / (w.beat / beatSteps)
	}
}

// serve makes one pass: it meets who has joined, offers what is new to everybody
// who follows it, and ends who is to be ended.
func (w *reactorWriter) serve() {
	p := &w.pass
	w.take(p)
	w.welcome()
	w.shared.channel = nil
	many := len(p.joins)
	for _, s := range p.sides {
		many += len(s.members)
	}
	if many > offersTogether {
		w.reply()
	}
	for _, c := range p.joins {
		w.meet(c)
	}
	offers := 0
	for _, s := range p.sides {
		for i, c := range s.members {
			if i%touchedTogether == 0 {
				w.touch(s.members[i:min(i+touchedTogether, len(s.members))])
			}
			if !c.full && c.fd >= 0 {
				w.offer(c, s)
				if offers++; offers%offersTogether == 0 {
					w.listen(0)
					w.reply()
				}
			}
		}
	}
	w.reply()
	for _, e := range p.ends {
		if e.consumer != nil {
			w.finish(e.consumer, e.reason)
			continue
		}
		if e.side == nil {
			for i := range w.slots {
				if c := w.slots[i].c; c != nil {
					w.finish(c, e.reason)
				}
			}
			continue
		}
		for _, c := range e.side.members {
			if c.start < e.before {
				w.finish(c, e.reason)
			}
		}
	}
	w.shared.channel = nil
	clear(w.shared.frames)
	w.shared.frames = w.shared.frames[:0]
	if cap(w.shared.bytes) > 4*batchBytes {
		w.shared.bytes = nil
	}
	if w.counted != (counted{}) {
		w.s.stats.deliver(w.counted.events, w.counted.bytes)
		w.counted = counted{}
	}
}

// meet takes a new consumer into the epoll set and gives it what its stream
// begins with.
func (w *reactorWriter) meet(c *consumer) {
	n := len(w.free)
	if n > 0 {
		c.slot = w.free[n-1]
		w.free = w.free[:n-1]
	} else {
		c.slot = uint32(len(w.slots))
		w.slots = append(w.slots, slot{})
	}
	w.slots[c.slot].c, w.slots[c.slot].moved = c, uint32(w.step)
	c.awaited = true
	if err := w.loop.Add(int(c.fd), w.token(c)); err != nil {
		w.s.log.Warn("a consumer could not be taken into the reactor", "error", err)
		w.disconnect(c, endGone)
		return
	}
	w.catchUp(c, c.rare == nil)
}

// greeting appends what a plain stream begins with to b.
func (w *reactorWriter) greeting(b []byte, c *consumer) []byte {
	now := time.Now()
	b = append(b, w.head.at(now.Unix())...)
	id := w.pass.epoch.position(c.pos.Load(), now).encode()
	return c.frameText(b, beginText("", id, w.s.settings.Retry))
}

func (w *reactorWriter) token(c *consumer) uint64 {
	return uint64(w.slots[c.slot].generation)<<32 | uint64(c.slot)
}

// touch reads what is needed of consumers to write to them. Each is in memory that
// the kernel's work for others has pushed out of the cache since the last event;
// read together, they are waited for once.
func (w *reactorWriter) touch(consumers []*consumer) {
	var sum uint64
	for _, c := range consumers {
		sum += c.pos.Load() + uint64(c.fd) + uint64(w.slots[c.slot].moved)
	}
	w.touched = sum
}

// offer writes everything between the consumer's cursor and the mark, with the
// bytes of the one before it where they are the same.
func (w *reactorWriter) offer(c *consumer, s *side) {
	pos := c.pos.Load()
	if pos >= w.pass.mark {
		return
	}
	if !c.plain {
		w.catchUp(c, false)
		return
	}
	named := s.channel
	if named == w.r.all {
		named = c.first.side.channel
	}
	if named.last.Load() <= pos {
		named = nil // only "all" has something
	}
	sh := &w.shared
	if sh.channel == nil || sh.channel != orAll(named, w.r.all) || pos < sh.from {
		w.assemble(named, min(pos, s.offered))
	}
	if !sh.whole || len(sh.bytes) > batchBytes {
		w.catchUp(c, false)
		return
	}
	i := 0
	for i < len(sh.frames) && sh.frames[i].seq <= pos {
		i++
	}
	if i == len(sh.frames) {
		c.pos.Store(w.pass.mark)
		c.untold = true
		return
	}
	begin := 0
	if i > 0 {
		begin = sh.ends[i-1]
	}
	b := sh.bytes[begin:]
	n, full, ok := w.write(c, b)
	if !ok {
		return
	}
	if !full {
		w.counted.events += len(sh.frames) - i
		c.untold = w.pass.mark > sh.frames[len(sh.frames)-1].seq
		c.pos.Store(w.pass.mark)
		return
	}
	// The first frame that is not wholly sent is kept by its own bytes.
	n += begin
	for i < len(sh.frames) && sh.ends[i] <= n {
		w.counted.events++
		w.sent(c, sh.frames[i].seq)
		i++
	}
	start := 0
	if i > 0 {
		start = sh.ends[i-1]
	}
	if n > start {
		w.keep(c, sh.frames[i].chunk[n-start:])
		w.sent(c, sh.frames[i].seq)
		w.counted.events++
	}
	w.stall(c)
}

// sent moves the consumer's cursor to a frame that it has, or has the begin of.
func (w *reactorWriter) sent(c *consumer, seq uint64) {
	c.pos.Store(seq)
	c.untold = false
}

// keep has b sent before everything else, as soon as the socket takes it.
func (w *reactorWriter) keep(c *consumer, b []byte) {
	if c.rare == nil {
		c.rare = &rare{}
	}
	c.pending = b
}

func orAll(ch, all *channel) *channel {
	if ch == nil {
		return all
	}
	return ch
}

// assemble makes the bytes above from that a channel and "all" have for plain
// consumers; nil is "all" alone.
func (w *reactorWriter) assemble(named *channel, from uint64) {
	sh := &w.shared
	sh.channel, sh.from = orAll(named, w.r.all), from
	clear(sh.frames)
	sh.frames, sh.bytes, sh.ends, sh.whole = sh.frames[:0], sh.bytes[:0], sh.ends[:0], true
	if named != nil {
		sh.frames, _, sh.whole = named.read(sh.frames, from, w.pass.mark, 0, math.MaxInt)
	}
	if sh.whole && w.r.all.last.Load() > from {
		n := len(sh.frames)
		sh.frames, _, sh.whole = w.r.all.read(sh.frames, from, w.pass.mark, 0, math.MaxInt)
		if n > 0 && len(sh.frames) > n {
			sh.frames = merge(sh.frames)
		}
	}
	for _, f := range sh.frames {
		sh.bytes = append(sh.bytes, f.chunk...)
		sh.ends = append(sh.ends, len(sh.bytes))
		if len(sh.bytes) > batchBytes {
			return // each is served on its own
		}
	}
}

// catchUp writes what is pending and then what is between the consumer's cursor
// and the mark, until it has all or its socket is full. A consumer without
// anything pending is greeted first, if it is new.
func (w *reactorWriter) catchUp(c *consumer, greet bool) {
	const turns = 8 // batches before the others get their turn
	most := batchBytes
	if c.full {
		most = roomBytes
	}
	for range turns {
		w.batch = w.batch[:0]
		if greet {
			w.batch, greet = w.greeting(w.batch, c), false
		} else if c.rare != nil {
			w.batch = append(w.batch, c.pending...)
		}
		pending := len(w.batch)
		var upTo uint64
		var whole bool
		w.frames, upTo, whole = c.collect(w.frames[:0], w.pass.mark, most)
		if !whole && pending == 0 {
			w.finish(c, endSlow)
			return
		}
		for _, f := range w.frames {
			w.batch = append(w.batch, c.bytes(f)...)
		}
		n, full := 0, false
		if len(w.batch) > 0 {
			var ok bool
			if n, full, ok = w.write(c, w.batch); !ok {
				return
			}
		}
		if n < pending {
			w.keep(c, bytes.Clone(w.batch[n:pending]))
		} else {
			if c.rare != nil {
				c.pending = nil
			}
			n -= pending
			for _, f := range w.frames {
				if n == 0 {
					break
				}
				b := c.bytes(f)
				w.sent(c, f.seq)
				w.counted.events++
				if n < len(b) {
					w.keep(c, b[n:])
					break
				}
				n -= len(b)
			}
		}
		clear(w.frames)
		if cap(w.batch) > 4*batchBytes {
			w.batch = nil
		}
		if full {
			w.stall(c)
			return
		}
		if c.pos.Load() < upTo { // of no log that it follows, or not wanted
			c.pos.Store(upTo)
			c.untold = true
		}
		if whole && upTo >= w.pass.mark {
			w.caughtUp(c)
			return
		}
	}
	w.stall(c) // the loop reports it writable at once
}

// write sends b as far as the consumer's socket has room, and disconnects it
// when it is gone: false.
func (w *reactorWriter) write(c *consumer, b []byte) (n int, full, ok bool) {
	n, full, err := reactor.Write(int(c.fd), b)
	if err != nil {
		w.disconnect(c, endGone)
		return n, full, false
	}
	if n > 0 {
		w.slots[c.slot].moved = uint32(w.step)
		if c.full {
			c.moved = w.now
		}
	}
	w.counted.bytes += n
	return n, full, true
}

// stall waits for room in the consumer's socket.
func (w *reactorWriter) stall(c *consumer) {
	if c.full {
		return
	}
	if c.rare == nil {
		c.rare = &rare{}
	}
	c.full = true
	c.awaited = true
	c.moved = w.now
	c.place = len(w.full)
	w.full = append(w.full, c)
	w.pass.turned = append(w.pass.turned, c)
	if err := w.loop.Writable(int(c.fd), w.token(c), true); err != nil {
		w.disconnect(c, endGone)
	}
}

// caughtUp takes the consumer back among those that are offered what is new.
func (w *reactorWriter) caughtUp(c *consumer) {
	if !c.awaited {
		return
	}
	c.awaited = false
	w.pass.turned = append(w.pass.turned, c)
	full := c.full
	if full {
		w.unstall(c)
	}
	if c.plain && c.rare != nil && c.received == 0 {
		c.rare = nil // what it asked for at its begin, it has
	}
	if !full {
		return
	}
	if err := w.loop.Writable(int(c.fd), w.token(c), false); err != nil {
		w.disconnect(c, endGone)
	}
}

func (w *reactorWriter) unstall(c *consumer) {
	c.full = false
	last := len(w.full) - 1
	w.full[c.place] = w.full[last]
	w.full[c.place].place = c.place
	w.full[last] = nil
	w.full = w.full[:last]
}

// handle does what an event of the epoll set asks for.
func (w *reactorWriter) handle(e reactor.Event) {
	i := uint32(e.Token)
	if int(i) >= len(w.slots) || w.slots[i].c == nil || w.slots[i].generation != uint32(e.Token>>32) {
		return
	}
	c := w.slots[i].c
	if e.Closed {
		w.disconnect(c, endGone)
		return
	}
	if e.Readable {
		n, closed := reactor.Read(int(c.fd), w.scratch)
		if closed {
			w.disconnect(c, endGone)
			return
		}
		if n > 0 {
			if c.rare == nil {
				c.rare = &rare{}
			}
			if c.received += n; c.received > noisyBytes {
				w.disconnect(c, endNoisy)
				return
			}
		}
	}
	if e.Writable && c.full {
		w.catchUp(c, false)
	}
}

// finish ends a stream with its reason, if its socket still takes that, and
// disconnects the consumer.
func (w *reactorWriter) finish(c *consumer, reason string) {
	if c.fd < 0 {
		return
	}
	if !c.full && (c.rare == nil || c.pending == nil) {
		tail := endText(reason, w.s.returnAfter(reason))
		if !c.raw {
			tail = string(newChunk(tail)) + "0\r\n\r\n"
		}
		reactor.Write(int(c.fd), []byte(tail))
	}
	w.disconnect(c, reason)
}

// disconnect closes the consumer's connection and takes it out of everything.
func (w *reactorWriter) disconnect(c *consumer, reason string) {
	if c.fd < 0 {
		return
	}
	switch {
	case reason == endGone:
		reactor.Close(int(c.fd))
	case c.full:
		reactor.Abort(int(c.fd))
	default:
		reactor.Finish(int(c.fd))
	}
	c.fd = -1
	w.slots[c.slot].c = nil
	w.slots[c.slot].generation++
	w.free = append(w.free, c.slot)
	if c.full {
		w.unstall(c)
	}
	c.rare = nil
	w.pass.left = append(w.pass.left, departure{c, reason})
}

// tend cuts off who makes no progress and sends the heartbeats that are due. It
// returns when to call it again, in nanoseconds.
func (w *reactorWriter) tend() int64 {
	timeout := int64(w.s.settings.Timeout)
	again := min(timeout/8, int64(time.Second))
	cut := 0
	for i := len(w.full) - 1; i >= 0; i-- {
		if c := w.full[i]; w.now-c.moved >= timeout {
			if cut++; cut > cutsTogether {
				again = 0 // the others after those that wait for what is new
				break
			}
			w.disconnect(c, endSlow)
		}
	}
	w.sweep()
	if w.beat == 0 {
		return again
	}
	var beats beats
	share := int64(len(w.slots))*(w.step-w.sweptAt)/(beatSteps/beatSweeps) + 1
	w.sweptAt = w.step
	for range min(share, int64(len(w.slots))) {
		if w.swept >= len(w.slots) {
			w.swept = 0
		}
		s := &w.slots[w.swept]
		// Who got the same event is not due in the same moment.
		if due := uint32(beatSteps - beatSteps/beatSweeps - w.swept%(beatSteps/4)); s.c != nil && uint32(w.step)-s.moved >= due {
			w.pulse(s.c, &beats)
		}
		w.swept++
	}
	return min(again, w.beat/beatSteps)
}

// beats are the bytes of the heartbeats of one moment: without and with the
// mark.
type beats [2][]byte

// of returns the bytes of a kind.
func (b *beats) of(kind int, w *reactorWriter) []byte {
	if b[kind] == nil {
		text := ":\n\n"
		if kind == 1 {
			id := w.pass.epoch.position(w.pass.mark, time.Now()).encode()
			text = ":\nid: " + string(id[:]) + "\n\n"
		}
		b[kind] = newChunk(text)
	}
	return b[kind]
}

// pulse sends a heartbeat to a consumer that got nothing else for a period.
func (w *reactorWriter) pulse(c *consumer, beats *beats) {
	w.slots[c.slot].moved = uint32(w.step)
	if c.full {
		return
	}
	kind := 0
	if c.untold || w.pass.mark > c.pos.Load() {
		kind = 1
	}
	b := beats.of(kind, w)
	if c.raw {
		b = chunkText(b)
	}
	n, full, ok := w.write(c, b)
	if !ok {
		return
	}
	if kind == 1 && n > 0 {
		w.sent(c, max(c.pos.Load(), w.pass.mark))
	}
	if full {
		if 0 < n && n < len(b) {
			w.keep(c, b[n:])
		}
		w.stall(c)
	}
}

const hasReactor = true
