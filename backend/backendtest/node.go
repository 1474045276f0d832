package backendtest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// A node records what a backend feeds it.
type node struct {
	// Set when made.
	begun     chan struct{} // closed when Start has returned
	retention func(channel string) eventsource.Retention

	mu       sync.Mutex
	busy     bool // Deliver or Lost is under way
	mark     uint64
	records  []eventsource.Record // copies, in order
	orders   []eventsource.Order  // of Lost
	reasons  []error              // of Available
	limits   eventsource.Limits
	mistakes []string
}

var _ eventsource.Node = (*node)(nil)

func newNode() *node {
	return &node{
		begun: make(chan struct{}),
		retention: func(string) eventsource.Retention {
			return eventsource.Retention{Events: 10_000, Age: 30 * 24 * time.Hour}
		},
		limits: eventsource.Limits{IdempotencyKeys: 1000, Channels: 1000},
	}
}

// begin lets Deliver in, as a node does when Start has returned. What goes wrong in it
// fails t.
func (n *node) begin(t *testing.T, seq uint64) {
	n.mark = seq
	close(n.begun)
	t.Cleanup(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, m := range n.mistakes {
			t.Error(m)
		}
	})
}

func (n *node) wrongLocked(format string, args ...any) {
	n.mistakes = append(n.mistakes, fmt.Sprintf(format, args...))
}

// enter sees that one call at a time feeds the node.
func (n *node) enter(what string) (leave func()) {
	<-n.begun
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy {
		n.wrongLocked("%s came while the node was being fed", what)
	}
	n.busy = true
	return func() {
		n.mu.Lock()
		n.busy = false
		n.mu.Unlock()
	}
}

func (n *node) Deliver(records ...*eventsource.Record) {
	defer n.enter("Deliver")()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range records {
		if r.Seq <= n.mark {
			n.wrongLocked("a record with Seq %d was delivered after the mark %d", r.Seq, n.mark)
		}
		if r.Time.IsZero() {
			n.wrongLocked("the record with Seq %d has no time", r.Seq)
		}
		n.mark = r.Seq + r.Places() - 1
		n.records = append(n.records, *r)
	}
}

func (n *node) Lost(order eventsource.Order) {
	defer n.enter("Lost")()
	n.mu.Lock()
	defer n.mu.Unlock()
	if order.Seq < n.mark {
		n.wrongLocked("another life begins at %d, below the mark %d", order.Seq, n.mark)
	}
	n.mark = order.Seq
	n.orders = append(n.orders, order)
}

func (n *node) Available(reason error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reasons = append(n.reasons, reason)
}

func (n *node) Retention(channel string) eventsource.Retention { return n.retention(channel) }

func (n *node) Limits() eventsource.Limits {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.limits
}

// delivered returns what the node has got so far.
func (n *node) delivered() []eventsource.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.records)
}

// events returns the data of the events that the node has got, in order.
func (n *node) events() []string {
	texts := []string{}
	for _, r := range n.delivered() {
		for _, e := range r.Events {
			texts = append(texts, e.Data)
		}
	}
	return texts
}

// available returns what the backend last said of itself.
func (n *node) available() (reason error, said bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.reasons) == 0 {
		return nil, false
	}
	return n.reasons[len(n.reasons)-1], true
}
