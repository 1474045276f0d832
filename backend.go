package eventsource

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"
)

// What a Backend refuses a record with. Callers decide by them; what wraps them
// says more.
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
	// ErrChannelsFull: the record is for a channel that does not exist, and as many
	// exist as may.
	ErrChannelsFull = errors.New("too many channels exist")
	// ErrClosed: the backend or the server has been closed.
	ErrClosed = errors.New("closed")
)

// IdempotencyAge is how long an idempotency key is remembered.
const IdempotencyAge = 5 * time.Minute

// A Backend keeps events, orders them and brings them to every node. All its
// methods are safe for concurrent use. One that keeps events beyond the nodes'
// logs is a Store, too.
type Backend interface {
	// Start gives the backend the node that it feeds, and returns where its order
	// stands. It is called once, and before everything else. Records with a higher
	// Seq reach node.Deliver, which waits until Start has returned: another
	// goroutine brings them.
	Start(node Node) (Order, error)
	// Publish keeps the record's events together, in order, or not at all, and
	// brings them to every node: it returns when this node has had them. It gives
	// each its Seq, which is never used twice, also not after a purge. It returns
	// ErrUnavailable, and nothing is kept, while the backend is away; ErrUnknown:
	// they may have been kept; ErrTooLarge, ErrKeyReused, ErrKeysFull and
	// ErrChannelsFull. When ctx ends before the record was given a place nothing is
	// kept, and ctx's error is returned.
	Publish(ctx context.Context, r *Record) (Kept, error)
	// Close ends the feed, after what is under way. Publish returns ErrClosed
	// afterwards.
	Close() error
}

// A Node is what a backend feeds: the one way on which events reach a node, whoever
// published them. Its methods are safe for concurrent use, but for Deliver and
// Lost.
type Node interface {
	// Deliver appends records to the node's logs and moves its mark. The backend
	// calls it for one batch at a time, in the order of Seq.
	Deliver(records ...*Record)
	// Lost begins another life of the order, whose Seq must be above every one
	// before: the backend came back without events that it had. Every consumer is
	// told of the gap.
	Lost(order Order)
	// Available says that the backend takes records (nil), or why it does not at
	// present.
	Available(reason error)
	// Retention returns what a Store retains of a channel: the bounds in force, where 0
	// is none.
	Retention(channel string) Retention
	// Limits returns the limits in force. A backend keeps to IdempotencyKeys, a Store
	// to Channels.
	Limits() Limits
}

// An Order says where a backend's order stands.
type Order struct {
	// Epoch is the life that it is in.
	Epoch Epoch
	// Seq is the highest that has been given.
	Seq uint64
	// Earlier are the lives before, whose positions still say where an event
	// stands, oldest first.
	Earlier []Life
}

// A Life is one that has ended.
type Life struct {
	Epoch Epoch
	// Last is the highest Seq of it: a position beyond is of events that the backend
	// has lost.
	Last uint64
}

// A Record is what one publish, one DELETE or one marking brings: its events stand
// together in the order, or not at all.
type Record struct {
	// Channels are the names that every event of the record goes to; "all"
	// stands alone.
	Channels []string
	// Events are in order. Those without an ID are given one made of their Seq.
	Events []Event
	// Purge drops the channels' events up to here, in place of Events, and
	// disconnects who follows them by name. "all" is every channel.
	Purge bool
	// Marks has events of the one channel read or unread, in place of Events.
	Marks *Marks
	// Key makes a repeat of the record within IdempotencyAge publish nothing. It
	// names the publisher and the channels too; empty: none.
	Key string
	// Body is the hash of what came with Key.
	Body [sha256.Size]byte

	// Seq is the place of the first event, set by the backend. The others
	// follow it one by one. What has no events takes one place.
	Seq uint64
	// Time is when the backend took the record, never before Epoch.Since.
	Time time.Time
	// Purged are the names that a purge of a Store took events from, set by it.
	Purged []string
	// Unread is how many events of the channel are unread after Marks, set by the
	// backend.
	Unread int

	frames       []*frame // Events, encoded before any lock is taken
	disconnected int      // the consumers that a purge disconnects here
}

// Marks say which events of a channel a person has read.
type Marks struct {
	// Seqs are the events, and IDs their ids, which are passed on to the person's
	// consumers as they are. Those that are not kept are passed over.
	Seqs []uint64
	IDs  []string
	// UpTo is the last of all those that are marked besides Seqs, and UpToID its id;
	// 0: none are.
	UpTo   uint64
	UpToID string
	// Unread takes the marks away.
	Unread bool
}

// Places returns how many places in the order the record takes.
func (r *Record) Places() uint64 {
	return uint64(max(1, len(r.Events)))
}

// last returns the Seq of the record's last place.
func (r *Record) last() uint64 { return r.Seq + r.Places() - 1 }

// Kept says where a record stands.
type Kept struct {
	Epoch Epoch     // of its events' ids
	Seq   uint64    // of its first event
	Time  time.Time // when the backend took it
	// Repeated tells that the record was a repeat: this is where the first stands,
	// and nothing was published.
	Repeated bool
}

// ids returns the ids of the events of the record that r repeats.
func (k *Kept) ids(r *Record) []string {
	ids := make([]string, len(r.Events))
	for i := range r.Events {
		if ids[i] = r.Events[i].ID; ids[i] == "" {
			ids[i] = k.Epoch.ID(k.Seq+uint64(i), k.Time)
		}
	}
	return ids
}

// A Store is a Backend that retains events beyond the nodes' logs: for pages and
// inboxes, and for consumers that come back later than the logs reach. What a purge
// took, and what a Retention or a TTL no longer keeps, none of its methods returns.
type Store interface {
	Backend
	// Read returns a page of a channel's events.
	Read(ctx context.Context, q Query) (Page, error)
	// Count returns how many events Read would return without Limit and Bytes.
	Count(ctx context.Context, q Query) (int, error)
	// Channels returns up to limit names with retained events that begin with
	// prefix and come after a name, sorted. "all" is none.
	Channels(ctx context.Context, prefix, after string, limit int) ([]string, error)
}

// A Query says which events of a channel to return.
type Query struct {
	// Channel is a name, a wildcard, or "all": the events that were published to
	// "all".
	Channel string
	// After and Before are the places between which the events stand; 0: none.
	After, Before uint64
	// ID is what the events' ids are, given by their publisher; empty: anything.
	ID string
	// Types are the events' types, "message" being the untyped; nil: any.
	Types []string
	// Status is whether they are marked as read.
	Status Status
	// Descending returns the newest first.
	Descending bool
	// Limit is the most events of a page, Bytes about the most bytes of their data:
	// one event comes in any case. 0: any number.
	Limit, Bytes int
}

// A Status is whether an event is marked as read.
type Status int

// The Statuses that a Query may ask for.
const (
	AnyStatus Status = iota
	Unread
	Read
)

// A Page is what is kept of a channel.
type Page struct {
	Events []Stored
	// More tells that there are further events beyond the page.
	More bool
	// Floor is the highest Seq of an event of the channel that is kept no longer; 0:
	// all are. It is read at once with the events.
	Floor uint64
}

// A Stored is an event as it is kept.
type Stored struct {
	Event             // with its ID, its Time and what is left of its TTL; Channel is not set
	Seq      uint64   // its place
	Channels []string // that it was published to
	Read     bool     // it is marked as read
}

// Retention bounds what a Store retains of a channel.
type Retention struct {
	// Events is the number retained in a channel. 0 is 10,000, -1 any number.
	Events int
	// Age is how long an event is retained. 0 is 30 days, -1 any time.
	Age time.Duration
}
