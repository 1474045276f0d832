package eventsource

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"time"
)

// What a Backend refuses a record with. Callers decide by them.
var (
	// ErrUnavailable: the backend is away, and nothing was kept.
	ErrUnavailable = errors.New("the backend is not available")
	// ErrUnknown: the backend took the record and did not answer; it may have
	// been kept. A repeat with the same idempotency key settles it.
	ErrUnknown = errors.New("the backend did not answer: the events may have been kept")
	// ErrTooLarge: the record is beyond what the backend can hold.
	ErrTooLarge = errors.New("the record is beyond what the backend can hold")
	// ErrKeyReused: the idempotency key came with another body before.
	ErrKeyReused = errors.New("the idempotency key was used with another body")
	// ErrKeysFull: as many idempotency keys are remembered as may be.
	ErrKeysFull = errors.New("too many idempotency keys are remembered")
	// ErrClosed: the backend or the server has been closed.
	ErrClosed = errors.New("closed")
)

// idempotencyAge is how long a key is remembered.
const idempotencyAge = 5 * time.Minute

// A Record is what one publish, or one DELETE, brings: its events stand
// together in the order, or not at all.
type Record struct {
	// Channels are the names that every event of the record goes to; "all"
	// stands alone.
	Channels []string
	// Events are in order. Those without an ID are given one made of their Seq.
	Events []Event
	// Purge drops the channels' events up to here, in place of Events, and
	// disconnects who follows them by name.
	Purge bool
	// Key makes a repeat of the record within 5 minutes publish nothing. It
	// names the publisher and the channels too; empty: none.
	Key string
	// Body is the hash of what came with Key.
	Body [sha256.Size]byte

	// Seq is the place of the first event, set by the backend. The others
	// follow it one by one. A purge takes one place.
	Seq uint64
	// Time is when the backend took the record.
	Time time.Time

	frames       []*frame // Events, encoded before any lock is taken
	purged       []string // the channels that a purge emptied on this node
	disconnected int      // the consumers that it disconnects here
}

// places returns how many places in the order the record takes.
func (r *Record) places() uint64 {
	if r.Purge {
		return 1
	}
	return uint64(len(r.Events))
}

// last returns the Seq of the record's last place.
func (r *Record) last() uint64 { return r.Seq + r.places() - 1 }

// Kept says where a record stands.
type Kept struct {
	Seq  uint64    // of its first event
	Time time.Time // when the backend took it
	// IDs are set when the record was a repeat: those of the first, and nothing
	// was published.
	IDs []string
}

// A Backend keeps events, orders them and brings them to every node. All its
// methods are safe for concurrent use.
type Backend interface {
	// Start gives the backend the node that it feeds, and returns the life of
	// its order and the highest Seq that has been given. It is called once, and
	// before Publish. Records with a higher Seq reach feed, which waits until
	// Start has returned: another goroutine brings them.
	Start(feed Feed) (Epoch, uint64, error)
	// Publish keeps the record's events together, in order, or not at all, and
	// brings them to every node: it returns when this node's feed has had them.
	// It gives each its Seq, which is never used twice. It returns
	// ErrUnavailable, and nothing is kept, while the backend is away;
	// ErrUnknown: they may have been kept; ErrTooLarge, ErrKeyReused and
	// ErrKeysFull.
	Publish(ctx context.Context, r *Record) (Kept, error)
	// Close ends the feed. Publish returns ErrClosed afterwards.
	Close() error
}

// A Feed is the one way on which events reach a node, whoever published them.
type Feed interface {
	// Deliver appends records to the node's logs and moves its mark. The
	// backend calls it for one batch at a time, in the order of Seq.
	Deliver(records ...*Record)
	// Lost begins another life of the order at seq, which must be above every Seq
	// before: the backend came back without events that it had. Every consumer
	// is told of the gap.
	Lost(epoch Epoch, seq uint64)
	// Available says whether the backend can take records at present.
	Available(bool)
}

// A memory is the backend that keeps nothing beyond the process: the node's
// logs are its store.
type memory struct {
	// Set when made.
	feed  Feed
	since time.Time // without a monotonic reading

	mu     sync.Mutex // held over Deliver
	keys   int        // that are remembered at once
	seq    uint64
	closed bool
	kept   map[string]remembered // by Record.Key
	order  []expiring            // kept's keys, oldest first
	held   int                   // the events behind them
	record [1]*Record            // what is delivered
}

// remembered is what is known of a record with an idempotency key.
type remembered struct {
	body [sha256.Size]byte
	kept Kept
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

// newMemory returns the in-memory backend. It remembers so many idempotency
// keys at once; one of a batch counts as many as the batch has events.
func newMemory(keys int) *memory {
	return &memory{keys: keys, kept: map[string]remembered{}}
}

// Start begins a life with a number drawn at random: nothing is left of the one
// before, and its ids must not seem to be of this one.
func (m *memory) Start(feed Feed) (Epoch, uint64, error) {
	m.feed = feed
	m.since = time.Now().Round(0)
	var random [4]byte
	rand.Read(random[:])
	number := binary.BigEndian.Uint32(random[:]) & maxEpoch
	return Epoch{Number: number, Since: m.since}, 0, nil
}

// Publish gives the record its place and hands it to the node.
func (m *memory) Publish(_ context.Context, r *Record) (Kept, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Kept{}, ErrClosed
	}
	if r.Time = time.Now(); r.Time.Round(0).Before(m.since) {
		r.Time = m.since // the clock was set back: an earlier id would be of another life
	}
	if r.Key != "" {
		m.forget(r.Time)
		if first, ok := m.kept[r.Key]; ok {
			if first.body != r.Body {
				return Kept{}, ErrKeyReused
			}
			return first.kept, nil
		}
		if m.held+int(r.places()) > m.keys {
			return Kept{}, ErrKeysFull
		}
	}
	r.Seq = m.seq + 1
	m.seq += r.places()
	m.record[0] = r
	m.feed.Deliver(m.record[:]...)
	m.record[0] = nil
	if r.Key != "" {
		ids := make([]string, len(r.frames))
		for i, f := range r.frames {
			ids[i] = strings.Clone(f.id())
		}
		m.kept[r.Key] = remembered{body: r.Body, kept: Kept{Seq: r.Seq, Time: r.Time, IDs: ids}}
		m.order = append(m.order, expiring{r.Key, r.Time.Add(idempotencyAge)})
		m.held += len(ids)
	}
	return Kept{Seq: r.Seq, Time: r.Time}, nil
}

// remember sets how many keys are remembered at once.
func (m *memory) remember(keys int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys = keys
}

// forget drops the keys whose time is over.
func (m *memory) forget(now time.Time) {
	for len(m.order) > 0 && !m.order[0].at.After(now) {
		m.held -= len(m.kept[m.order[0].key].kept.IDs)
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
