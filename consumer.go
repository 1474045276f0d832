package eventsource

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// The types of the events that the server itself sends, without an id.
const (
	gapType = reservedType + "gap"
	endType = reservedType + "end"
)

// Why a stream ends, as eventsource.end and the metrics say it.
const (
	endClosed   = "closed"   // its channel was deleted
	endSlow     = "slow"     // it made no progress, or fell behind what is kept
	endDraining = "draining" // the server shuts down
	endExpired  = "expired"  // its token ended
	endRevoked  = "revoked"  // its token is gone, or grants it no longer
	endGone     = "gone"     // the other side went away
	endNoisy    = "noisy"    // it sent what no consumer sends
)

// noisyBytes is what a consumer may send after its request before it is cut.
const noisyBytes = 64 << 10

// A consumer follows channels over one connection. Where it stands in all of
// them is one number, since the order is one: every event up to pos that it
// follows, it has.
//
// There may be a million that wait, of 80 bytes each. What only some have, or
// all for a moment, is in rare.
type consumer struct {
	// Changed with registry.mu held.
	first  follow // the channel that it named first
	global follow // "all"
	wider  *wider // nil: it named one channel, and came without a token

	// Set when made, then only read.
	start uint64 // the mark when it joined

	// Owned by who writes: the writer, or a portable consumer's goroutine.
	pos atomic.Uint64
	*rare

	// What a writer reads for each event stands together. Owned by it.
	fd      int32 // of the reactor; -1: it is closed
	slot    uint32
	full    bool // the socket has no room; its return is awaited
	awaited bool // its logs keep for it what it has not got
	untold  bool // pos is past the id that was sent last

	// Set when made, then only read.
	plain bool // gets exactly the frames of one channel and of "all", as chunks, so that it can share the bytes of others there
	hides bool // gets nothing private by "*"; is not plain
	raw   bool // gets text and not chunks: HTTP/1.0, net/http's own chunking

	// Changed with registry.mu held.
	gone    bool // has left
	blocked bool // counted in its sides' stalled
}

// A wider is what a consumer has that followed several channels or came with a
// token. Changed with registry.mu held.
type wider struct {
	follows  []follow   // the channels that it named after the first
	identity *identity  // its token's; nil: it came without
	place    int        // in registry.expiries; -1: its token never ends
	address  netip.Addr // that it is counted for; the zero one: for none
}

// identity returns whose token the consumer came with, nil without one.
func (c *consumer) identity() *identity {
	if c.wider == nil {
		return nil
	}
	return c.wider.identity
}

// A rare is what few consumers have, or have for a while only.
type rare struct {
	// Set when made, then only read.
	filter   []string // types; nil: all
	envelope bool
	joined   int64         // by registry.clock
	forgiven uint64        // up to here a log may lack what the consumer has not got: it was told of the gap, or came without an id
	wake     chan struct{} // of a portable consumer: there may be something to write
	gap      string        // what the stream's first event says of a gap; "" none

	ending atomic.Pointer[lastWords] // of a portable consumer that is to end

	// Owned by who writes.
	pending []byte // what is to be sent before everything else: the rest of a short write, what a stream begins with
	stalled
}

// A follow is a channel that a consumer follows.
type follow struct {
	side  *side
	index int32 // its place in side.members, -1 until the writer has met it

	// half is one of the consumer's number, which has no room elsewhere: the high
	// one in consumer.first, the low one in consumer.global.
	half uint32
}

// number tells consumers apart: the Unix microseconds of when it joined, or the next
// that is free.
func (c *consumer) number() uint64 { return uint64(c.first.half)<<32 | uint64(c.global.half) }

// logs yields the channels that the consumer follows, in the order in which it
// named them, "all" at the end.
func (c *consumer) logs(yield func(*follow) bool) {
	if !yield(&c.first) {
		return
	}
	if c.wider != nil {
		for i := range c.wider.follows {
			if !yield(&c.wider.follows[i]) {
				return
			}
		}
	}
	yield(&c.global)
}

// named yields the channels and wildcards that the consumer named.
func (c *consumer) named(yield func(string) bool) {
	for l := range c.logs {
		if name := l.side.channel.name; name != globalName && !yield(name) {
			return
		}
	}
}

// follows reports whether the consumer follows name by name.
func (c *consumer) follows(name string) bool {
	for l := range c.logs {
		if l.side.channel.name == name {
			return true
		}
	}
	return false
}

// wants reports whether the consumer asked for events of f's type, and f had
// not expired when it came.
func (c *consumer) wants(f *frame) bool {
	if e := f.expires.Load(); e != 0 && e < c.joined {
		return false
	}
	if !c.mayKnow(f) {
		return false
	}
	if c.filter == nil {
		return true
	}
	typ := f.typ()
	if typ == "" {
		typ = "message"
	}
	return slices.Contains(c.filter, typ) || strings.HasPrefix(typ, reservedType)
}

// mayKnow reports whether the consumer may be told that there is an event.
func (c *consumer) mayKnow(f *frame) bool { return !c.hides || c.sees(f) }

// sees reports whether one of an event's channels is not private, or followed by
// its name or a wildcard that is private itself.
func (c *consumer) sees(f *frame) bool {
	return !f.private() || slices.ContainsFunc(strings.Split(f.channels, ","), c.owns)
}

// owns reports whether the consumer follows a private channel otherwise than by
// "*".
func (c *consumer) owns(name string) bool {
	for l := range c.logs {
		if own := l.side.channel.name; private(own) && covers(own, name) {
			return true
		}
	}
	return false
}

// collect appends to frames what the consumer has not had up to mark, in order
// and each once: about most bytes of it, and so all up to the place that it
// returns. It reports false when some of that is no longer there.
func (c *consumer) collect(frames []*frame, mark uint64, most int) (_ []*frame, upTo uint64, whole bool) {
	pos, begin, logs, forgiven := c.pos.Load(), len(frames), 0, uint64(0)
	if c.rare != nil {
		forgiven = c.forgiven
	}
	upTo = mark
	for l := range c.logs {
		ch := l.side.channel
		if ch.last.Load() <= pos {
			continue
		}
		n, end, whole := len(frames), uint64(0), false
		if frames, end, whole = ch.read(frames, pos, mark, forgiven, most); !whole {
			return frames[:begin], pos, false
		}
		if len(frames) > n {
			logs++
		}
		upTo = min(upTo, end)
	}
	if logs > 1 {
		frames = append(frames[:begin], merge(frames[begin:])...)
	}
	wanted := frames[:begin]
	for _, f := range frames[begin:] {
		if f.seq <= upTo && (c.rare == nil || c.wants(f)) {
			wanted = append(wanted, f)
		}
	}
	clear(frames[len(wanted):]) // what is not wanted is not held
	return wanted, upTo, true
}

// merge puts the frames of several logs into order, each once.
func merge(frames []*frame) []*frame {
	slices.SortFunc(frames, func(a, b *frame) int { return cmp.Compare(a.seq, b.seq) })
	return slices.CompactFunc(frames, func(a, b *frame) bool { return a.seq == b.seq })
}

// bytes returns what the consumer is sent of f.
func (c *consumer) bytes(f *frame) []byte {
	chunk := f.chunk
	if c.rare != nil && c.envelope && !strings.HasPrefix(f.typ(), reservedType) {
		chunk = f.envelope(c.came(f))
	}
	if c.raw {
		return chunkText(chunk)
	}
	return chunk
}

// came returns the one channel that f came to the consumer from: the first that
// it named.
func (c *consumer) came(f *frame) string {
	if !strings.Contains(f.channels, ",") {
		return f.channels
	}
	channels := strings.Split(f.channels, ",")
	for l := range c.logs {
		for _, name := range channels {
			if covers(l.side.channel.name, name) && !(c.hides && private(name) && !c.owns(name)) {
				return name
			}
		}
	}
	return channels[0]
}

// lastWords are why a portable consumer is to end, and up to where it gets what was
// published before.
type lastWords struct {
	reason string
	mark   uint64
}

// end makes a portable consumer's goroutine end the stream.
func (c *consumer) end(reason string, mark uint64) {
	c.ending.CompareAndSwap(nil, &lastWords{reason, mark})
	c.rouse()
}

// rouse wakes a portable consumer's goroutine.
func (c *consumer) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// A subscription is what a consumer asks for.
type subscription struct {
	names    []string
	id       string // the last one that it had; "" none
	history  int
	filter   []string
	envelope bool
	raw      bool
	head     []byte // what is sent before the stream's first bytes
	greet    bool   // the writer can send that, with its own head
	portable bool
	fd       int // where the reactor serves it

	identity *identity  // of who asks; nil: it came without a token
	hides    bool       // "*" leaves out what is private
	policy   *policy    // that it was judged by; nil: a program asks
	undo     func()     // takes back what it counts for its rate
	address  netip.Addr // that it is counted for; the zero one: for none

	// What Server.recall has found out.
	recalled bool
	place    uint64 // of id, 0 where it is not known
	placed   bool   // it is known, and there is no gap
	oldest   string // the id of the oldest event that is kept
	forgiven uint64 // it was told of the gap up to here
	begun    bool   // it has been sent what a stream begins with, and all up to place
}

// join makes a consumer of what is asked for and hands it to a writer. What a
// stream begins with is pending: its position, and the gap if there is one;
// unless the writer greets it, which costs nothing to keep. Whatever is published
// from now on reaches the consumer.
func (r *registry) join(s subscription, w *writer, retry time.Duration) (*consumer, *Problem) {
	c := &consumer{raw: s.raw, hides: s.hides, fd: int32(s.fd)}
	c.plain = len(s.names) == 1 && s.filter == nil && !s.envelope && !s.raw && !s.hides
	if s.identity != nil || len(s.names) > 1 || s.address.IsValid() {
		c.wider = &wider{identity: s.identity, place: -1, address: s.address}
	}
	if s.id != "" || s.history > 0 || !s.greet || !c.plain {
		c.rare = &rare{filter: s.filter, envelope: s.envelope}
		if s.portable {
			c.wake = make(chan struct{}, 1)
		}
	}
	r.mu.Lock()
	if r.closed || w.closed || r.empty != nil {
		r.mu.Unlock()
		return nil, drainingProblem(retry)
	}
	if s.policy != nil && s.policy.number < r.policy.number { // a reload came between
		now, ok := r.policy.permits(s.identity, slices.Values(s.names), s.hides)
		if !ok {
			r.mu.Unlock()
			return nil, revokedToken()
		}
		if now != nil {
			c.wider.identity = now
		}
	}
	if p := r.fullLocked(&s, retry); p != nil {
		r.mu.Unlock()
		return nil, p
	}
	now := r.clock() // for both: what expires between them would be missed without a word
	if r.behindLocked(&s, now) {
		r.mu.Unlock()
		return nil, behind
	}
	mark := r.mark.Load()
	c.start = mark
	byName := r.followLocked(c, s.names, w)
	if c.rare != nil {
		c.joined = now
	}
	c.pos.Store(r.beginLocked(c, &s, mark))
	c.untold = s.begun
	// Until the writer has met it, the consumer is one whose socket is full.
	c.blockLocked()
	r.consumers++
	if s.address.IsValid() {
		r.addresses[s.address]++
	}
	r.expireAtLocked(c)
	if byName {
		r.byName++
	}
	if c.rare != nil && !s.begun {
		id := r.positionLocked(c.pos.Load())
		c.pending = append(make([]byte, 0, len(s.head)+len(c.gap)+160), s.head...)
		c.pending = c.frameText(c.pending, beginText(c.gap, id, retry))
	}
	w.joins = append(w.joins, c)
	w.stir()
	r.mu.Unlock()
	r.stats.connects.Add(1)
	w.wake()
	return c, nil
}

// followLocked has the consumer follow the channels of names and "all", and
// reports whether one of them is named itself.
func (r *registry) followLocked(c *consumer, names []string, w *writer) (byName bool) {
	take := func(ch *channel) follow {
		ch.followers++
		s := ch.sideLocked(w)
		if s == nil {
			s = &side{channel: ch, writer: w, offered: c.start, behind: nobody}
			ch.sides = append(ch.sides, s)
		} else if !s.followed() {
			s.offered = c.start
		}
		return follow{side: s, index: -1}
	}
	if len(names) > 1 {
		c.wider.follows = make([]follow, 0, len(names)-1)
	}
	for i, name := range names {
		ch := r.findLocked(name)
		if ch == nil {
			ch = r.makeLocked(name)
		}
		byName = byName || !isWildcard(name)
		if i == 0 {
			c.first = take(ch)
		} else {
			c.wider.follows = append(c.wider.follows, take(ch))
		}
	}
	c.global = take(r.all)
	r.number = max(r.number+1, uint64(time.Now().UnixMicro()))
	c.first.half, c.global.half = uint32(r.number>>32), uint32(r.number)
	return byName
}

// endText is the event that ends a stream, after the retry that it asks for.
func endText(reason string, retry time.Duration) string {
	return fmt.Sprintf("retry: %d\n\nevent: %s\ndata: {\"reason\":%q}\n\n", retry.Milliseconds(), endType, reason)
}

// jitter spreads the return of n consumers: 5,000 a second, and over no less
// than retry once more.
func jitter(retry time.Duration, n int) time.Duration {
	spread := max(retry, time.Duration(n)*time.Second/5000)
	return retry + rand.N(spread+1)
}

// blockLocked counts the consumer among those that the logs wait for.
func (c *consumer) blockLocked() {
	if c.blocked {
		return
	}
	c.blocked = true
	pos := c.pos.Load()
	for l := range c.logs {
		s := l.side
		s.stalled++
		s.behind = min(s.behind, pos)
	}
}

// unblockLocked takes it out again.
func (c *consumer) unblockLocked() {
	if !c.blocked {
		return
	}
	c.blocked = false
	for l := range c.logs {
		s := l.side
		if s.stalled--; s.stalled == 0 {
			s.behind = nobody
		}
	}
}

// leaveLocked counts the consumer out; its writer still has it among its
// members until removeLocked.
func (r *registry) leaveLocked(c *consumer, reason string) {
	if c.gone {
		return
	}
	c.gone = true
	c.unblockLocked()
	byName := false
	for l := range c.logs {
		ch := l.side.channel
		ch.followers--
		byName = byName || ch != r.all && !isWildcard(ch.name)
	}
	r.consumers--
	r.unexpireLocked(c)
	if c.wider != nil {
		r.forgetAddressLocked(c.wider.address)
	}
	if r.consumers == 0 && r.empty != nil {
		close(r.empty)
	}
	if byName {
		r.byName--
	}
	r.stats.disconnect(reason)
}

// forgetAddressLocked counts a consumer of an address less, if it is counted.
func (r *registry) forgetAddressLocked(address netip.Addr) {
	if !address.IsValid() {
		return
	}
	if r.addresses[address]--; r.addresses[address] == 0 {
		delete(r.addresses, address)
	}
}

// removeLocked takes the consumer out of its sides, and lets channels go that
// nothing is left of.
func (r *registry) removeLocked(c *consumer) {
	for l := range c.logs {
		s, ch := l.side, l.side.channel
		if l.index >= 0 {
			last := len(s.members) - 1
			moved := s.members[last]
			s.members[l.index] = moved
			for m := range moved.logs {
				if m.side == s {
					m.index = l.index
				}
			}
			s.members[last] = nil
			s.members = s.members[:last]
			l.index = -1
			if cap(s.members) >= 64 && last <= cap(s.members)/4 {
				s.members = slices.Clip(slices.Clone(s.members))
			}
		}
		if len(s.members) == 0 && s.stalled == 0 && ch != r.all {
			ch.mu.Lock()
			ch.sides = slices.DeleteFunc(ch.sides, func(o *side) bool { return o == s })
			ch.mu.Unlock()
		}
		ch.mu.Lock()
		r.trimLocked(ch)
		ch.mu.Unlock()
		r.tidyLocked(ch)
	}
}
