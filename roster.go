package eventsource

import (
	"cmp"
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
	if id := c.identity(); id != nil {
		d.Subject = id.subject
	}
	return d
}
