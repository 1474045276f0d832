package eventsource

import (
	"math/bits"
	"time"
)

// wheelSlots is how many seconds the wheel has. A channel that is due in more
// than half of them is looked at by then all the same, so that few entries of it
// are left from when it was due later.
const wheelSlots = 512

// A budget bounds the memory of all logs together. Channels that hold events
// stand in lists by the magnitude of what they hold, so that the one to take
// from is found without a search.
type budget struct {
	limit int64
	held  int64 // of the histories: frames, each once; entries; and of channels
	class [65]struct{ first, last *channel }
	top   int // no class above it has a channel
}

// holdLocked counts another history that has f.
func (r *registry) holdLocked(f *frame) {
	if f.refs == 0 {
		r.budget.held += f.size()
		r.stats.events.Add(1)
	}
	f.refs++
	r.budget.held += entryBytes
}

// releaseLocked counts one less.
func (r *registry) releaseLocked(f *frame) {
	f.refs--
	if f.refs == 0 {
		r.budget.held -= f.size()
		r.stats.events.Add(-1)
	}
	r.budget.held -= entryBytes
}

// unkeepLocked takes a channel's oldest event out of its history and out of the
// budget, which the overflow is not part of: else a few consumers with a full
// socket would cost all others their history. The channel's mu is held too.
func (r *registry) unkeepLocked(ch *channel) {
	f := ch.at(ch.n - ch.kept)
	ch.bytes -= ch.unkeepLocked()
	r.releaseLocked(f)
	r.forgetLocked(ch, f)
}

// trimLocked lets go of what the overflow holds for nobody, and has the wheel
// look again when it holds something: who waits for that may get it without
// another event. The channel's mu is held too.
func (r *registry) trimLocked(ch *channel) {
	for ch.n > ch.kept && !ch.holdsLocked() {
		ch.shiftLocked()
	}
	if ch.n > ch.kept {
		r.scheduleLocked(ch, r.clock())
	}
}

// classLocked puts the channel into the list that its bytes say.
func (r *registry) classLocked(ch *channel) {
	class := uint8(bits.Len64(uint64(ch.bytes)))
	if class == ch.class {
		return
	}
	if ch.class != 0 {
		l := &r.budget.class[ch.class]
		if ch.prev != nil {
			ch.prev.next = ch.next
		} else {
			l.first = ch.next
		}
		if ch.next != nil {
			ch.next.prev = ch.prev
		} else {
			l.last = ch.prev
		}
		ch.prev, ch.next = nil, nil
	}
	ch.class = class
	if class != 0 {
		l := &r.budget.class[class]
		ch.prev = l.last
		if l.last != nil {
			l.last.next = ch
		} else {
			l.first = ch
		}
		l.last = ch
		r.budget.top = max(r.budget.top, int(class))
	}
}

// spendLocked takes the oldest events of the channels that hold most, to a
// factor of two, until the budget is kept.
func (r *registry) spendLocked() {
	b := &r.budget
	for b.held > b.limit {
		for b.top > 0 && b.class[b.top].first == nil {
			b.top--
		}
		if b.top == 0 {
			return
		}
		ch := b.class[b.top].first
		ch.mu.Lock()
		r.unkeepLocked(ch)
		r.trimLocked(ch)
		ch.mu.Unlock()
		r.classLocked(ch)
		r.tidyLocked(ch)
	}
}

// A wheel says when channels have events that expire: each stands in the slot
// of the second in which its next one does.
type wheel struct {
	slots [wheelSlots][]*channel
	count int   // channels in the slots
	hand  int32 // the next second to look at
	timer *time.Timer
	ended bool
}

func (w *wheel) stop() {
	w.ended = true
	if w.timer != nil {
		w.timer.Stop()
	}
}

// scheduleLocked has the wheel look at a channel when expires has passed.
func (r *registry) scheduleLocked(ch *channel, expires int64) {
	if expires == 0 || r.wheel.ended {
		return
	}
	seconds := expires/int64(time.Second) + 1
	if ch.due != 0 && int64(ch.due) <= seconds {
		return
	}
	due := int32(min(seconds, r.clock()/int64(time.Second)+wheelSlots/2))
	if ch.due != 0 && ch.due <= due {
		return
	}
	w := &r.wheel
	ch.due = due
	slot := due % wheelSlots
	w.slots[slot] = append(w.slots[slot], ch)
	w.count++
	if w.count == 1 {
		w.hand = int32(r.clock() / int64(time.Second))
		if w.timer == nil {
			w.timer = time.AfterFunc(time.Second, r.turn)
		} else {
			w.timer.Reset(time.Second)
		}
	}
}

// turn moves the wheel's hand up to now, a bounded number of channels under one
// lock.
func (r *registry) turn() {
	const most = 500
	w := &r.wheel
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock()
	second := int32(now / int64(time.Second))
	if second-w.hand > wheelSlots {
		w.hand = second - wheelSlots
	}
	for hand := w.hand; hand <= second && !w.ended; hand++ {
		slot := &w.slots[hand%wheelSlots]
		channels := *slot
		*slot = nil
		for i, ch := range channels {
			if i > 0 && i%most == 0 {
				r.mu.Unlock()
				r.mu.Lock()
			}
			w.count--
			if ch.due > hand { // another turn, or scheduled elsewhere
				if ch.due%wheelSlots == hand%wheelSlots {
					*slot = append(*slot, ch)
					w.count++
				}
				continue
			}
			if ch.due == 0 {
				continue // a later entry of one that was due earlier
			}
			ch.due = 0
			r.sweepLocked(ch, now)
		}
		w.hand = hand + 1 // whatever sweepLocked has made of it: that was due later
	}
	if w.count > 0 && !w.ended {
		w.timer.Reset(time.Second)
	}
}

// sweepLocked takes what has expired out of a channel, and schedules it for
// what has not.
func (r *registry) sweepLocked(ch *channel, now int64) {
	ch.mu.Lock()
	for _, s := range ch.sides {
		s.settleLocked()
	}
	for ch.kept > 0 && ch.at(ch.n-ch.kept).expired(now) {
		r.unkeepLocked(ch)
	}
	r.trimLocked(ch)
	// What has expired behind one that has not is taken out of the middle, once
	// nobody waits for it.
	next := int64(0)
	first := ch.n - ch.kept
	left := first
	for i := first; i < ch.n; i++ {
		f := ch.at(i)
		if f.expired(now) {
			if !f.control() {
				ch.floor = max(ch.floor, f.seq)
			}
			if !ch.awaitedLocked(f.seq) {
				ch.bytes -= f.size() + entryBytes
				r.releaseLocked(f)
				r.forgetLocked(ch, f)
				if f.control() {
					ch.passing--
				}
				continue
			}
		}
		if e := f.expires.Load(); e != 0 && (next == 0 || e < next) {
			next = max(e, now)
		}
		ch.ring[(ch.head+left)&(len(ch.ring)-1)] = f
		left++
	}
	for i := left; i < ch.n; i++ {
		ch.ring[(ch.head+i)&(len(ch.ring)-1)] = nil
	}
	ch.kept -= ch.n - left
	ch.n = left
	if ch.n == 0 {
		ch.ring, ch.head = nil, 0
	}
	ch.mu.Unlock()
	r.classLocked(ch)
	r.scheduleLocked(ch, next)
	r.tidyLocked(ch)
}

// awaitedLocked reports whether a consumer may still have to get the entry of
// seq.
func (ch *channel) awaitedLocked(seq uint64) bool {
	for _, s := range ch.sides {
		if s.followed() && s.offered < seq || s.behind < seq {
			return true
		}
	}
	return false
}
