package eventsource

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// unofferedBytes is how much may wait for one writer before a publish waits for
// it.
const unofferedBytes = 32 << 20

// floorBuckets is how many floors of channels that went a node remembers.
const floorBuckets = 1024

// A registry holds a node's channels and the mark. It is the one place where
// frames are appended: whoever published an event, it comes in by Deliver.
//
// Lock order: memory.mu, registry.mu, channel.mu.
type registry struct {
	// Set when made.
	history History
	began   time.Time // what clock counts from
	hash    maphash.Seed
	stats   *stats

	moved func(available bool) // told of the backend's state
	begun chan struct{}        // closed when the node has joined the order

	drained atomic.Int64 // consumers that were connected when the server began to shut down

	// mark is the Seq up to which the logs have every event. Moved with mu held.
	mark atomic.Uint64

	mu          sync.Mutex
	policy      *policy
	epoch       Epoch
	named       map[string]*channel // by name
	wild        map[string]*channel // by prefix: "pets" has "pets.*", "" has "*"
	all         *channel
	floors      [floorBuckets]uint64 // of channels that went, by their names' hash
	consumers   int                  // connected
	byName      int                  // of them those that follow a channel by name
	writers     []*writer
	room        chan struct{} // closed when a writer has caught up; nil while no publish waits
	empty       chan struct{} // once draining, closed when the last consumer has left
	budget      budget
	expiries    expiries
	addresses   map[netip.Addr]int // consumers, while they are limited
	expiryTimer *time.Timer
	wheel       wheel
	closed      bool
}

var _ Feed = (*registry)(nil)

// newRegistry returns the registry of a node without channels.
func newRegistry(s *Settings, st *stats) *registry {
	r := &registry{
		history: s.History,

		began:     time.Now(),
		hash:      maphash.MakeSeed(),
		stats:     st,
		named:     map[string]*channel{},
		wild:      map[string]*channel{},
		all:       &channel{name: globalName},
		addresses: map[netip.Addr]int{},
		begun:     make(chan struct{}),
	}
	r.budget.limit = s.History.Bytes
	return r
}

// clock returns the time since the registry began, in nanoseconds. It never
// jumps. 0 is before everything.
func (r *registry) clock() int64 { return int64(time.Since(r.began)) + 1 }

// begin sets where the order stands when the node joins it.
func (r *registry) begin(e Epoch, seq uint64) {
	defer close(r.begun)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch = e
	r.mark.Store(seq)
	r.all.floor, r.all.dropped = seq, seq
	for i := range r.floors {
		r.floors[i] = seq
	}
}

// Deliver appends records to the logs, moves the mark and wakes the writers.
func (r *registry) Deliver(records ...*Record) {
	for _, rec := range records {
		rec.prepare()
	}
	<-r.begun
	r.mu.Lock()
	for _, rec := range records {
		if rec.Purge {
			r.purgeLocked(rec)
		} else {
			r.appendLocked(rec)
		}
		r.mark.Store(rec.last())
	}
	r.spendLocked()
	writers := r.writers
	r.mu.Unlock()
	for _, w := range writers {
		w.wake()
	}
}

// prepare encodes the record's events.
func (rec *Record) prepare() {
	if len(rec.frames) > 0 || rec.Purge {
		return
	}
	rec.frames = slices.Grow(rec.frames, len(rec.Events))
	for i := range rec.Events {
		rec.frames = append(rec.frames, newFrame(&rec.Events[i]))
	}
}

// appendLocked gives the record's frames their place and appends them to the
// log of each of its channels and of the wildcards above.
func (r *registry) appendLocked(rec *Record) {
	now := r.clock()
	channels := rec.Channels[0]
	if len(rec.Channels) > 1 {
		channels = strings.Join(rec.Channels, ",")
	}
	personal := !slices.ContainsFunc(rec.Channels, func(name string) bool { return !private(name) })
	for i, f := range rec.frames {
		f.seq = rec.Seq + uint64(i)
		f.time = rec.Time.UnixNano()
		f.channels = channels
		if personal {
			f.flags |= flagPrivate
		}
		if f.given() {
			f.setID(position{r.epoch.Number, f.seq, rec.Time.UnixMilli()}.encode())
		}
		f.expires.Store(r.expiry(now, rec.Events[i].TTL))
	}
	for _, name := range rec.Channels {
		if name == globalName {
			r.extendLocked(r.all, rec.frames)
			continue
		}
		if ch := r.logLocked(name); ch != nil {
			r.extendLocked(ch, rec.frames)
		} else {
			r.leaveFloorLocked(name, rec.last())
		}
		for prefix := range prefixes(name) {
			if ch := r.wildLocked(prefix); ch != nil {
				r.extendLocked(ch, rec.frames)
			} else {
				r.leaveFloorLocked(wildcardOf(prefix), rec.last())
			}
		}
	}
}

// expiry returns when an event of now expires by the history's age and its own
// ttl; 0 is never.
func (r *registry) expiry(now int64, ttl time.Duration) int64 {
	age := r.history.Age
	switch {
	case ttl < 0:
		return now
	case ttl > 0 && (age == 0 || ttl < age):
		age = ttl
	}
	if age == 0 {
		return 0
	}
	return now + int64(age)
}

// extendLocked appends frames to a log, and says so to the writers that have
// consumers there.
func (r *registry) extendLocked(ch *channel, frames []*frame) {
	ch.mu.Lock()
	bytes := int64(0)
	for _, f := range frames {
		if ch.last.Load() >= f.seq {
			continue // two channels of a list below one wildcard
		}
		ch.pushLocked(f)
		size := f.size() + entryBytes
		r.holdLocked(f)
		bytes += size
		ch.bytes += size
		for ch.kept > r.history.Events {
			r.unkeepLocked(ch)
		}
		r.scheduleLocked(ch, f.expires.Load())
	}
	for _, s := range ch.sides {
		if !s.followed() {
			continue
		}
		s.writer.unoffered += bytes
		if !s.dirty {
			s.dirty = true
			s.writer.dirty = append(s.writer.dirty, s)
			s.writer.stir()
		}
	}
	r.trimLocked(ch)
	ch.mu.Unlock()
	r.classLocked(ch)
}

// logLocked returns the channel of a name for an event, making it where it will
// have something to hold.
func (r *registry) logLocked(name string) *channel {
	ch := r.named[name]
	if ch == nil && r.history.Events > 0 {
		ch = r.makeLocked(name)
	}
	return ch
}

// wildLocked does the same for the wildcard below a prefix.
func (r *registry) wildLocked(prefix string) *channel {
	ch := r.wild[prefix]
	if ch == nil && r.history.Events > 0 {
		ch = r.makeLocked(wildcardOf(prefix))
	}
	return ch
}

// makeLocked makes a channel. Its floor is the one that it left when it went.
func (r *registry) makeLocked(name string) *channel {
	name = strings.Clone(name)
	ch := &channel{name: name}
	floor := r.floors[r.bucket(name)]
	ch.floor, ch.dropped = floor, floor
	if isWildcard(name) {
		r.wild[prefixOf(name)] = ch
	} else {
		r.named[name] = ch
	}
	r.budget.held += channelBytes + int64(len(name))
	return ch
}

// findLocked returns the channel of a name or wildcard, nil where there is none.
func (r *registry) findLocked(name string) *channel {
	if isWildcard(name) {
		return r.wild[prefixOf(name)]
	}
	return r.named[name]
}

// tidyLocked lets a channel go that has neither events nor consumers; its floor
// stays with the node.
func (r *registry) tidyLocked(ch *channel) {
	if ch.n > 0 || ch.followers > 0 || ch == r.all || r.findLocked(ch.name) != ch {
		return
	}
	r.leaveFloorLocked(ch.name, max(ch.floor, ch.dropped))
	if isWildcard(ch.name) {
		delete(r.wild, prefixOf(ch.name))
	} else {
		delete(r.named, ch.name)
	}
	r.budget.held -= channelBytes + int64(len(ch.name))
}

func (r *registry) bucket(name string) int {
	return int(maphash.String(r.hash, name) % floorBuckets)
}

func (r *registry) leaveFloorLocked(name string, floor uint64) {
	b := r.bucket(name)
	r.floors[b] = max(r.floors[b], floor)
}

// prefixes yields what the wildcards that hold name stand below: "", "a" and
// "a.b" of "a.b.c".
func prefixes(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		if !yield("") {
			return
		}
		for i := range len(name) {
			if name[i] == '.' && !yield(name[:i]) {
				return
			}
		}
	}
}

func wildcardOf(prefix string) string {
	if prefix == "" {
		return "*"
	}
	return prefix + ".*"
}

func prefixOf(wildcard string) string {
	return strings.TrimSuffix(strings.TrimSuffix(wildcard, "*"), ".")
}

// purgeLocked drops the history of the record's channels, "all" being every
// one, and has their writers disconnect who follows them by name.
func (r *registry) purgeLocked(rec *Record) {
	now := r.clock()
	rec.disconnected = r.byNameLocked(rec.Channels)
	rec.purged = rec.Channels
	purge := func(ch *channel) {
		for _, s := range ch.sides {
			s.writer.ends = append(s.writer.ends, ending{side: s, before: rec.Seq, reason: endClosed})
			s.writer.stir()
		}
	}
	if rec.Channels[0] == globalName {
		rec.purged = []string{}
		for name, ch := range r.named {
			if ch.existsLocked(now) {
				rec.purged = append(rec.purged, name)
			}
			purge(ch)
			r.emptyLocked(ch)
		}
		for _, ch := range r.wild {
			r.emptyLocked(ch)
		}
		r.emptyLocked(r.all)
		slices.Sort(rec.purged)
		return
	}
	for _, name := range rec.Channels {
		if ch := r.named[name]; ch != nil {
			purge(ch)
			r.expireLocked(ch, rec.Channels, now)
			r.emptyLocked(ch)
		}
		// The wildcards may keep what the channel's own log does not.
		for prefix := range prefixes(name) {
			if w := r.wild[prefix]; w != nil && r.expireLocked(w, rec.Channels, now) {
				r.sweepLocked(w, now)
			}
		}
	}
}

// expireLocked has the events of a log expire that are kept by no channel but
// these: only who is connected still gets them. It reports whether there are
// any.
func (r *registry) expireLocked(ch *channel, names []string, now int64) bool {
	found := false
	for i := range ch.n {
		f := ch.at(i)
		if slices.ContainsFunc(splitList(f.channels), func(s string) bool {
			other := r.named[s]
			return !slices.Contains(names, s) && other != nil && other.keepsLocked(f.seq)
		}) {
			continue
		}
		found = true
		if e := f.expires.Load(); e == 0 || e > now { // not once more for who came after it had
			f.expires.Store(now)
		}
	}
	return found
}

// emptyLocked takes every event out of a channel's history.
func (r *registry) emptyLocked(ch *channel) {
	ch.mu.Lock()
	for ch.kept > 0 {
		r.unkeepLocked(ch)
	}
	r.trimLocked(ch)
	ch.mu.Unlock()
	r.classLocked(ch)
	r.tidyLocked(ch)
}

// Lost begins another life of the order after seq: nothing that was kept can be
// placed in it. Whoever is connected is told of the gap.
func (r *registry) Lost(e Epoch, seq uint64) {
	<-r.begun
	r.mu.Lock()
	r.epoch = e
	for _, ch := range r.named {
		r.emptyLocked(ch)
		ch.floor = seq
	}
	for _, ch := range r.wild {
		r.emptyLocked(ch)
		ch.floor = seq
	}
	for i := range r.floors {
		r.floors[i] = seq
	}
	gap := controlFrame(gapText(gapData("", "")))
	gap.seq = seq
	r.extendLocked(r.all, []*frame{gap})
	r.emptyLocked(r.all)
	r.mark.Store(seq)
	writers := r.writers
	r.mu.Unlock()
	r.stats.gaps.Add(1)
	for _, w := range writers {
		w.wake()
	}
}

// Available passes on what the backend says of itself.
func (r *registry) Available(ok bool) {
	if r.moved != nil {
		r.moved(ok)
	}
}

// admit waits until the writers have offered enough of what was published
// before, and refuses channels beyond the limit.
func (r *registry) admit(ctx context.Context, names []string, timeout time.Duration) *Problem {
	r.mu.Lock()
	if p := r.countLocked(names, true); p != nil {
		r.mu.Unlock()
		return p
	}
	if !r.crowdedLocked() {
		r.mu.Unlock()
		return nil
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for r.crowdedLocked() {
		if r.room == nil {
			r.room = make(chan struct{})
		}
		room := r.room
		r.mu.Unlock()
		select {
		case <-room:
		case <-deadline.C:
			return newProblem(http.StatusServiceUnavailable,
				"more is published than the writers can offer to the consumers: publish more slowly").after(time.Second)
		case <-ctx.Done():
			return newProblem(http.StatusServiceUnavailable, "the publisher went away before there was room").after(time.Second)
		}
		r.mu.Lock()
	}
	r.mu.Unlock()
	return nil
}

// countLocked refuses names that would make more channels than there may be.
func (r *registry) countLocked(names []string, publishing bool) *Problem {
	if len(r.named)+len(names) <= r.policy.limits.Channels || publishing && r.history.Events == 0 {
		return nil
	}
	fresh := 0
	for _, name := range names {
		if name != globalName && !isWildcard(name) && r.named[name] == nil {
			fresh++
		}
	}
	if fresh == 0 || len(r.named)+fresh <= r.policy.limits.Channels {
		return nil
	}
	return newProblem(http.StatusServiceUnavailable, fmt.Sprintf(
		"%d channels exist, the most that may: use one of them, or wait until one has neither events nor consumers", len(r.named))).
		after(10 * time.Second)
}

// full is fullLocked.
func (r *registry) full(s *subscription, retry time.Duration) *Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fullLocked(s, retry)
}

// fullLocked refuses a consumer when there are as many consumers or channels as
// may be.
func (r *registry) fullLocked(s *subscription, retry time.Duration) *Problem {
	limits := &r.policy.limits
	if r.consumers >= limits.Consumers {
		return newProblem(http.StatusServiceUnavailable,
			fmt.Sprintf("no more than %d consumers may be connected, and they are: come back later", r.consumers)).
			after(jitter(retry, 0)).limitedBy(limitConsumers)
	}
	if most := limits.ConsumersPerAddress; most > 0 && s.address.IsValid() && r.addresses[s.address] >= most {
		return newProblem(http.StatusTooManyRequests,
			fmt.Sprintf("no more than %d consumers may be connected from one address, and they are: close one", most)).
			after(jitter(retry, 0)).limitedBy(limitConsumersPerAddress)
	}
	if most := limits.ConsumersPerChannel; most > 0 {
		for _, name := range s.names {
			if ch := r.named[name]; ch != nil && ch.followers >= most {
				return newProblem(http.StatusServiceUnavailable,
					fmt.Sprintf("no more than %d consumers may follow %s, and they do: come back later", most, clip(name))).
					after(jitter(retry, 0)).limitedBy(limitConsumersPerChannel)
			}
		}
	}
	return r.countLocked(s.names, false)
}

func (r *registry) crowdedLocked() bool {
	for _, w := range r.writers {
		if w.unoffered > unofferedBytes {
			return true
		}
	}
	return false
}

// followersLocked counts the followers of the logs that an event to names goes
// to.
func (r *registry) followersLocked(names []string) int {
	if names[0] == globalName {
		return r.consumers
	}
	n := 0
	for _, name := range names {
		if ch := r.named[name]; ch != nil {
			n += ch.followers
		}
		for prefix := range prefixes(name) {
			if ch := r.wild[prefix]; ch != nil {
				n += ch.followers
			}
		}
	}
	return n
}

// followers is followersLocked.
func (r *registry) followers(names []string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.followersLocked(names)
}

// byNameLocked counts the consumers that follow one of names by name, each
// once; "all" counts those that follow any.
func (r *registry) byNameLocked(names []string) int {
	if names[0] == globalName {
		return r.byName
	}
	if len(names) == 1 {
		if ch := r.named[names[0]]; ch != nil {
			return ch.followers
		}
		return 0
	}
	seen := map[*consumer]bool{}
	count := func(c *consumer) {
		for _, name := range names {
			if !c.gone && c.follows(name) {
				seen[c] = true
			}
		}
	}
	for _, w := range r.writers {
		for _, c := range w.joins {
			count(c)
		}
	}
	for _, name := range names {
		if ch := r.named[name]; ch != nil {
			for _, s := range ch.sides {
				for _, c := range s.members {
					count(c)
				}
			}
		}
	}
	return len(seen)
}

// exists reports whether each of names has a consumer by name or a kept event.
func (r *registry) exists(names ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock()
	for _, name := range names {
		if ch := r.named[name]; ch == nil || !ch.existsLocked(now) {
			return false
		}
	}
	return true
}

// existsLocked reports whether a consumer follows the channel or an event of it
// is kept.
func (ch *channel) existsLocked(now int64) bool {
	if ch.followers > 0 {
		return true
	}
	for i := ch.n - ch.kept; i < ch.n; i++ {
		if !ch.at(i).expired(now) {
			return true
		}
	}
	return false
}

// count returns the consumers that follow each of names by name, summed.
func (r *registry) count(names ...string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, name := range names {
		if ch := r.named[name]; ch != nil {
			n += ch.followers
		}
	}
	return n
}

// connected returns how many consumers there are.
func (r *registry) connected() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.consumers
}

// names returns the channels that exist, sorted.
func (r *registry) names() []string {
	r.mu.Lock()
	now := r.clock()
	names := make([]string, 0, len(r.named))
	for name, ch := range r.named {
		if ch.existsLocked(now) {
			names = append(names, name)
		}
	}
	r.mu.Unlock()
	slices.Sort(names)
	return names
}

// close ends the writers and the wheel.
func (r *registry) close() {
	r.mu.Lock()
	r.closed = true
	r.wheel.stop()
	if r.expiryTimer != nil {
		r.expiryTimer.Stop()
	}
	writers := r.writers
	for _, w := range writers {
		w.closed = true
		w.stir()
	}
	r.mu.Unlock()
	for _, w := range writers {
		w.wake()
		<-w.done
	}
}

// publishError turns what a backend refused a record with into a problem.
func publishError(err error, retry time.Duration) *Problem {
	var p *Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, ErrKeyReused):
		p = newProblem(http.StatusUnprocessableEntity,
			"this Idempotency-Key came with another body before: give each event a key of its own")
	case errors.Is(err, ErrKeysFull):
		p = newProblem(http.StatusServiceUnavailable,
			"too many idempotency keys are remembered: publish without one, or wait").after(30 * time.Second)
	case errors.Is(err, ErrTooLarge):
		p = newProblem(http.StatusRequestEntityTooLarge, err.Error())
	case errors.Is(err, ErrUnknown):
		p = newProblem(http.StatusServiceUnavailable,
			"the backend did not answer: the events may have been kept; a repeat with the same Idempotency-Key settles it").after(retry)
		p.Outcome = "unknown"
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrClosed):
		p = newProblem(http.StatusServiceUnavailable, "the backend is away and nothing was published: repeat later").after(retry)
	default:
		p = newProblem(http.StatusServiceUnavailable, "the backend failed and nothing was published: repeat later").after(retry)
	}
	p.cause = err
	return p
}
