package amqp

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/railsmechanic/eventsource"
)

const (
	// patience is how long a stream may take to bring what it is known to have, and how
	// long is waited for its end.
	patience = 5 * time.Second
	glance   = time.Second

	// looked is among how many of the newest events the last offset is looked for.
	looked = 256
)

// A place is how far a stream was published. It outlives the connections. It is safe for
// concurrent use.
type place struct {
	mu      sync.Mutex
	known   bool
	last    int64     // the offset that was published last, with all before it
	since   time.Time // when the stream was first read
	life    int       // of the stream: one that is made anew counts from 0 again
	anew    bool      // a stream was made in place of the one that was first read
	resumed bool      // last was looked for among the events that are kept
}

// passed notes that everything up to an offset was published.
func (p *place) passed(offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.last = true, offset
}

// forget begins another life of the stream, which is read from its beginning.
func (p *place) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.anew = false, true
	p.life++
}

// expected returns the offset that a stream is asked to begin with: the last one once
// more, since that it comes shows that it is the same stream; -1: it is another.
func (p *place) expected() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known {
		return -1
	}
	return p.last
}

// meet reports whether an offset was published before.
func (p *place) meet(offset int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known && offset <= p.last
}

// age returns which life of the stream this is.
func (p *place) age() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.life
}

// begin returns where the broker is to read from, given what the configuration says. What
// begins with what comes next goes on from then after a break, also when nothing came.
func (p *place) begin(offset any) any {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.known:
		return p.last
	case p.anew:
		return "first"
	case offset != "next" && offset != "last":
		return offset
	case !p.since.IsZero():
		return p.since
	}
	p.since = time.Now()
	return offset
}

// resume looks for the last offset among the events that are kept, once: where the id is
// the offset, they say how far an earlier run of the program came.
func (s *Source) resume(ctx context.Context, feed *eventsource.Feed) error {
	before, after, ok := strings.Cut(s.config.ID, "{offset}")
	if !ok || strings.ContainsAny(before+after+s.config.Channel, "{}") {
		return nil
	}
	s.place.mu.Lock()
	defer s.place.mu.Unlock()
	if s.place.resumed || s.place.known {
		return nil
	}
	newest, err := feed.Newest(ctx, s.config.Channel, looked)
	if err != nil {
		return fmt.Errorf("how far the stream was published is not known: %w", err)
	}
	s.place.resumed = true
	for _, e := range newest {
		id, isOurs := strings.CutPrefix(e.ID, before)
		id, ends := strings.CutSuffix(id, after)
		if n, err := strconv.ParseInt(id, 10, 64); err == nil && isOurs && ends && n >= 0 && (!s.place.known || n > s.place.last) {
			s.place.known, s.place.last = true, n
		}
	}
	return nil
}
