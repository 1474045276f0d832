package amqp

import (
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// acks are the deliveries of one channel that are not acknowledged yet. Runs of those
// that may be are acknowledged together. It is safe for concurrent use.
type acks struct {
	// Set when made.
	channel *amqp.Channel
	place   *place
	ready   chan struct{} // has a value when there is something to send

	mu      sync.Mutex
	open    []opened // in the order of their tags, which follow one by one
	first   uint64   // the tag of open's first
	refused []uint64 // tags to be dead-lettered
}

// An opened is a delivery.
type opened struct {
	offset   int64
	streamed bool
	done     bool
	refused  bool // and thereby answered
}

func newAcks(channel *amqp.Channel, p *place) *acks {
	return &acks{channel: channel, place: p, ready: make(chan struct{}, 1)}
}

// add notes a delivery.
func (a *acks) add(tag uint64, offset int64, streamed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.open) == 0 {
		a.first = tag
	}
	a.open = append(a.open, opened{offset: offset, streamed: streamed})
}

// settle notes that a delivery need not come again, or is never published.
func (a *acks) settle(tag uint64, refused bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := &a.open[tag-a.first]
	o.done = true
	if o.refused = refused && !o.streamed; o.refused { // a stream has no dead letters
		a.refused = append(a.refused, tag)
	}
	signal(a.ready)
}

// send acknowledges what may be, up to the first delivery that may not.
func (a *acks) send() error {
	tag, refused := a.pop()
	for _, t := range refused {
		if err := a.channel.Nack(t, false, false); err != nil {
			return err
		}
	}
	if tag == 0 {
		return nil
	}
	return a.channel.Ack(tag, true)
}

// pop returns what can be sent. The tag that is acknowledged with all before it must not
// be one that was refused: those the broker no longer knows.
func (a *acks) pop() (tag uint64, refused []uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for ; n < len(a.open) && a.open[n].done; n++ {
		if !a.open[n].refused {
			tag = a.first + uint64(n)
		}
	}
	if n > 0 && a.open[n-1].streamed {
		a.place.passed(a.open[n-1].offset)
	}
	a.open = a.open[:copy(a.open, a.open[n:])]
	a.first += uint64(n)
	refused, a.refused = a.refused, nil
	return tag, refused
}
