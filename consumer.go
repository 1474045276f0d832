package eventsource

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
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
	endGone     = "gone"     // the other side went away
	endNoisy    = "noisy"    // it sent what no consumer sends
)

// noisyBytes is what a consumer may send after its request before it is cut.
const noisyBytes = 64 << 10

// A consumer follows channels over one connection. Where it stands in all of
// them is one number, since the order is one: every event up to pos that it
// follows, it has.
type consumer struct {
	// Set when made, then only read.
	writer   *writer
	filter   []string // types; nil: all
	envelope bool
	raw      bool          // gets text and not chunks: HTTP/1.0, net/http's own chunking
	joined   int64         // by registry.clock
	start    uint64        // the mark when it joined
	forgiven uint64        // up to here a log may lack what the consumer has not got: it was told of the gap, or came without an id
	wake     chan struct{} // of a portable consumer: there may be something to write

	// Changed with registry.mu held.
	logs    []follow
	gone    bool // has left
	blocked bool // counted in its sides' stalled

	// Owned by who writes: the writer, or a portable consumer's goroutine.
	pos     atomic.Uint64
	told    uint64 // the place of the id that was sent last
	pending []byte // what is to be sent before everything else: the rest of a short write, what a stream begins with

	gap    string                 // what the stream's first event says of a gap; "" none
	ending atomic.Pointer[string] // why a portable consumer is to end

	conn // what the reactor keeps
}

// A follow is a channel that a consumer follows.
type follow struct {
	channel *channel
	side    *side
	index   int // its place in side.members, -1 until the writer has met it
}

// follows reports whether the consumer follows name by name.
func (c *consumer) follows(name string) bool {
	return slices.ContainsFunc(c.logs, func(f follow) bool { return f.channel.name == name })
}

// plain reports whether the consumer gets exactly the frames of one channel and
// of "all", so that it can share the bytes of others there.
func (c *consumer) plain() bool {
	return len(c.logs) == 2 && c.filter == nil && !c.envelope && !c.raw
}

// wants reports whether the consumer asked for events of f's type, and f had
// not expired when it came.
func (c *consumer) wants(f *frame) bool {
	if e := f.expires.Load(); e != 0 && e < c.joined {
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

// collect appends to frames what the consumer has not had up to mark, in order
// and each once. It reports false when some of that is no longer there.
func (c *consumer) collect(frames []*frame, mark uint64) ([]*frame, bool) {
	pos, begin, logs := c.pos.Load(), len(frames), 0
	for i := range c.logs {
		ch := c.logs[i].channel
		if ch.last.Load() <= pos {
			continue
		}
		n, whole := len(frames), false
		if frames, whole = ch.read(frames, pos, mark, c.forgiven); !whole {
			return frames[:begin], false
		}
		if len(frames) > n {
			logs++
		}
	}
	if logs > 1 {
		frames = append(frames[:begin], merge(frames[begin:])...)
	}
	wanted := frames[:begin]
	for _, f := range frames[begin:] {
		if c.wants(f) {
			wanted = append(wanted, f)
		}
	}
	clear(frames[len(wanted):]) // what is not wanted is not held
	return wanted, true
}

// merge puts the frames of several logs into order, each once.
func merge(frames []*frame) []*frame {
	slices.SortFunc(frames, func(a, b *frame) int { return cmp.Compare(a.seq, b.seq) })
	return slices.CompactFunc(frames, func(a, b *frame) bool { return a.seq == b.seq })
}

// bytes returns what the consumer is sent of f.
func (c *consumer) bytes(f *frame) []byte {
	chunk := f.chunk
	if c.envelope && !strings.HasPrefix(f.typ(), reservedType) {
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
	for i := range c.logs { // a copy would read what the writer changes
		for _, name := range channels {
			if covers(c.logs[i].channel.name, name) {
				return name
			}
		}
	}
	return channels[0]
}

// end makes a portable consumer's goroutine end the stream.
func (c *consumer) end(reason string) {
	c.ending.CompareAndSwap(nil, &reason)
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
	portable bool
	conn     conn // where the reactor serves it
}

// join makes a consumer of what is asked for and hands it to a writer. What a
// stream begins with is pending: its position, and the gap if there is one.
// Whatever is published from now on reaches it.
func (r *registry) join(s subscription, w *writer, retry time.Duration) (*consumer, *Problem) {
	c := &consumer{writer: w, filter: s.filter, envelope: s.envelope, raw: s.raw, conn: s.conn}
	if s.portable {
		c.wake = make(chan struct{}, 1)
	}
	r.mu.Lock()
	if r.closed || w.closed || r.empty != nil {
		r.mu.Unlock()
		return nil, drainingProblem(retry)
	}
	if p := r.fullLocked(s.names, retry); p != nil {
		r.mu.Unlock()
		return nil, p
	}
	mark := r.mark.Load()
	c.joined, c.start = r.clock(), mark
	c.logs = make([]follow, 0, len(s.names)+1)
	byName := false
	for _, name := range s.names {
		ch := r.findLocked(name)
		if ch == nil {
			ch = r.makeLocked(name)
		}
		byName = byName || !isWildcard(name)
		c.logs = append(c.logs, follow{channel: ch, index: -1})
	}
	c.logs = append(c.logs, follow{channel: r.all, index: -1})

	pos := mark
	switch {
	case s.id != "":
		from, known := r.placeLocked(s.id, c.logs, mark)
		frames, floor := r.keptLocked(c, from, mark)
		if pos = from; !known || from < floor {
			oldest := ""
			if len(frames) > 0 {
				oldest = frames[0].id()
			}
			c.gap = gapData(s.id, oldest)
			r.stats.gaps.Add(1)
			frames = slices.DeleteFunc(frames, func(f *frame) bool { return !c.wants(f) })
			if n := len(frames) - r.history.Events; n > 0 {
				frames = frames[n:]
			}
			pos = before(frames, mark)
			c.forgiven = mark
		}
	case s.history > 0:
		frames, _ := r.keptLocked(c, 0, mark)
		frames = slices.DeleteFunc(frames, func(f *frame) bool { return !c.wants(f) })
		if n := len(frames) - s.history; n > 0 {
			frames = frames[n:]
		}
		pos = before(frames, mark)
		c.forgiven = mark
	}
	c.pos.Store(pos)
	c.told = pos
	for i := range c.logs {
		l := &c.logs[i]
		l.channel.followers++
		if l.side = l.channel.sideLocked(w); l.side == nil {
			l.side = &side{channel: l.channel, writer: w, offered: mark, behind: nobody}
			l.channel.sides = append(l.channel.sides, l.side)
		} else if !l.side.followed() {
			l.side.offered = mark
		}
	}
	// Until the writer has met it, the consumer is one whose socket is full.
	c.blockLocked()
	r.consumers++
	if byName {
		r.byName++
	}
	id := r.positionLocked(pos)
	w.joins = append(w.joins, c)
	w.stir()
	begin := make([]byte, 0, len(s.head)+160+len(c.gap))
	begin = append(begin, s.head...)
	text := fmt.Sprintf("retry: %d\n: welcome\n", retry.Milliseconds())
	if c.gap != "" {
		// The id comes after the gap: who was cut off between them is told again.
		text += "\n" + gapText(c.gap)
	}
	text += "id: " + string(id[:]) + "\n\n"
	begin = c.frameText(begin, text)
	c.pending = begin
	r.mu.Unlock()
	r.stats.connects.Add(1)
	w.wake()
	return c, nil
}

// frameText appends text as the consumer is sent it.
func (c *consumer) frameText(b []byte, text string) []byte {
	if c.raw {
		return append(b, text...)
	}
	return append(b, newChunk(text)...)
}

// before returns the place before the first of frames, and mark where there are
// none.
func before(frames []*frame, mark uint64) uint64 {
	if len(frames) == 0 {
		return mark
	}
	return frames[0].seq - 1
}

// keptLocked returns what is kept above from in the consumer's logs, in order,
// and the highest floor of them.
func (r *registry) keptLocked(c *consumer, from, mark uint64) ([]*frame, uint64) {
	var frames []*frame
	highest := uint64(0)
	for _, l := range c.logs {
		if l.channel.kept == 0 {
			highest = max(highest, l.channel.floor)
			continue
		}
		var floor uint64
		frames, floor = l.channel.history(frames, from, mark, c.joined)
		highest = max(highest, floor)
	}
	return merge(frames), highest
}

// placeLocked returns the place of an id in the order: what a position says, or
// where the oldest kept event stands that a publisher gave it.
func (r *registry) placeLocked(id string, logs []follow, mark uint64) (uint64, bool) {
	if p, ok := parsePosition(id); ok && p.epoch == r.epoch.Number && p.seq <= mark &&
		(r.epoch.Since.IsZero() || p.time >= r.epoch.Since.UnixMilli()) {
		return p.seq, true
	}
	place := uint64(0)
	for _, l := range logs {
		ch := l.channel
		for i := ch.n - ch.kept; i < ch.n; i++ {
			if f := ch.at(i); f.id() == id {
				if place == 0 || f.seq < place {
					place = f.seq
				}
				break
			}
		}
	}
	return place, place != 0
}

// gapText is the event that tells of a gap.
func gapText(data string) string {
	return "event: " + gapType + "\ndata: " + data + "\n\n"
}

// gapData is what it says; what is empty is null.
func gapData(requested, oldest string) string {
	var told struct {
		Requested *string `json:"requested"`
		Oldest    *string `json:"oldest"`
	}
	if requested != "" {
		told.Requested = &requested
	}
	if oldest != "" {
		told.Oldest = &oldest
	}
	data, err := json.Marshal(told)
	if err != nil {
		panic("eventsource: two strings can't fail to encode: " + err.Error())
	}
	return string(data)
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
	for i := range c.logs {
		s := c.logs[i].side
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
	for i := range c.logs {
		s := c.logs[i].side
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
	for i := range c.logs {
		c.logs[i].channel.followers--
		byName = byName || c.logs[i].channel != r.all && !isWildcard(c.logs[i].channel.name)
	}
	r.consumers--
	if r.consumers == 0 && r.empty != nil {
		close(r.empty)
	}
	if byName {
		r.byName--
	}
	r.stats.disconnect(reason)
}

// removeLocked takes the consumer out of its sides, and lets channels go that
// nothing is left of.
func (r *registry) removeLocked(c *consumer) {
	for i := range c.logs {
		l := &c.logs[i]
		s, ch := l.side, l.channel
		if l.index >= 0 {
			last := len(s.members) - 1
			moved := s.members[last]
			s.members[l.index] = moved
			for j := range moved.logs {
				if moved.logs[j].side == s {
					moved.logs[j].index = l.index
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
