package eventsource

import (
	"math"
	"sync"
	"sync/atomic"
)

const (
	// overflowBytes is what a log keeps beyond its history for consumers whose
	// socket is full.
	overflowBytes = 4 << 20

	// channelBytes is the memory of a channel without its name and events.
	channelBytes = 320
	// entryBytes is the memory of a log's entry without its frame.
	entryBytes = 8
)

// A channel is a log of frames and the consumers that follow it. A wildcard is
// a channel too, of every event published below its prefix, and so is "all",
// which every consumer follows.
//
// The log is a ring. Its newest entries are the history, kept for who comes
// back; the older ones are the overflow, kept only as long as a writer has not
// offered them, or a consumer's socket is full.
type channel struct {
	// Set when made.
	name string // "news", "news.*", "*", "all"

	// last is the Seq of the newest event ever appended. Changed with mu held,
	// read at any time.
	last atomic.Uint64

	// Changed with registry.mu and mu held, read with either.
	mu       sync.Mutex
	ring     []*frame // its length is a power of two, or 0
	head     int      // the oldest entry's place
	n        int      // entries
	kept     int      // of them in the history
	overflow int64    // bytes of the others
	floor    uint64   // the highest Seq that the history no longer keeps
	dropped  uint64   // the highest Seq that is in neither
	bottom   uint64   // a floor below which a Store had nothing when it was asked

	// Guarded by registry.mu.
	sides     []*side // one for each writer with consumers here
	followers int     // consumers, also those that their writer has not met yet
	bytes     int64   // of the history
	due       int32   // when the wheel looks at it: seconds, 0 never
	class     uint8   // its list in the registry's budget, 0 none
	rule      uint8   // which of the registry's rules it goes by; set when made
	passing   uint16  // entries of the history that are the server's own, and in the way only
	next      *channel
	prev      *channel
}

// A side is the consumers of a channel that belong to one writer.
type side struct {
	// Set when made.
	channel *channel
	writer  *writer

	// Changed by the writer with registry.mu held; read by either.
	members []*consumer

	// Guarded by registry.mu.
	dirty   bool   // in writer.dirty
	offered uint64 // the mark up to which the members were offered everything
	stalled int    // members with a full socket, or that the writer has not met yet
	behind  uint64 // the lowest Seq that one of them stands at, or has stood at
}

const nobody = math.MaxUint64

// at returns the i-th entry from the oldest.
func (ch *channel) at(i int) *frame { return ch.ring[(ch.head+i)&(len(ch.ring)-1)] }

// pushLocked makes f the newest entry.
func (ch *channel) pushLocked(f *frame) {
	if ch.n == len(ch.ring) {
		ch.resizeLocked(max(1, 2*len(ch.ring)))
	}
	ch.ring[(ch.head+ch.n)&(len(ch.ring)-1)] = f
	ch.n++
	ch.kept++
	ch.last.Store(f.seq)
}

// shiftLocked takes the oldest entry, which must be of the overflow, away.
func (ch *channel) shiftLocked() {
	f := ch.ring[ch.head]
	ch.ring[ch.head] = nil
	ch.head = (ch.head + 1) & (len(ch.ring) - 1)
	ch.n--
	ch.overflow -= f.size() + entryBytes
	if !f.control() {
		ch.dropped = max(ch.dropped, f.seq)
	}
	if ch.n == 0 {
		ch.ring, ch.head = nil, 0
	} else if len(ch.ring) >= 16 && ch.n <= len(ch.ring)/4 {
		ch.resizeLocked(len(ch.ring) / 2)
	}
}

func (ch *channel) resizeLocked(size int) {
	ring := make([]*frame, size)
	for i := range ch.n {
		ring[i] = ch.at(i)
	}
	ch.ring, ch.head = ring, 0
}

// unkeepLocked takes the oldest entry of the history out of it, into the
// overflow, and returns its bytes.
func (ch *channel) unkeepLocked() int64 {
	f := ch.at(ch.n - ch.kept)
	size := f.size() + entryBytes
	ch.kept--
	ch.overflow += size
	if f.control() {
		ch.passing--
	} else {
		ch.floor = max(ch.floor, f.seq)
	}
	return size
}

// after returns the index of the first entry with a Seq above seq.
func (ch *channel) after(seq uint64) int {
	low, high := 0, ch.n
	if ch.n > 0 && ch.at(ch.n-1).seq <= seq { // the usual case
		return ch.n
	}
	for low < high {
		if mid := (low + high) / 2; ch.at(mid).seq > seq {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// read appends the entries above from, up to and with to, to frames, but no more
// than about most bytes, and returns up to where it has come. It reports false
// when an entry is gone that is above from and forgiven.
func (ch *channel) read(frames []*frame, from, to, forgiven uint64, most int) (_ []*frame, upTo uint64, whole bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	whole = ch.dropped <= max(from, forgiven)
	for i := ch.after(from); i < ch.n; i++ {
		f := ch.at(i)
		if f.seq > to {
			break
		}
		frames = append(frames, f)
		if most -= len(f.chunk); most <= 0 {
			return frames, f.seq, whole
		}
	}
	return frames, to, whole
}

// history appends the entries above from, up to and with to, that are still
// kept at now. The floor that it returns counts what has expired since the log
// was last looked at.
func (ch *channel) history(frames []*frame, from, to uint64, now int64) ([]*frame, uint64) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	floor := ch.floor
	for i := ch.n - ch.kept; i < ch.n; i++ {
		f := ch.at(i)
		if f.seq > to {
			break
		}
		if f.control() {
			continue
		}
		if f.expired(now) {
			floor = max(floor, f.seq)
		} else if f.seq > from {
			frames = append(frames, f)
		}
	}
	return frames, floor
}

// keepsLocked reports whether the event of seq is in the history.
func (ch *channel) keepsLocked(seq uint64) bool {
	i := ch.after(seq - 1)
	return i < ch.n && i >= ch.n-ch.kept && ch.at(i).seq == seq
}

// holdsLocked reports whether the oldest entry, of the overflow, must stay: a
// writer has not offered it yet, or a consumer with a full socket waits for it.
func (ch *channel) holdsLocked() bool {
	seq := ch.ring[ch.head].seq
	for _, s := range ch.sides {
		if s.followed() && s.offered < seq || s.behind < seq && ch.overflow <= overflowBytes {
			return true
		}
	}
	return false
}

// followed reports whether a consumer follows the side, also one that the
// writer has not met yet.
func (s *side) followed() bool { return len(s.members) > 0 || s.stalled > 0 }

// settleLocked looks where the members of the portable writer stand, which get
// on without its passes.
func (s *side) settleLocked() {
	if !s.writer.portable || s.behind == nobody {
		return
	}
	met, lowest := 0, uint64(nobody)
	for _, c := range s.members {
		if !c.gone {
			met++
			lowest = min(lowest, c.pos.Load())
		}
	}
	if met == s.stalled { // the writer has met all
		s.behind = lowest
	}
}

// sideLocked returns the channel's side of w.
func (ch *channel) sideLocked(w *writer) *side {
	for _, s := range ch.sides {
		if s.writer == w {
			return s
		}
	}
	return nil
}

// expired reports whether the event's own time was over at now.
func (f *frame) expired(now int64) bool {
	e := f.expires.Load()
	return e != 0 && e <= now
}
