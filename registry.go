package eventsource

import (
	"cmp"
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
	settings *Settings         // effective
	isShelf  bool              // the logs are what pages are read from
	rules    []ChannelSettings // those of all channels, then Settings.Channels
	began    time.Time         // what clock counts from
	hash     maphash.Seed
	stats    *stats

	moved func(reason error) // told of the backend's state
	begun chan struct{}      // closed when the node has joined the order

	drained atomic.Int64 // consumers that were connected when the server began to shut down

	// mark is the Seq up to which the logs have every event. Moved with mu held.
	mark atomic.Uint64

	mu          sync.Mutex
	policy      *policy
	epoch       Epoch
	earlier     []Life
	named       map[string]*channel // by name
	wild        map[string]*channel // by prefix: "pets" has "pets.*", "" has "*"
	all         *channel
	filling     map[string]chan struct{}         // logs that are being filled, closed when it is done
	marks       map[*channel]map[uint64]struct{} // events that are read, where the logs are the store
	floors      [floorBuckets]uint64             // of channels that went, by their names' hash
	consumers   int                              // connected
	relayed     int                              // streams of relays
	number      uint64                           // of the consumer that came last
	byName      int                              // of them those that follow a channel by name
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

var _ Node = (*registry)(nil)

// newRegistry returns the registry of a node without channels.
func newRegistry(s *Settings, st *stats) *registry {
	r := &registry{
		settings:  s,
		rules:     slices.Concat([]ChannelSettings{{Match: "*", History: &s.History, Retention: &s.Retention}}, s.Channels),
		began:     time.Now(),
		hash:      maphash.MakeSeed(),
		stats:     st,
		named:     map[string]*channel{},
		wild:      map[string]*channel{},
		all:       &channel{name: globalName},
		marks:     map[*channel]map[uint64]struct{}{},
		addresses: map[netip.Addr]int{},
		filling:   map[string]chan struct{}{},
		begun:     make(chan struct{}),
	}
	r.budget.limit = s.History.Bytes
	r.all.rule = r.rule(globalName)
	return r
}

// rule returns the number of the settings that a channel or wildcard goes by.
func (r *registry) rule(name string) uint8 {
	for i := 1; i < len(r.rules); i++ {
		if covers(r.rules[i].Match, name) {
			return uint8(i)
		}
	}
	return 0
}

// clock returns the time since the registry began, in nanoseconds. It never
// jumps. 0 is before everything.
func (r *registry) clock() int64 { return int64(time.Since(r.began)) + 1 }

// begin sets where the order stands when the node joins it.
func (r *registry) begin(o Order) {
	defer close(r.begun)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch, r.earlier = o.Epoch, o.Earlier
	r.mark.Store(o.Seq)
	r.all.floor, r.all.dropped = o.Seq, o.Seq
	for i := range r.floors {
		r.floors[i] = o.Seq
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
		switch {
		case rec.Purge:
			r.purgeLocked(rec)
		case rec.Marks != nil:
			r.markLocked(rec)
		default:
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
	if len(rec.frames) > 0 {
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
	age := r.age(rec.Channels)
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
		f.expires.Store(expiry(now, age, rec.Events[i].TTL))
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

// age returns how long the history of channels keeps an event of all of them; 0
// is for ever.
func (r *registry) age(names []string) time.Duration {
	if len(r.rules) == 1 {
		return r.rules[0].History.Age
	}
	longest := time.Duration(1)
	for _, name := range names {
		age := r.rules[r.rule(name)].History.Age
		if age == 0 {
			return 0
		}
		longest = max(longest, age)
	}
	return longest
}

// expiry returns when an event of now expires by an age, 0 being none, and its own
// ttl; 0 is never.
func expiry(now int64, age, ttl time.Duration) int64 {
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
		if f.control() {
			ch.passing++
		}
		for ch.kept-int(ch.passing) > r.rules[ch.rule].History.Events {
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
	if ch == nil && r.rules[r.rule(name)].History.Events > 0 {
		ch = r.makeLocked(name)
	}
	return ch
}

// wildLocked does the same for the wildcard below a prefix.
func (r *registry) wildLocked(prefix string) *channel {
	ch := r.wild[prefix]
	if ch == nil && (len(r.rules) > 1 || r.settings.History.Events > 0) { // or else no name is made
		if name := wildcardOf(prefix); r.rules[r.rule(name)].History.Events > 0 {
			ch = r.makeLocked(name)
		}
	}
	return ch
}

// makeLocked makes a channel. Its floor is the one that it left when it went.
func (r *registry) makeLocked(name string) *channel {
	name = strings.Clone(name)
	ch := &channel{name: name, rule: r.rule(name)}
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

// tidy is tidyLocked for channels that may be there.
func (r *registry) tidy(names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range names {
		if ch := r.findLocked(name); ch != nil {
			r.tidyLocked(ch)
		}
	}
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
	delete(r.marks, ch)
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
	purge := func(ch *channel) {
		for _, s := range ch.sides {
			s.writer.ends = append(s.writer.ends, ending{side: s, before: rec.Seq, reason: endClosed})
			s.writer.stir()
		}
	}
	if rec.Channels[0] == globalName {
		rec.Purged = append([]string{}, rec.Purged...) // of the Store
		for name, ch := range r.named {
			if ch.existsLocked(now) {
				rec.Purged = append(rec.Purged, name)
			}
			purge(ch)
			r.emptyLocked(ch)
		}
		for _, ch := range r.wild {
			r.emptyLocked(ch)
		}
		r.emptyLocked(r.all)
		r.raiseLocked(rec)
		slices.Sort(rec.Purged)
		rec.Purged = slices.Compact(rec.Purged)
		return
	}
	rec.Purged = rec.Channels
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
	r.raiseLocked(rec)
}

// raiseLocked raises the floors of what a purge took from, where a Store keeps events
// that the logs don't: what is being read of it must not come into them any more.
func (r *registry) raiseLocked(rec *Record) {
	if r.isShelf {
		return
	}
	raise := func(ch *channel) {
		ch.mu.Lock()
		ch.floor = max(ch.floor, rec.Seq)
		ch.mu.Unlock()
	}
	if rec.Channels[0] == globalName {
		for i := range r.floors {
			r.floors[i] = rec.Seq
		}
		for _, ch := range r.named {
			raise(ch)
		}
		for _, ch := range r.wild {
			raise(ch)
		}
		raise(r.all)
		return
	}
	for _, name := range rec.Channels {
		r.leaveFloorLocked(name, rec.Seq)
		if ch := r.named[name]; ch != nil {
			raise(ch)
		}
		for prefix := range prefixes(name) {
			r.leaveFloorLocked(wildcardOf(prefix), rec.Seq)
			if ch := r.wild[prefix]; ch != nil {
				raise(ch)
			}
		}
	}
}

// expireLocked has those events of these channels expire in a log that no other channel
// keeps: only who is connected still gets them. It reports whether there are
// any.
func (r *registry) expireLocked(ch *channel, names []string, now int64) bool {
	found := false
	for i := range ch.n {
		f := ch.at(i)
		purged, elsewhere := false, false
		for s := range strings.SplitSeq(f.channels, ",") {
			if slices.Contains(names, s) {
				purged = true
			} else if other := r.named[s]; other != nil && other.keepsLocked(f.seq) {
				elsewhere = true
			}
		}
		if !purged || elsewhere {
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
func (r *registry) Lost(o Order) {
	<-r.begun
	seq := o.Seq
	r.mu.Lock()
	r.epoch, r.earlier = o.Epoch, o.Earlier
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
	r.all.floor = seq
	r.mark.Store(seq)
	writers := r.writers
	r.mu.Unlock()
	r.stats.gaps.Add(1)
	for _, w := range writers {
		w.wake()
	}
}

// Available passes on what the backend says of itself.
func (r *registry) Available(reason error) {
	if r.moved != nil {
		r.moved(reason)
	}
}

// Retention returns what a Store retains of a channel, 0 being no bound.
func (r *registry) Retention(channel string) Retention {
	return *r.rules[r.rule(channel)].Retention
}

// Limits returns the limits in force.
func (r *registry) Limits() Limits {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.policy.limits
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
	if len(r.named)+len(names) <= r.policy.limits.Channels || publishing && len(r.rules) == 1 && r.settings.History.Events == 0 {
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
	if n := r.consumers + r.relayed; n >= limits.Consumers {
		return newProblem(http.StatusServiceUnavailable,
			fmt.Sprintf("no more than %d consumers may be connected, and they are: come back later", n)).
			after(jitter(retry, 0)).limitedBy(limitConsumers)
	}
	if most := limits.ConsumersPerAddress; most > 0 && s.address.IsValid() && r.addresses[s.address] >= most {
		return newProblem(http.StatusTooManyRequests,
			fmt.Sprintf("no more than %d consumers may be connected from one address, and they are: close one", most)).
			after(jitter(retry, 0)).limitedBy(limitConsumersPerAddress)
	}
	if limits.ConsumersPerChannel > 0 || len(r.rules) > 1 {
		for _, name := range s.names {
			ch := r.named[name]
			if ch == nil {
				continue
			}
			most := cmp.Or(r.rules[ch.rule].Consumers, limits.ConsumersPerChannel)
			if most > 0 && ch.followers >= most {
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
			"the backend did not answer"+inBrackets(err)+": the events may have been kept; a repeat with the same Idempotency-Key settles it").after(retry)
		p.Outcome = "unknown"
	case errors.Is(err, ErrChannelsFull):
		p = newProblem(http.StatusServiceUnavailable,
			"as many channels are kept as may: use one of them, or wait until one has no events").after(10 * time.Second)
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrClosed):
		p = newProblem(http.StatusServiceUnavailable, "the backend is away"+inBrackets(err)+" and nothing was published: repeat later").after(retry)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		p = newProblem(http.StatusServiceUnavailable, "the publisher went away before its turn, and nothing was published").after(retry)
	default:
		p = newProblem(http.StatusServiceUnavailable, "the backend failed"+inBrackets(err)+" and nothing was published: repeat later").after(retry)
	}
	p.cause = err
	return p
}

// reasonOf returns what an error of a backend says besides what it is.
func reasonOf(err error) string {
	reason := err.Error()
	for _, known := range []error{ErrUnavailable, ErrUnknown} {
		reason = strings.TrimPrefix(strings.TrimPrefix(reason, known.Error()), ": ")
	}
	return clip(reason)
}

// inBrackets returns the reason of an error, if it says one, as an aside.
func inBrackets(err error) string {
	if reason := reasonOf(err); reason != "" {
		return " (" + reason + ")"
	}
	return ""
}
