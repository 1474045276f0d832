package eventsource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Resume: where a consumer that comes back stands, and what it missed. That is in the
// logs; what they no longer hold, or don't hold since the node began, a Store has. A
// log is filled from it once for all who come back (fill); who comes from before what
// history holds reads pages of its own (replay), until the logs reach.

const (
	// recallEvents and recallBytes bound a page that one consumer is sent from the
	// Store; recalls is how many are held at once.
	recallEvents = 256
	recallBytes  = 64 << 10
	recalls      = 256
	// fillBytes bounds what a log is filled with.
	fillBytes = 4 << 20
)

// behind refuses a consumer whose place the logs don't reach: recall and replay come
// first.
var behind = newProblem(http.StatusServiceUnavailable, "more is published than can be caught up with: come back with the last id").after(time.Second)

// beginLocked returns the place from which on the consumer gets what there is:
// the mark, unless it asks for what came before. It notes the gap, if there is
// one.
func (r *registry) beginLocked(c *consumer, s *subscription, mark uint64) uint64 {
	latest := func(frames []*frame, most int) uint64 {
		frames = slices.DeleteFunc(frames, func(f *frame) bool { return !c.wants(f) })
		c.forgiven = mark
		return before(frames[max(0, len(frames)-most):], mark)
	}
	switch {
	case s.begun:
		return s.place
	case s.id != "":
		from, known := s.place, s.placed
		if !s.recalled {
			from, known = r.placeLocked(s.id, c)
		}
		frames, floor := r.keptLocked(c, from, mark)
		if known && from >= floor {
			return from
		}
		oldest := s.oldest
		if i := slices.IndexFunc(frames, c.mayKnow); i >= 0 && oldest == "" {
			oldest = frames[i].id()
		}
		c.gap = gapData(s.id, oldest)
		r.stats.gaps.Add(1)
		return latest(frames, r.mostLocked(c))
	case s.history > 0:
		frames, _ := r.keptLocked(c, 0, mark)
		return latest(frames, s.history)
	}
	return mark
}

// beginText is what a stream begins with.
func beginText(gap string, id [36]byte, retry time.Duration) string {
	text := "retry: " + strconv.FormatInt(retry.Milliseconds(), 10) + "\n: welcome\n"
	if gap != "" {
		// The id comes after the gap: who was cut off between them is told again.
		text += "\n" + gapText(gap)
	}
	return text + "id: " + string(id[:]) + "\n\n"
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
	for l := range c.logs {
		ch := l.side.channel
		if ch.kept == 0 {
			highest = max(highest, ch.floor)
			continue
		}
		var floor uint64
		frames, floor = ch.history(frames, from, mark, c.joined)
		highest = max(highest, floor)
	}
	return merge(frames), highest
}

// mostLocked is how many events a consumer gets that is told of a gap.
func (r *registry) mostLocked(c *consumer) int {
	most := 0
	for l := range c.logs {
		most = max(most, r.rules[l.side.channel.rule].History.Events)
	}
	return most
}

// place is positionedLocked.
func (r *registry) place(id string) (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.positionedLocked(id)
}

// positionedLocked returns the place in the order that an id of the server says.
func (r *registry) positionedLocked(id string) (uint64, bool) {
	p, ok := parsePosition(id)
	if !ok {
		return 0, false
	}
	if p.of(r.epoch) && p.seq <= r.mark.Load() {
		return p.seq, true
	}
	for _, l := range r.earlier {
		if p.of(l.Epoch) && p.seq <= l.Last {
			return p.seq, true
		}
	}
	return 0, false
}

// placeLocked returns the place of an id in the order: what a position says, or
// where the oldest kept event stands that a publisher gave it.
func (r *registry) placeLocked(id string, c *consumer) (uint64, bool) {
	if seq, ok := r.positionedLocked(id); ok {
		return seq, true
	}
	place := uint64(0)
	for l := range c.logs {
		ch := l.side.channel
		for i := ch.n - ch.kept; i < ch.n; i++ {
			if f := ch.at(i); f.id() == id && c.mayKnow(f) {
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

// behindLocked reports whether a Store has what a consumer asks for and the logs have
// not, at now.
func (r *registry) behindLocked(s *subscription, now int64) bool {
	if r.isShelf || s.id == "" && s.history == 0 && !s.begun {
		return false
	}
	place, known := s.place, s.placed
	if !s.recalled {
		if s.id == "" {
			return true
		}
		if place, known = r.positionedLocked(s.id); !known {
			return true
		}
	} else if !known {
		return false
	}
	return slices.ContainsFunc(s.names, func(name string) bool { return r.floorLocked(name, now) > place }) ||
		r.floorLocked(globalName, now) > place
}

// floorLocked returns the floor of a log at now.
func (r *registry) floorLocked(name string, now int64) uint64 {
	ch := r.logOfLocked(name)
	if ch == nil {
		return r.floors[r.bucket(name)]
	}
	_, floor := ch.history(nil, nobody, nobody, now)
	return floor
}

// logOfLocked returns the log of a name, a wildcard or "all", nil where there is none.
func (r *registry) logOfLocked(name string) *channel {
	if name == globalName {
		return r.all
	}
	return r.findLocked(name)
}

// isBehind is behindLocked.
func (r *registry) isBehind(s *subscription) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.behindLocked(s, r.clock())
}

// recall finds out where a consumer stands that asks for what came before, and has the
// logs hold what it wants as far as history reaches. It may wait for the Store.
func (s *Server) recall(ctx context.Context, sub *subscription) *Problem {
	r := s.registry
	if r.isShelf || !r.isBehind(sub) {
		return nil
	}
	logs := append(slices.Clone(sub.names), globalName)
	viewer := sub.viewer()
	place, known := uint64(0), false
	if sub.id != "" {
		place, known = r.place(sub.id)
		if !known {
			for _, name := range logs {
				e, ok, p := s.first(ctx, viewer, Query{Channel: name, ID: sub.id})
				if p != nil {
					return p
				}
				if ok && (!known || e.Seq < place) {
					place, known = e.Seq, true
				}
			}
		}
		floor := uint64(0)
		if known {
			var p *Problem
			if floor, p = s.fill(ctx, logs, place, false); p != nil {
				return p
			}
		}
		sub.recalled, sub.place = true, place
		if known && place >= floor {
			sub.placed = true
			return nil
		}
		oldest := uint64(0)
		for _, name := range logs {
			e, ok, p := s.first(ctx, viewer, Query{Channel: name, After: place})
			if p != nil {
				return p
			}
			if ok && (oldest == 0 || e.Seq < oldest) {
				oldest, sub.oldest = e.Seq, e.ID
			}
		}
	}
	_, p := s.fill(ctx, logs, place, true)
	sub.recalled = true
	return p
}

// first returns the oldest event of a query that a consumer may know of.
func (s *Server) first(ctx context.Context, viewer *consumer, q Query) (Stored, bool, *Problem) {
	q.Limit = 1
	if viewer.hides {
		q.Limit = recallEvents
	}
	for {
		page, err := s.shelf.Read(ctx, q)
		if err != nil {
			return Stored{}, false, readError(err, s.settings.Retry)
		}
		for i := range page.Events {
			if e := &page.Events[i]; viewer.mayKnow(e.frame()) {
				return *e, true, nil
			}
		}
		if !page.More {
			return Stored{}, false, nil
		}
		q.After = page.Events[len(page.Events)-1].Seq
	}
}

// frame encodes a stored event.
func (e *Stored) frame() *frame {
	f := newFrame(&e.Event)
	f.seq, f.time, f.channels = e.Seq, e.Time.UnixNano(), strings.Join(e.Channels, ",")
	if !slices.ContainsFunc(e.Channels, func(name string) bool { return !private(name) }) {
		f.flags |= flagPrivate
	}
	return f
}

// viewer returns a consumer that looks at events as the one that is asked for would,
// and follows nothing.
func (sub *subscription) viewer() *consumer {
	c := &consumer{raw: sub.raw, hides: sub.hides, rare: &rare{filter: sub.filter, envelope: sub.envelope}}
	follows := make([]follow, 0, len(sub.names)+1)
	for _, name := range append(slices.Clone(sub.names), globalName) {
		follows = append(follows, follow{side: &side{channel: &channel{name: name}}})
	}
	last := len(follows) - 1
	c.first, c.global, c.wider = follows[0], follows[last], &wider{follows: follows[1:last]}
	return c
}

// fill has logs hold what the Store has above a place, as far as their history reaches,
// and returns the highest of the Store's floors above the place, if that is wanted: where
// history is all that counts, it is not.
func (s *Server) fill(ctx context.Context, logs []string, place uint64, historyOnly bool) (floor uint64, p *Problem) {
	for _, name := range logs {
		f, err := s.registry.fill(ctx, s.shelf, name, place, historyOnly)
		if err != nil {
			return 0, readError(err, s.settings.Retry)
		}
		floor = max(floor, f)
	}
	return floor, nil
}

// fill is Server.fill for one log. Of those that want the same log filled one reads.
func (r *registry) fill(ctx context.Context, from shelf, name string, place uint64, historyOnly bool) (floor uint64, err error) {
	r.mu.Lock()
	for r.filling[name] != nil {
		done := r.filling[name]
		r.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		r.mu.Lock()
	}
	now := r.clock()
	if ch := r.logOfLocked(name); ch != nil {
		r.sweepLocked(ch, now)
	}
	ch, kept, below := r.logOfLocked(name), 0, r.floorLocked(name, now)
	whole := true // nothing but its history is in the log
	if ch != nil {
		kept = ch.kept - int(ch.passing)
		_, floor := ch.history(nil, nobody, nobody, now)
		whole = ch.n == ch.kept && floor == ch.floor
	}
	most := r.rules[r.rule(name)].History.Events
	if below <= place || ch != nil && below == ch.bottom || historyOnly && kept >= most {
		r.mu.Unlock()
		return below, nil
	}
	if most == 0 { // nobody gets what came before; whether anything did, the Store knows
		r.mu.Unlock()
		page, err := from.Read(ctx, Query{Channel: name, After: place, Before: below + 1, Limit: 1})
		if len(page.Events) > 0 {
			return below, err
		}
		return min(page.Floor, below), err
	}
	q := Query{Channel: name, Before: below + 1, Descending: true, Limit: most - kept, Bytes: fillBytes}
	if !whole || kept >= most {
		r.mu.Unlock()
		q.Limit = 1
		page, err := from.Read(ctx, q)
		return min(page.Floor, below), err
	}
	done := make(chan struct{})
	r.filling[name] = done
	r.mu.Unlock()
	page, err := from.Read(ctx, q)
	page.Floor = min(page.Floor, below) // what comes after is the log's to know, which may not have it yet
	frames := make([]*frame, len(page.Events))
	for i := range page.Events {
		frames[len(frames)-1-i] = page.Events[i].frame()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(done)
	delete(r.filling, name)
	if err != nil {
		return 0, err
	}
	r.prependLocked(name, below, frames, &page)
	return page.Floor, nil
}

// prependLocked puts what a page of a Store had below a log's floor into the log, unless
// that has moved.
func (r *registry) prependLocked(name string, below uint64, frames []*frame, page *Page) {
	now := r.clock()
	if r.floorLocked(name, now) != below {
		return
	}
	ch := r.logOfLocked(name)
	if ch == nil {
		ch = r.makeLocked(name)
	}
	ch.mu.Lock()
	if ch.n == ch.kept {
		age := r.rules[ch.rule].History.Age
		held := make([]*frame, 0, len(frames)+ch.n)
		for i := range ch.n {
			held = append(held, ch.at(i))
		}
		// What expired out of the middle has left a floor above events that are here.
		fresh := frames[:0]
		for i, f := range frames {
			if at := ch.after(f.seq - 1); at == ch.n || ch.at(at).seq != f.seq {
				f.expires.Store(expiry(now, age, page.Events[len(frames)-1-i].TTL))
				fresh = append(fresh, f)
			}
		}
		held = merge(append(held, fresh...))
		size := 1
		for size < len(held) {
			size *= 2
		}
		if len(held) > 0 {
			ch.ring, ch.head = append(held, make([]*frame, size-len(held))...), 0
		}
		ch.n, ch.kept = len(held), len(held)
		for _, f := range fresh {
			r.holdLocked(f)
			ch.bytes += f.size() + entryBytes
			r.scheduleLocked(ch, f.expires.Load())
			ch.last.Store(max(ch.last.Load(), f.seq))
		}
		ch.floor = page.Floor
		if page.More {
			ch.floor = max(ch.floor, page.Events[len(page.Events)-1].Seq-1)
		} else {
			ch.bottom = ch.floor
		}
		ch.dropped = min(ch.dropped, ch.floor) // who is connected has what was dropped since
	}
	ch.mu.Unlock()
	r.classLocked(ch)
	r.spendLocked()
}

// replay sends a consumer what a Store has above its place, until the logs reach. It
// returns a refusal before anything was sent; errEnded when the stream has ended, and
// what could not be written.
func (s *Server) replay(ctx context.Context, sub *subscription, o outlet) (*Problem, error) {
	r := s.registry
	if !sub.placed || !r.isBehind(sub) {
		return nil, nil
	}
	viewer := sub.viewer()
	defer s.replays.Add(-1)
	if n, most := int(s.replays.Add(1)), s.limits().Consumers; n+r.connected() > most {
		return newProblem(http.StatusServiceUnavailable,
			fmt.Sprintf("no more than %d consumers may be connected, and they are: come back later", most)).
			after(jitter(s.settings.Retry, 0)).limitedBy(limitConsumers), nil
	}
	for sub.placed && r.isBehind(sub) {
		if reason := s.over(sub); reason != "" {
			if !sub.begun {
				return drainingProblem(s.settings.Retry), nil
			}
			o.write(sub.tail(endText(reason, s.returnAfter(reason))), min(s.settings.Timeout, time.Second))
			return nil, errEnded
		}
		batch, n, p := s.recallBatch(ctx, sub, viewer)
		switch {
		case p != nil && !sub.begun:
			return p, nil
		case p != nil:
			return nil, errEnded
		case batch == nil:
			continue
		}
		err := o.write(batch, s.settings.Timeout)
		<-s.recalls
		if err != nil {
			return nil, err
		}
		s.stats.deliver(n, len(batch))
		s.stats.recalled.Add(uint64(n))
	}
	return nil, nil
}

// errEnded is the end of a stream that was ended while its consumer caught up.
var errEnded = errors.New("the stream was ended")

// tail is the last that a consumer is sent.
func (sub *subscription) tail(text string) []byte {
	if sub.raw {
		return []byte(text)
	}
	return append(newChunk(text), "0\r\n\r\n"...)
}

// refusal is what a consumer is sent, whose response has begun, that is refused.
func (sub *subscription) refusal(p *Problem) []byte {
	if sub.begun {
		return sub.tail(refusalText(p))
	}
	return append(sub.head, sub.tail(refusalText(p))...)
}

// over returns why a stream that catches up must end, "" where it need not.
func (s *Server) over(sub *subscription) string {
	if s.draining.Load() {
		return endDraining
	}
	if sub.policy == nil {
		return ""
	}
	if sub.identity != nil && sub.identity.expired(time.Now()) {
		return endExpired
	}
	if policy := s.policy.Load(); policy != sub.policy {
		if _, ok := policy.permits(sub.identity, slices.Values(sub.names), sub.hides); !ok {
			return endRevoked
		}
	}
	return ""
}

// recallBatch returns the bytes of the next page for a consumer, of so many events, and
// moves its place. Whoever has them holds one of s.recalls, until it has written them.
// Without bytes it holds none: recall has looked again.
func (s *Server) recallBatch(ctx context.Context, sub *subscription, viewer *consumer) (batch []byte, n int, p *Problem) {
	select {
	case s.recalls <- struct{}{}:
	default:
		wait := time.NewTimer(s.settings.Timeout)
		defer wait.Stop()
		select {
		case s.recalls <- struct{}{}:
		case <-wait.C:
			return nil, 0, newProblem(http.StatusServiceUnavailable, "too many consumers catch up at present: come back later").after(jitter(s.settings.Retry, 0))
		case <-ctx.Done():
			return nil, 0, drainingProblem(s.settings.Retry)
		}
	}
	place := sub.place
	frames, lost, p := s.recallPage(ctx, sub, viewer)
	if lost && !sub.begun { // since recall: its stream is to begin with the gap
		sub.recalled, sub.placed, sub.forgiven = false, false, 0
		if p == nil {
			p = s.recall(ctx, sub)
		}
		<-s.recalls
		return nil, 0, p
	}
	if p != nil {
		<-s.recalls
		return nil, 0, p
	}
	switch {
	case !sub.begun:
		id := s.registry.position(place)
		batch = viewer.frameText(append(batch, sub.head...), beginText("", id, s.settings.Retry))
		sub.begun = true
	case lost:
		batch = viewer.frameText(batch, gapText(gapData("", "")))
		s.stats.gaps.Add(1)
	case len(frames) == 0: // a page of what is not wanted: so much less to look at again, and who has left is noticed
		id := s.registry.position(sub.place)
		batch = viewer.frameText(batch, ":\nid: "+string(id[:])+"\n\n")
	}
	for _, f := range frames {
		batch = append(batch, viewer.bytes(f)...)
	}
	return batch, len(frames), nil
}

// recallPage returns what comes next for a consumer that catches up, and moves its
// place. lost tells that the Store no longer has some of it.
func (s *Server) recallPage(ctx context.Context, sub *subscription, viewer *consumer) (frames []*frame, lost bool, p *Problem) {
	mark := s.registry.mark.Load()
	upTo := mark
	logs := append(slices.Clone(sub.names), globalName)
	for _, name := range logs { // who follows many gets no more at once
		page, err := s.shelf.Read(ctx, Query{Channel: name, After: sub.place, Before: mark + 1,
			Limit: max(recallEvents/len(logs), 16), Bytes: max(recallBytes/len(logs), 4<<10)})
		if err != nil {
			return nil, false, readError(err, s.settings.Retry)
		}
		if floor := min(page.Floor, mark); floor > max(sub.place, sub.forgiven) {
			lost = true
			sub.forgiven = floor
		}
		if n := len(page.Events); page.More && n > 0 {
			upTo = min(upTo, page.Events[n-1].Seq)
		}
		for i := range page.Events {
			frames = append(frames, page.Events[i].frame())
		}
	}
	frames = merge(frames)
	wanted := frames[:0]
	for _, f := range frames {
		if f.seq <= upTo && viewer.wants(f) {
			wanted = append(wanted, f)
		}
	}
	sub.place = upTo
	return wanted, lost, nil
}
