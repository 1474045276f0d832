package nats

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A hand has the messages that came and are not done: those that wait to be published,
// and those that are counted or under way. It is safe for concurrent use.
type hand struct {
	arrived chan struct{} // has a value when some came
	left    chan struct{} // has a value when some were taken

	mu      sync.Mutex
	waiting []held
	undone  map[uint64]held // by the consumer's sequence, which is another for each delivery
}

func newHand() *hand {
	return &hand{arrived: make(chan struct{}, 1), left: make(chan struct{}, 1), undone: map[uint64]held{}}
}

// add takes a message in.
func (h *hand) add(m jetstream.Msg) {
	about, err := m.Metadata()
	if err != nil {
		return // what is no message of a stream can't be acknowledged
	}
	h.mu.Lock()
	h.waiting = append(h.waiting, held{m, about})
	h.undone[about.Sequence.Consumer] = held{m, about}
	h.mu.Unlock()
	signal(h.arrived)
}

// take returns those that wait, the first of them at most.
func (h *hand) take(most int) []held {
	h.mu.Lock()
	n := min(len(h.waiting), most)
	taken := h.waiting[:n:n]
	if h.waiting = h.waiting[n:]; len(h.waiting) == 0 {
		h.waiting = nil
	}
	h.mu.Unlock()
	if n > 0 {
		signal(h.left)
	}
	return taken
}

// room waits until no more wait than are taken at once; it reports false when ctx has
// ended first.
func (h *hand) room(ctx context.Context) bool {
	for {
		h.mu.Lock()
		n := len(h.waiting)
		h.mu.Unlock()
		if ctx.Err() != nil {
			return false
		}
		if n < most {
			return true
		}
		select {
		case <-h.left:
		case <-ctx.Done():
			return false
		}
	}
}

// drop forgets a message that is done.
func (h *hand) drop(m held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.undone, m.about.Sequence.Consumer)
}

// all returns what is not done, in order.
func (h *hand) all() []held {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]held, 0, len(h.undone))
	for _, m := range h.undone {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b held) int { return cmp.Compare(a.about.Sequence.Stream, b.about.Sequence.Stream) })
	return all
}

// keep tells the server of what is in the hand, in good time, that it is not to bring it
// again. It ends when stop is called.
func (h *hand) keep(ackWait time.Duration) (stop func()) {
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(max(ackWait/3, time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-stopped:
				return
			case <-tick.C:
			}
			for _, m := range h.all() {
				m.InProgress()
			}
		}
	}()
	return func() {
		close(stopped)
		<-done
	}
}

// farewell is how long the server may take to answer when the source ends.
const farewell = 200 * time.Millisecond

// giveBack has the server bring again at once what is not done: most of it. Of what is
// given back while nobody asks for more, nats-server 2.9 puts some last, or brings it
// after the ack wait only.
func (h *hand) giveBack(nc *nats.Conn) {
	all := h.all()
	if len(all) == 0 {
		return
	}
	// The library is just taking its last request back: until the server knows, what is
	// given back would go there.
	if err := nc.FlushTimeout(farewell); err != nil {
		return
	}
	for _, m := range all {
		m.Nak()
	}
}

// signal leaves a value, if none is there.
func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}
