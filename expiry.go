package eventsource

import (
	"container/heap"
	"time"
)

// expiryLook is the longest that is waited before the clock is looked at again: it
// may be set.
const expiryLook = time.Minute

// expiries are the consumers whose token ends, the next first (container/heap).
type expiries []*consumer

// Len is for container/heap, as the others are.
func (e expiries) Len() int { return len(e) }

func (e expiries) Less(i, j int) bool {
	return e[i].wider.identity.expires.Before(e[j].wider.identity.expires)
}

func (e expiries) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].wider.place, e[j].wider.place = i, j
}

// Push takes a *consumer.
func (e *expiries) Push(c any) {
	c.(*consumer).wider.place = len(*e)
	*e = append(*e, c.(*consumer))
}

// Pop returns a *consumer.
func (e *expiries) Pop() any {
	last := len(*e) - 1
	c := (*e)[last]
	(*e)[last] = nil
	*e = (*e)[:last]
	c.wider.place = -1
	return c
}

// expireAtLocked has a consumer's stream end when its token does.
func (r *registry) expireAtLocked(c *consumer) {
	if c.wider == nil || c.wider.identity == nil || c.wider.identity.expires.IsZero() {
		return
	}
	heap.Push(&r.expiries, c)
	if c.wider.place == 0 {
		r.armLocked()
	}
}

// unexpireLocked forgets a consumer that has left.
func (r *registry) unexpireLocked(c *consumer) {
	if c.wider != nil && c.wider.place >= 0 {
		heap.Remove(&r.expiries, c.wider.place)
	}
}

// armLocked has expireTokens called when the next token ends.
func (r *registry) armLocked() {
	if len(r.expiries) == 0 || r.closed {
		return
	}
	wait := min(max(time.Until(r.expiries[0].wider.identity.expires), 0), expiryLook)
	if r.expiryTimer == nil {
		r.expiryTimer = time.AfterFunc(wait, r.expireTokens)
		return
	}
	r.expiryTimer.Reset(wait)
}

// expireTokens ends the streams whose token has ended, a bounded number under one
// lock.
func (r *registry) expireTokens() {
	const together = 1000
	r.mu.Lock()
	now := time.Now()
	for range together {
		if len(r.expiries) == 0 || !r.expiries[0].wider.identity.expired(now) {
			break
		}
		r.endLocked(heap.Pop(&r.expiries).(*consumer), endExpired)
	}
	r.armLocked()
	writers := r.writers
	r.mu.Unlock()
	for _, w := range writers {
		w.wake()
	}
}
