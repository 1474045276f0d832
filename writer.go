package eventsource

import (
	"context"
	"sync/atomic"
	"time"
)

// A writer serves the consumers that belong to it, and nobody else touches
// them. It looks at the registry, makes a pass over what is new, and looks
// again.
//
// There is one for each core where the reactor runs, and one that wakes the
// goroutines of portable consumers.
type writer struct {
	// Set when made.
	r        *registry
	portable bool
	signal   func()        // ends a wait
	done     chan struct{} // closed when the writer has ended

	stirred  atomic.Bool // there is something for the next pass
	sleeping atomic.Bool // the writer waits, and has to be signalled

	// Guarded by r.mu.
	dirty     []*side     // with events that were not offered yet
	joins     []*consumer // that the writer has not met yet
	leaves    []*consumer // portable ones that have ended
	ends      []ending
	unoffered int64 // bytes behind dirty
	closed    bool
}

// An ending disconnects a consumer; or the members of a side that joined before a
// Seq; or everybody.
type ending struct {
	consumer *consumer
	side     *side
	before   uint64
	reason   string
}

// A pass is what a writer does between two looks at the registry.
type pass struct {
	mark   uint64
	epoch  Epoch
	sides  []*side
	joins  []*consumer
	ends   []ending
	bytes  int64
	closed bool

	// Filled during the pass.
	turned []*consumer // their socket became full, or they caught up
	left   []departure
	lowest []uint64 // of each side, where a portable member stands
}

// unfinished reports whether the registry has something to hear of the pass.
func (p *pass) unfinished() bool {
	return len(p.sides) > 0 || len(p.left) > 0 || len(p.turned) > 0
}

// A departure is a consumer that the writer has disconnected.
type departure struct {
	c      *consumer
	reason string
}

// stir says that there is something for the next pass, once it is there.
func (w *writer) stir() { w.stirred.Store(true) }

// wake ends the writer's wait. It costs no system call while the writer is at
// work.
func (w *writer) wake() {
	if w.stirred.Load() && w.sleeping.CompareAndSwap(true, false) {
		w.signal()
	}
}

// take ends the pass p and begins the next in its place: the dirty flags are
// cleared and the mark is read before any log is.
func (w *writer) take(p *pass) {
	r := w.r
	r.mu.Lock()
	for _, c := range p.turned {
		if c.awaited && !c.gone {
			c.blockLocked()
		} else {
			c.unblockLocked()
		}
	}
	for i, s := range p.sides {
		s.offered = p.mark
		if w.portable && s.stalled > 0 {
			s.behind = p.lowest[i]
		}
	}
	if w.portable {
		for _, c := range w.joins { // the lowest were found without them
			if c.gone {
				continue
			}
			for l := range c.logs {
				l.side.behind = min(l.side.behind, c.pos.Load())
			}
		}
	}
	for _, s := range p.sides { // only now is it known what has to stay
		ch := s.channel
		if ch.n > ch.kept {
			ch.mu.Lock()
			r.trimLocked(ch)
			ch.mu.Unlock()
			r.tidyLocked(ch)
		}
	}
	for _, d := range p.left {
		r.leaveLocked(d.c, d.reason)
		r.removeLocked(d.c)
	}
	w.unoffered -= p.bytes
	if r.room != nil && !r.crowdedLocked() {
		close(r.room)
		r.room = nil
	}

	clear(p.turned)
	clear(p.left)
	clear(p.sides)
	clear(p.joins)
	clear(p.ends)
	p.turned, p.left, p.lowest = p.turned[:0], p.left[:0], p.lowest[:0]
	p.sides, w.dirty = w.dirty, p.sides[:0]
	p.joins, w.joins = w.joins, p.joins[:0]
	p.ends, w.ends = w.ends, p.ends[:0]
	p.bytes = w.unoffered
	p.mark, p.epoch = r.mark.Load(), r.epoch
	p.closed = w.closed
	w.stirred.Store(false)
	for _, s := range p.sides {
		s.dirty = false
	}
	for _, c := range p.joins {
		if c.gone {
			continue
		}
		for l := range c.logs {
			l.index = int32(len(l.side.members))
			l.side.members = append(l.side.members, c)
		}
	}
	for _, c := range w.leaves {
		r.removeLocked(c)
	}
	clear(w.leaves)
	w.leaves = w.leaves[:0]
	r.mu.Unlock()
}

// notifier is the writer of portable consumers: it wakes the goroutine of each
// that there is something for.
func (r *registry) notifier() *writer {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.writers {
		if w.portable {
			return w
		}
	}
	awake := make(chan struct{}, 1)
	w := &writer{r: r, portable: true, done: make(chan struct{}), closed: r.closed,
		signal: func() {
			select {
			case awake <- struct{}{}:
			default:
			}
		}}
	r.writers = append(r.writers[:len(r.writers):len(r.writers)], w)
	go w.notify(awake)
	return w
}

func (w *writer) notify(awake <-chan struct{}) {
	defer close(w.done)
	var p pass
	for {
		w.take(&p)
		for _, e := range p.ends {
			if e.consumer != nil {
				e.consumer.end(e.reason, p.mark)
				continue
			}
			if e.side == nil {
				w.endAll(e.reason, p.mark)
				continue
			}
			for _, c := range e.side.members {
				if c.start < e.before {
					c.end(e.reason, p.mark)
				}
			}
		}
		for _, c := range p.joins {
			c.rouse()
		}
		for _, s := range p.sides {
			lowest := uint64(nobody)
			for _, c := range s.members {
				if pos := c.pos.Load(); pos < p.mark {
					lowest = min(lowest, pos)
				}
				c.rouse()
			}
			p.lowest = append(p.lowest, lowest)
		}
		if p.closed {
			return
		}
		w.sleeping.Store(true)
		if w.stirred.Load() {
			w.sleeping.Store(false)
			continue
		}
		<-awake
	}
}

// endAll ends every portable consumer.
func (w *writer) endAll(reason string, mark uint64) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	if s := w.r.all.sideLocked(w); s != nil {
		for _, c := range s.members {
			c.end(reason, mark)
		}
	}
}

// drain ends every stream and waits until all consumers have left, or until
// timeout has passed or ctx has ended.
func (r *registry) drain(ctx context.Context, timeout time.Duration) {
	r.mu.Lock()
	r.drained.Store(int64(r.consumers))
	if r.empty == nil {
		r.empty = make(chan struct{})
		if r.consumers == 0 {
			close(r.empty)
		}
	}
	writers := r.writers
	for _, w := range writers {
		w.ends = append(w.ends, ending{reason: endDraining})
		w.stir()
	}
	r.mu.Unlock()
	for _, w := range writers {
		w.wake()
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	select {
	case <-r.empty:
	case <-deadline.C:
	case <-ctx.Done():
	}
}
