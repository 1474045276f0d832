package queue

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/railsmechanic/eventsource"
)

// The reasons for which a request is not served, as Stats counts them.
const (
	TurnedName   = "name"   // it names no queue
	TurnedBusy   = "busy"   // the queue has a consumer
	TurnedFull   = "full"   // no connection has room
	TurnedAway   = "away"   // no broker is connected
	TurnedDenied = "denied" // the broker's user may not have the queue
	TurnedFailed = "failed" // the broker said no otherwise
)

// logged is how often it is logged why something is refused.
const logged = time.Minute

// Stats are what queues have done, and how their brokers are. Counters count from Open.
type Stats struct {
	Nodes       []NodeStats       `json:"nodes"`
	Events      uint64            `json:"events"`      // that were sent and acknowledged
	Bytes       uint64            `json:"bytes"`       // their payloads
	Redelivered uint64            `json:"redelivered"` // what came again, since an earlier consumer did not get it, or not all of it
	Refused     map[string]uint64 `json:"refused"`     // payloads that make no event, by reason
	Turned      map[string]uint64 `json:"turned_away"` // requests that were not served, by reason
	Ended       map[string]uint64 `json:"ended"`       // streams, by reason
}

// NodeStats say how one connection to a broker is.
type NodeStats struct {
	Number    int       `json:"number"` // as configured, from 1
	URL       string    `json:"url"`    // without user, password and query
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`            // when that began
	Reason    string    `json:"reason,omitempty"` // why it is not connected
	Consumers int       `json:"consumers"`        // that it serves
	Room      int       `json:"room"`             // how many it can serve; 0 while it is not connected
}

// Stats returns what the queues have done. Safe for concurrent use.
func (q *Queues) Stats() Stats {
	c := q.counts
	out := Stats{Events: c.events.Load(), Bytes: c.bytes.Load(), Redelivered: c.redelivered.Load()}
	c.mu.Lock()
	out.Refused, out.Turned, out.Ended = maps.Clone(c.refused), maps.Clone(c.turned), maps.Clone(c.ended)
	c.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, n := range q.nodes {
		s := NodeStats{Number: n.number, URL: n.shown, Since: n.since, Reason: n.reason}
		if l := n.link; l != nil {
			s.Connected, s.Consumers, s.Room = true, l.taken, l.room
		}
		out.Nodes = append(out.Nodes, s)
	}
	return out
}

// counts are the counters behind Stats.
type counts struct {
	events      atomic.Uint64
	bytes       atomic.Uint64
	redelivered atomic.Uint64

	mu      sync.Mutex
	refused map[string]uint64
	turned  map[string]uint64
	ended   map[string]uint64
	said    map[string]saying // by reason
}

// A saying is when something was logged last, and how often it has happened since.
type saying struct {
	at time.Time
	n  uint64
}

func newCounts() *counts {
	none := func(reasons ...string) map[string]uint64 {
		m := map[string]uint64{}
		for _, r := range reasons {
			m[r] = 0
		}
		return m
	}
	return &counts{
		refused: none(eventsource.RefusedEmpty, eventsource.RefusedTooLarge, eventsource.RefusedNotUTF8, eventsource.RefusedInvalid),
		turned:  none(TurnedName, TurnedBusy, TurnedFull, TurnedAway, TurnedDenied, TurnedFailed),
		ended:   none(EndGone, EndSlow, EndLost, EndDeleted, EndServer),
		said:    map[string]saying{},
	}
}

func (c *counts) end(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended[reason]++
}

// refusePayload counts a payload, and returns how many are to be logged now.
func (c *counts) refusePayload(reason string) (n uint64, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[reason]++
	return c.dueLocked("payload " + reason)
}

// refuseRequest counts a request likewise.
func (c *counts) refuseRequest(reason string) (n uint64, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turned[reason]++
	return c.dueLocked("request " + reason)
}

func (c *counts) dueLocked(what string) (n uint64, due bool) {
	s := c.said[what]
	s.n++
	if now := time.Now(); now.Sub(s.at) >= logged {
		c.said[what] = saying{at: now}
		return s.n, true
	}
	c.said[what] = s
	return 0, false
}
