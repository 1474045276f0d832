package admin

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/railsmechanic/eventsource"
)

const (
	// mostFollowed is how many names and wildcards the document has.
	mostFollowed = 50
	// personal begins the names of private channels.
	personal = "users."
	// patience is how long a document waits for a census that has begun: what is
	// counted of a few thousand channels is as new as the rest of it.
	patience = 50 * time.Millisecond
	// rest is how many times as long a census rests as it is in the way.
	rest = 99
	// haste is that for who has no census to look at, or one that is older than stale.
	haste = 9
	stale = time.Minute
)

// A Followed is a name or wildcard, and how many consumers follow it on this node.
type Followed struct {
	Channel   string `json:"channel"`
	Consumers int    `json:"consumers"`
}

// A count is what a census has found. It never changes.
type count struct {
	at    time.Time  // when it was done; zero: there is none yet
	names int        // names and wildcards that consumers follow
	top   []Followed // those that most follow
	open  []Followed // of those that are not private
}

// A census counts who follows what, when somebody wants to know and one at a time.
type census struct {
	mu      sync.Mutex
	latest  count
	running chan struct{} // closed when the one that is under way is done; nil: none is
	halt    func()        // ends that
}

// count returns the latest count, and begins the next: for a few thousand channels it
// waits for that.
func (c *census) count(server *eventsource.Server) count {
	c.mu.Lock()
	age := time.Since(c.latest.at)
	if c.running == nil && age > period/2 {
		done := make(chan struct{})
		ctx, halt := context.WithCancel(context.Background())
		c.running, c.halt = done, halt
		pace := rest
		if age > stale {
			pace = haste
		}
		go func() {
			defer close(done)
			defer halt()
			c.take(ctx, server, pace)
		}()
	}
	running := c.running
	c.mu.Unlock()
	if running != nil {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-running:
		case <-timer.C:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.latest
}

// stop ends the census that is under way, if one is: nobody looks any more.
func (c *census) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running != nil {
		c.halt()
	}
}

// take takes a census, which counts for nothing when ctx ends first.
func (c *census) take(ctx context.Context, server *eventsource.Server, rest int) {
	var found count
	for name, consumers := range server.Followed(ctx, rest) {
		one := Followed{name, consumers}
		found.names++
		found.top = rank(found.top, one)
		if !strings.HasPrefix(name, personal) {
			found.open = rank(found.open, one)
		}
	}
	found.at = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil {
		c.latest = found
	}
	c.running = nil
}

// rank puts one among the first, of which there are mostFollowed at most.
func rank(first []Followed, one Followed) []Followed {
	place, _ := slices.BinarySearchFunc(first, one, func(a, b Followed) int {
		return cmp.Or(cmp.Compare(b.Consumers, a.Consumers), cmp.Compare(a.Channel, b.Channel))
	})
	if place == mostFollowed {
		return first
	}
	return slices.Insert(first[:min(len(first), mostFollowed-1)], place, one)
}
