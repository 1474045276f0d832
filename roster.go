package eventsource

import (
	"cmp"
	"context"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Who is connected, for operators.

// A Consumer is one connection, as an operator sees it.
type Consumer struct {
	ID        string    `json:"id"`
	Channels  []string  `json:"channels"`          // the names and wildcards that it follows
	Connected time.Time `json:"connected"`         // when it came
	Position  string    `json:"position"`          // the id of the place up to which it has everything
	Behind    uint64    `json:"behind"`            // places between that and the mark
	Subject   string    `json:"subject,omitempty"` // of its token

	// Address is where it comes from, an IPv6 one as its /64; the zero one where
	// Limits.ConsumersPerAddress does not count by it: it is not kept then.
	Address netip.Addr `json:"-"`
}

// Consumers returns those that follow a channel or a wildcard by its name, "all" being
// all consumers: up to limit of those that came after the one of an id, in the order in
// which they came. more tells that there are others. It is safe for concurrent use, and
// costs a look at each consumer of the channel.
func (s *Server) Consumers(channel, after string, limit int) (list []Consumer, more bool) {
	from, _ := parseNumber(after)
	var found []numbered
	s.registry.eachConsumer(channel, func(c *consumer) bool {
		if n := c.number(); n > from {
			found = append(found, numbered{n, c})
		}
		return true
	})
	slices.SortFunc(found, func(a, b numbered) int { return cmp.Compare(a.number, b.number) })
	if len(found) > limit {
		found, more = found[:limit], true
	}
	for _, f := range found {
		list = append(list, s.registry.describe(f.consumer))
	}
	return list, more
}

// Latest returns up to limit consumers, who came last first. They are the latest of each
// writer, but that one may stand in the place of a later one that has left: to find those
// exactly would cost a look at each consumer, and this costs limit for each writer. It is
// safe for concurrent use.
func (s *Server) Latest(limit int) []Consumer {
	r := s.registry
	var found []numbered
	take := func(members []*consumer) {
		for i := len(members) - 1; i >= max(0, len(members)-limit); i-- {
			if c := members[i]; !c.gone {
				found = append(found, numbered{c.number(), c})
			}
		}
	}
	r.mu.Lock()
	for _, w := range r.writers {
		take(w.joins)
	}
	for _, s := range r.all.sides {
		take(s.members)
	}
	r.mu.Unlock()
	slices.SortFunc(found, func(a, b numbered) int { return cmp.Compare(b.number, a.number) })
	list := make([]Consumer, 0, min(limit, len(found)))
	for _, f := range found[:cap(list)] {
		list = append(list, r.describe(f.consumer))
	}
	return list
}

// Followed yields the names and wildcards that consumers follow, each with how many do,
// in no order, until ctx ends. It looks at a few hundred channels at a time, for which
// everything else waits, and then rests for rest times as long as that took: with 99 it
// is in the way for a hundredth of the time, and takes 100 times as long. What comes or
// goes meanwhile may be left out. It is safe for concurrent use.
func (s *Server) Followed(ctx context.Context, rest int) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		s.registry.eachFollowed(func(piece []following, took time.Duration) bool {
			for _, f := range piece {
				if !yield(f.name, f.consumers) {
					return false
				}
			}
			return ctx.Err() == nil && (took == 0 || rest == 0 || sleep(ctx, time.Duration(rest)*took))
		})
	}
}

// A following is a name or wildcard, and how many consumers follow it.
type following struct {
	name      string
	consumers int
}

// eachFollowed hands out what consumers follow, piece by piece and without a lock, with
// how long the lock was held for it (0: it was the last piece), until see returns false.
func (r *registry) eachFollowed(see func(piece []following, took time.Duration) bool) {
	const together = 512 // looked at under one lock
	piece := make([]following, 0, together)
	looked := 0
	r.mu.Lock()
	since := time.Now()
	for _, channels := range []map[string]*channel{r.named, r.wild} {
		// A map may change between two steps of a range over it.
		for _, ch := range channels {
			if ch.followers > 0 {
				piece = append(piece, following{ch.name, ch.followers})
			}
			if looked++; looked%together != 0 {
				continue
			}
			took := time.Since(since)
			r.mu.Unlock()
			if !see(piece, max(took, 1)) {
				return
			}
			piece = piece[:0]
			r.mu.Lock()
			if r.closed {
				break
			}
			since = time.Now()
		}
	}
	r.mu.Unlock()
	see(piece, 0)
}

// A numbered is a consumer with its number.
type numbered struct {
	number   uint64
	consumer *consumer
}

// Disconnect ends the stream of the consumer of an id ("closed"); false where there is
// none. It is safe for concurrent use, and costs a look at each consumer.
func (s *Server) Disconnect(id string) bool {
	number, ok := parseNumber(id)
	if !ok {
		return false
	}
	r := s.registry
	ended := false
	r.eachConsumer(globalName, func(c *consumer) bool {
		if ended = c.number() == number; ended {
			r.endLocked(c, endClosed)
		}
		return !ended
	})
	return ended
}

// endLocked has a consumer's writer end its stream.
func (r *registry) endLocked(c *consumer, reason string) {
	w := c.global.side.writer
	w.ends = append(w.ends, ending{consumer: c, reason: reason})
	w.stir()
}

// parseNumber reads a consumer's id.
func parseNumber(id string) (uint64, bool) {
	n, err := strconv.ParseUint(id, 16, 64)
	return n, err == nil && id == numberText(n)
}

// numberText is a consumer's number as its id.
func numberText(n uint64) string { return strconv.FormatUint(n, 16) }

// eachConsumer has see look at the consumers that follow a name or wildcard, or at all of
// them, until it returns false, and wakes the writers that it has stirred. It is called
// with mu held, which others have between some of the calls: who comes or goes meanwhile
// may be left out.
func (r *registry) eachConsumer(name string, see func(c *consumer) bool) {
	const together = 1000 // looked at under one lock
	r.mu.Lock()
	unlock := func() {
		writers := r.writers
		r.mu.Unlock()
		for _, w := range writers {
			w.wake()
		}
	}
	defer unlock()
	ch := r.all
	if name != globalName {
		ch = r.findLocked(name)
	}
	if ch == nil {
		return
	}
	for _, w := range r.writers {
		for _, c := range w.joins {
			if !c.gone && (ch == r.all || c.follows(name)) && !see(c) {
				return
			}
		}
	}
	for _, s := range slices.Clone(ch.sides) {
		// From the end: who leaves has its place taken by the last, which was looked at.
		for i := len(s.members) - 1; i >= 0; i-- {
			if i%together == 0 && i > 0 {
				unlock()
				r.mu.Lock()
				if i = min(i, len(s.members)-1); i < 0 {
					break
				}
			}
			if c := s.members[i]; !c.gone && !see(c) {
				return
			}
		}
	}
}

// describe says of a consumer what an operator wants to know.
func (r *registry) describe(c *consumer) Consumer {
	r.mu.Lock()
	defer r.mu.Unlock()
	mark := r.mark.Load()
	pos := mark
	for l := range c.logs {
		if at := c.pos.Load(); at < l.side.channel.last.Load() {
			pos = min(pos, at)
		}
	}
	id := r.positionLocked(pos)
	d := Consumer{
		ID:        numberText(c.number()),
		Channels:  slices.Collect(c.named),
		Connected: time.UnixMicro(int64(c.number())).UTC(),
		Position:  string(id[:]),
		Behind:    mark - pos,
	}
	if c.wider != nil {
		d.Address = c.wider.address
	}
	if id := c.identity(); id != nil {
		d.Subject = id.subject
	}
	return d
}
