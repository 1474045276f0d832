package intake

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/railsmechanic/eventsource"
)

const (
	// mostWaiting is how many arrivals wait at most for their counts to be published:
	// a broker brings no more before they are done.
	mostWaiting = 1 << 16

	// mostCounted is how many bytes the counts of all channels together may have, or
	// limits.body where that is more.
	mostCounted = 16 << 20

	// tallied is what a tally takes besides names and counts, about.
	tallied = 256
)

// A rollup counts equal payloads for a period, and publishes the counts. While nothing
// comes in its goroutine waits for nothing but that. What is counted is in one of two
// places: here, or on its way to be published.
type rollup struct {
	// Set when made.
	ctx    context.Context
	intake *Intake
	feed   *eventsource.Feed
	period time.Duration
	stop   chan struct{}
	done   chan struct{}
	begun  chan struct{} // has a value when a period has begun
	full   chan struct{} // has a value when the counts must be taken before the period ends

	mu      sync.Mutex // held when Intake.mu is taken, never the other way round
	tallies map[counted]*tally
	order   []*tally            // as they began
	size    int                 // of all tallies
	waiting int                 // the arrivals that wait, also for what is on its way
	keys    map[string]*counter // of those arrivals
	room    chan struct{}       // closed when there is less of all that; nil while nobody waits for it
}

// A counted is what counts are published as.
type counted struct{ channel, event string }

// A tally is the counts that are published as one event.
type tally struct {
	as       counted
	counters map[string]*counter // by payload
	size     int                 // of the document, at most
}

func newTally(as counted) *tally {
	return &tally{as: as, counters: map[string]*counter{}, size: len("{}")}
}

// overhead is what it takes without its counts, about.
func (t *tally) overhead() int { return tallied + len(t.as.channel) + len(t.as.event) }

// A counter counts one payload.
type counter struct {
	payload string
	quoted  []byte // the payload as JSON
	n       uint64
	waits   []Arrival // what is done with it: their keys and functions
}

// size is what it takes in a document, at most.
func (c *counter) size() int { return len(c.quoted) + len(`:18446744073709551615,`) }

func newRollup(ctx context.Context, in *Intake, feed *eventsource.Feed) *rollup {
	r := &rollup{ctx: ctx, intake: in, feed: feed, period: in.rollup, stop: make(chan struct{}), done: make(chan struct{}),
		begun: make(chan struct{}, 1), full: make(chan struct{}, 1), tallies: map[counted]*tally{}, keys: map[string]*counter{}}
	go r.run()
	return r
}

// count adds an arrival to its period. It waits while as much is counted as may be. Its
// error is ctx's.
func (r *rollup) count(as counted, a *Arrival) error {
	for {
		room, refused := r.tryCount(as, a)
		switch {
		case refused != nil:
			r.feed.Refuse(refused)
			a.done(refused)
			return nil
		case room == nil:
			return nil
		}
		signal(r.full)
		select {
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-room:
		}
	}
}

// tryCount counts an arrival; or it returns what is closed when there is room, or why it
// can't be counted at all.
func (r *rollup) tryCount(as counted, a *Arrival) (room chan struct{}, refused *eventsource.RefusedError) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting >= mostWaiting {
		return r.roomLocked(), nil
	}
	t := r.tallies[as]
	if t != nil {
		if c := t.counters[string(a.Data)]; c != nil {
			r.addLocked(c, a)
			return nil, nil
		}
	}
	c := &counter{payload: string(a.Data)}
	c.quoted = quote(c.payload)
	limit := int(r.feed.Limits().Body)
	if c.size()+len("{}") > limit {
		return nil, &eventsource.RefusedError{Reason: eventsource.RefusedTooLarge, Err: errAlone}
	}
	if t == nil {
		if refused := check(as); refused != nil {
			return nil, refused
		}
		t = newTally(as)
	}
	if t.size+c.size() > limit || r.size+t.overhead()+c.size() > max(mostCounted, limit) && len(r.order) > 0 {
		return r.roomLocked(), nil
	}
	r.beginLocked(t)
	r.putLocked(t, c)
	r.addLocked(c, a)
	return nil, nil
}

// roomLocked returns what is closed when there is room.
func (r *rollup) roomLocked() chan struct{} {
	if r.room == nil {
		r.room = make(chan struct{})
	}
	return r.room
}

// beginLocked has a tally counted with the others, if it is not.
func (r *rollup) beginLocked(t *tally) {
	if r.tallies[t.as] != nil {
		return
	}
	if len(r.order) == 0 {
		signal(r.begun)
	}
	r.tallies[t.as] = t
	r.order = append(r.order, t)
	r.size += t.overhead()
}

// putLocked gives a tally a counter.
func (r *rollup) putLocked(t *tally, c *counter) {
	t.counters[c.payload] = c
	t.size += c.size()
	r.size += c.size()
}

// addLocked counts an arrival.
func (r *rollup) addLocked(c *counter, a *Arrival) {
	c.n++
	if a.Done == nil && a.Key == "" {
		return
	}
	c.waits = append(c.waits, Arrival{Key: a.Key, Done: a.Done})
	r.waiting++
	if a.Key != "" {
		r.keys[a.Key] = c
	}
}

// madeRoomLocked says that there is room.
func (r *rollup) madeRoomLocked() {
	if r.room != nil {
		close(r.room)
		r.room = nil
	}
}

// holds reports whether what comes in again is counted, and not yet published: then it is
// done when that is.
func (r *rollup) holds(a *Arrival) bool {
	if a.Key == "" {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.keys[a.Key]
	if c == nil {
		return false
	}
	if a.Done != nil {
		c.waits = append(c.waits, Arrival{Done: a.Done})
		r.waiting++
	}
	return true
}

// signal leaves a value, if none is there.
func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// run publishes at the end of each period in which something came in.
func (r *rollup) run() {
	defer close(r.done)
	var last time.Time
	for {
		select {
		case <-r.stop:
			return
		case <-r.ctx.Done():
			return
		case <-r.begun:
		}
		// Periods follow on each other while something comes in.
		wait := r.period
		if since := time.Since(last); since < r.period {
			wait -= since
		}
		timer := time.NewTimer(wait)
		select {
		case <-r.stop:
			timer.Stop()
			return
		case <-r.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-r.full:
			timer.Stop()
		}
		last = time.Now()
		r.publish(r.ctx)
	}
}

// publish publishes what is counted, and counts again what ctx did not let it.
func (r *rollup) publish(ctx context.Context) {
	r.mu.Lock()
	order := r.order
	r.order, r.size = nil, 0
	clear(r.tallies)
	r.madeRoomLocked()
	r.mu.Unlock()
	for _, t := range order {
		sorted := slices.SortedFunc(maps.Values(t.counters), func(a, b *counter) int { return cmp.Compare(a.payload, b.payload) })
		if left := r.send(ctx, t.as, sorted); len(left) > 0 {
			r.restore(t.as, left)
		}
	}
}

// send publishes counts as one event; or as several, where a limit has become lower, or
// the backend's is. It returns those that ctx did not let it publish.
func (r *rollup) send(ctx context.Context, as counted, counters []*counter) (left []*counter) {
	err := r.feed.Publish(ctx, as.channel, eventsource.Event{Type: as.event, Data: document(counters)})
	refused, isRefused := errors.AsType[*eventsource.RefusedError](err)
	switch {
	case isRefused && refused.Reason == eventsource.RefusedTooLarge && len(counters) > 1:
		half := len(counters) / 2
		return append(r.send(ctx, as, counters[:half]), r.send(ctx, as, counters[half:])...)
	case isRefused:
		r.feed.Refuse(refused)
		r.finish(counters, refused)
	case err != nil:
		return counters
	default:
		r.finish(counters, nil)
	}
	return nil
}

// finish says that counts need not come again, or never will be published.
func (r *rollup) finish(counters []*counter, err error) {
	for _, c := range counters {
		r.mu.Lock()
		waits := c.waits
		c.waits = nil
		r.waiting -= len(waits)
		for i := range waits {
			if err == nil { // before it is not held any more
				r.intake.remember(waits[i].Key)
			}
			delete(r.keys, waits[i].Key)
		}
		r.madeRoomLocked()
		r.mu.Unlock()
		for i := range waits {
			waits[i].done(err)
		}
	}
}

// restore counts again.
func (r *rollup) restore(as counted, counters []*counter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tallies[as]
	if t == nil {
		t = newTally(as)
		r.beginLocked(t)
	}
	for _, c := range counters {
		now := t.counters[c.payload]
		if now == nil {
			r.putLocked(t, c)
			continue
		}
		now.n += c.n
		now.waits = append(now.waits, c.waits...)
		for i := range c.waits {
			if c.waits[i].Key != "" {
				r.keys[c.waits[i].Key] = now
			}
		}
	}
}

// close publishes what is counted, and ends. It waits as Feed.Publish does, until ctx
// has ended; then for no longer than closing.
func (r *rollup) close() {
	close(r.stop)
	<-r.done
	if r.ctx.Err() == nil {
		r.publish(r.ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), closing)
	defer cancel()
	r.publish(ctx)
}

// document is the counts as JSON.
func document(counters []*counter) string {
	b := []byte{'{'}
	for i, c := range counters {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, c.quoted...), ':')
		b = strconv.AppendUint(b, c.n, 10)
	}
	return string(append(b, '}'))
}

// quote returns text as a string of JSON, without the escapes that only HTML wants.
func quote(text string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(text); err != nil {
		panic("intake: text can't fail to encode: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'})
}

// check reports why counts can't be published so.
func check(as counted) *eventsource.RefusedError {
	if err := eventsource.CheckChannel(as.channel); err != nil {
		return &eventsource.RefusedError{Reason: eventsource.RefusedName, Err: err}
	}
	if err := eventsource.CheckType(as.event); err != nil {
		return &eventsource.RefusedError{Reason: eventsource.RefusedInvalid, Err: err}
	}
	return nil
}

// errAlone is what a payload that no roll-up has room for is refused with.
var errAlone = errors.New("a roll-up of this payload alone would be above limits.body")
