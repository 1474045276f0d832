package eventsource

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

// A memory is the backend that keeps nothing beyond the process: the node's
// logs are its store.
type memory struct {
	// Set when made.
	node  Node
	epoch Epoch

	mu     sync.Mutex // held over Deliver
	seq    uint64
	closed bool
	kept   map[string]remembered // by Record.Key
	order  []expiring            // kept's keys, oldest first
	held   int                   // the events behind them
	record [1]*Record            // what is delivered
}

// remembered is what is known of a record with an idempotency key.
type remembered struct {
	body   [sha256.Size]byte
	seq    uint64
	time   time.Time
	events int
}

// expiring is when a key is forgotten.
type expiring struct {
	key string
	at  time.Time
}

var _ Backend = (*memory)(nil)

// publishesAtOnce reports whether the backend never keeps a publisher waiting.
func (s *Server) publishesAtOnce() bool {
	_, ok := s.backend.(*memory)
	return ok
}

// newMemory returns the in-memory backend.
func newMemory() *memory { return &memory{kept: map[string]remembered{}} }

// Start begins a life with a number drawn at random: nothing is left of the one
// before, and its ids must not seem to be of this one.
func (m *memory) Start(node Node) (Order, error) {
	m.node = node
	m.epoch = NewEpoch()
	return Order{Epoch: m.epoch}, nil
}

// NewEpoch returns a life that begins now, with a number drawn at random.
func NewEpoch() Epoch {
	var random [4]byte
	rand.Read(random[:])
	return Epoch{Number: binary.BigEndian.Uint32(random[:]) & maxEpoch, Since: time.Now().Round(0)}
}

// Publish gives the record its place and hands it to the node.
func (m *memory) Publish(ctx context.Context, r *Record) (Kept, error) {
	if err := ctx.Err(); err != nil {
		return Kept{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Kept{}, ErrClosed
	}
	if r.Time = time.Now(); r.Time.Round(0).Before(m.epoch.Since) {
		r.Time = m.epoch.Since // the clock was set back: an earlier id would be of another life
	}
	if r.Key != "" {
		m.forget(r.Time)
		if first, ok := m.kept[r.Key]; ok {
			if first.body != r.Body {
				return Kept{}, ErrKeyReused
			}
			return Kept{Epoch: m.epoch, Seq: first.seq, Time: first.time, Repeated: true}, nil
		}
		if m.held+int(r.Places()) > m.node.Limits().IdempotencyKeys {
			return Kept{}, ErrKeysFull
		}
	}
	r.Seq = m.seq + 1
	m.seq += r.Places()
	m.record[0] = r
	m.node.Deliver(m.record[:]...)
	m.record[0] = nil
	if r.Key != "" {
		m.kept[r.Key] = remembered{r.Body, r.Seq, r.Time, len(r.Events)}
		m.order = append(m.order, expiring{r.Key, r.Time.Add(IdempotencyAge)})
		m.held += len(r.Events)
	}
	return Kept{Epoch: m.epoch, Seq: r.Seq, Time: r.Time}, nil
}

// forget drops the keys whose time is over.
func (m *memory) forget(now time.Time) {
	for len(m.order) > 0 && !m.order[0].at.After(now) {
		m.held -= m.kept[m.order[0].key].events
		delete(m.kept, m.order[0].key)
		m.order[0] = expiring{}
		m.order = m.order[1:]
	}
}

// Close makes every later Publish fail.
func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}
