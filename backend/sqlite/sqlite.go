// Package sqlite keeps events in one SQLite file: a backend for one node, whose
// events survive the process and, with the default Synchronous, a loss of power.
//
// One goroutine writes. It takes all records that wait, gives them their places,
// keeps them in one transaction, and hands them to the node when that is durable; the
// publishers return after that. Reads have connections of their own and wait for no
// publish, nor does a publish for them.
//
// An event is one row, and one small row more for each log that it stands in: its
// channels', and those of the wildcards above them, so that a page of a wildcard costs
// no more than one of a channel.
//
// Only one server may have the file open, which a lock on FILE-lock sees to; what
// reads the file, such as Backup and the sqlite3 shell, may do so at any time.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/railsmechanic/eventsource"
)

const (
	// busyTimeout is how long a statement waits for another process's lock, in
	// milliseconds.
	busyTimeout = "2000"
	// readers is how many reads go on at once.
	readers = 4
	// One commit takes no more than this, and one record in any case.
	groupEvents = 1024
	groupBytes  = 8 << 20
	// maxData is the longest data that a row can hold: SQLite's billion bytes, less
	// what stands beside it.
	maxData = 1_000_000_000 - 1<<20
)

// Options say how the file is kept. nil and the zero value of each field mean the
// documented default.
type Options struct {
	// Synchronous is what a publish waits for: "full", the default, until the disk
	// has the events, which then survive a loss of power; "normal" until the system
	// has them, which survives the end of the process.
	Synchronous string
	// Logger gets what an operator wants to know; nil logs nothing.
	Logger *slog.Logger
}

// A Backend keeps events in a file.
type Backend struct {
	// Set when made.
	file        string // by Start: where links lead
	synchronous string
	log         *slog.Logger
	wake        chan struct{} // holds one where the committer has something to look at
	clock       func() time.Time
	walMost     int64 // the WAL begins anew where it is larger
	// fault is conn.fault of the connection that writes, in tests.
	fault func(query string, after bool) error

	// Set by Start, then only read.
	node      eventsource.Node
	lock      *flock.Flock
	lives     []life // oldest first, the present one last
	readers   chan *conn
	committer *committer

	mu      sync.Mutex
	waiting []*publishing // not yet taken, in order
	away    error         // why records are refused at present
	pause   chan struct{} // closed when reads may go on; nil while they may
	started bool
	closed  bool
}

var _ eventsource.Store = (*Backend)(nil)

// A publishing is a record on its way.
type publishing struct {
	record *eventsource.Record
	bytes  int
	kept   eventsource.Kept // set before done is closed, as err is
	err    error
	done   chan struct{}
}

// New returns the backend of a file, which Start opens and makes where there is
// none.
func New(file string, o *Options) (*Backend, error) {
	if o == nil {
		o = &Options{}
	}
	b := &Backend{clock: time.Now, file: file, synchronous: o.Synchronous, log: o.Logger, wake: make(chan struct{}, 1), walMost: walMost}
	if file == "" {
		return nil, errors.New("sqlite: no file: give a path such as /var/lib/eventsource/events.db")
	}
	switch b.synchronous {
	case "":
		b.synchronous = "full"
	case "full", "normal":
	default:
		return nil, fmt.Errorf("sqlite: synchronous: %q is neither full nor normal", o.Synchronous)
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	return b, nil
}

// Start opens the file and begins another life of its order. It fails where another
// server has the file open, and where it is none that this version can keep.
func (b *Backend) Start(node eventsource.Node) (eventsource.Order, error) {
	order, err := b.start(node)
	if err != nil {
		return eventsource.Order{}, fmt.Errorf("sqlite: %w", err)
	}
	return order, nil
}

func (b *Backend) start(node eventsource.Node) (_ eventsource.Order, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.started || b.closed {
		return eventsource.Order{}, errors.New("a backend is started once, and not after it was closed")
	}
	if err := b.locate(); err != nil {
		return eventsource.Order{}, err
	}
	lock := flock.New(b.file+"-lock", flock.SetFlag(os.O_CREATE|os.O_RDWR)) // fails where nothing can be written
	switch held, err := lock.TryLock(); {
	case err != nil:
		return eventsource.Order{}, fmt.Errorf("locking %s: %w", b.file, err)
	case !held:
		lock.Close()
		return eventsource.Order{}, fmt.Errorf("another server has %s open: stop it, or give each a file of its own", b.file)
	}
	var db *conn
	pool := make(chan *conn, readers)
	defer func() {
		if err != nil {
			for range len(pool) {
				(<-pool).close()
			}
			db.close()
			lock.Close()
		}
	}()
	size, err := fileSize(b.file)
	if err != nil {
		return eventsource.Order{}, err
	}
	if db, err = dial(b.file, "_pragma=busy_timeout("+busyTimeout+")"); err != nil {
		return eventsource.Order{}, b.opening(err, size)
	}
	if err := prepare(db, b.file, b.synchronous); err != nil {
		return eventsource.Order{}, b.opening(err, size)
	}
	lives, seq, err := begin(db)
	if err != nil {
		return eventsource.Order{}, b.opening(err, size)
	}
	db.fault = b.fault
	c := &committer{b: b, node: node, db: db, seq: seq, epoch: lives[len(lives)-1].epoch, ended: make(chan struct{})}
	if err := c.load(); err != nil {
		return eventsource.Order{}, b.opening(err, size)
	}
	for range readers {
		r, err := dial(b.file, "_pragma=busy_timeout("+busyTimeout+")", "_pragma=query_only(1)", "_pragma=cache_size(-4096)")
		if err != nil {
			return eventsource.Order{}, b.opening(err, size)
		}
		pool <- r
	}
	b.node, b.lock, b.lives, b.readers, b.started = node, lock, lives, pool, true
	b.committer = c
	go c.run()
	order := eventsource.Order{Epoch: c.epoch, Seq: seq}
	for _, l := range lives[max(0, len(lives)-1-livesKept) : len(lives)-1] {
		order.Earlier = append(order.Earlier, eventsource.Life{Epoch: l.epoch, Last: l.last})
	}
	return order, nil
}

// locate makes the file where there is none, for its owner only, and follows links to it:
// the lock and the WAL stand beside the file itself.
func (b *Backend) locate() error {
	info, err := os.Stat(b.file)
	if errors.Is(err, fs.ErrNotExist) {
		var f *os.File
		if f, err = os.OpenFile(b.file, os.O_CREATE|os.O_RDWR, 0o600); err == nil {
			err = f.Close()
		}
	} else if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file: give the path of one, or of one that is to be made", b.file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("making %s: %w: make its directory first", b.file, err)
	} else if err != nil {
		return err
	}
	if b.file, err = filepath.EvalSymlinks(b.file); err != nil {
		return err
	}
	return nil
}

// opening says why a file can't be opened.
func (b *Backend) opening(err error, size int64) error {
	if code(err) == codeNotADatabase && size > 0 {
		return fmt.Errorf("%s is no SQLite database, or a damaged one: give another file, or restore a copy of it (%w)", b.file, err)
	}
	if what := describe(err); what != "" {
		return fmt.Errorf("opening %s: %s (%w)", b.file, what, err)
	}
	return err
}

// Publish has the record kept and delivered together with those that wait at the
// same time.
func (b *Backend) Publish(ctx context.Context, r *eventsource.Record) (eventsource.Kept, error) {
	p := &publishing{record: r, done: make(chan struct{})}
	for i := range r.Events {
		if len(r.Events[i].Data) > maxData {
			return eventsource.Kept{}, fmt.Errorf("%w: data of %d bytes, at most %d", eventsource.ErrTooLarge, len(r.Events[i].Data), maxData)
		}
		p.bytes += len(r.Events[i].Data)
	}
	if err := ctx.Err(); err != nil {
		return eventsource.Kept{}, err
	}
	b.mu.Lock()
	if b.closed || b.away != nil {
		err := b.away
		if b.closed {
			err = eventsource.ErrClosed
		}
		b.mu.Unlock()
		return eventsource.Kept{}, err
	}
	b.waiting = append(b.waiting, p)
	b.mu.Unlock()
	b.stir()
	select {
	case <-p.done:
	case <-ctx.Done():
		if b.withdraw(p) {
			return eventsource.Kept{}, ctx.Err()
		}
		<-p.done
	}
	return p.kept, p.err
}

// stir has the committer look.
func (b *Backend) stir() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// withdraw takes back what has not been taken.
func (b *Backend) withdraw(p *publishing) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.waiting, p)
	if i < 0 {
		return false
	}
	b.waiting = slices.Delete(b.waiting, i, i+1)
	return true
}

// take appends the records that the next commit is of to group, and reports whether
// none will come any more.
func (b *Backend) take(group []*publishing) (_ []*publishing, closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	events, bytes, n := 0, 0, 0
	for _, p := range b.waiting {
		events += int(p.record.Places())
		bytes += p.bytes
		if n > 0 && (events > groupEvents || bytes > groupBytes) {
			break
		}
		n++
	}
	group = append(group, b.waiting[:n]...)
	b.waiting = slices.Delete(b.waiting, 0, n)
	return group, b.closed && len(b.waiting) == 0
}

// Close keeps what waits, then closes the file.
func (b *Backend) Close() error {
	b.mu.Lock()
	if b.closed || !b.started {
		b.closed = true
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.mu.Unlock()
	b.stir()
	var errs []error
	<-b.committer.ended
	for range readers {
		errs = append(errs, (<-b.readers).close())
	}
	close(b.readers)
	errs = append(errs, b.committer.db.close()) // the last one: its end checkpoints
	if err := errors.Join(append(errs, b.lock.Close())...); err != nil {
		return fmt.Errorf("sqlite: closing %s: %w", b.file, err)
	}
	return nil
}

// epochOf returns the life that a place is of.
func (b *Backend) epochOf(seq uint64) eventsource.Epoch {
	i, _ := slices.BinarySearchFunc(b.lives, seq, func(l life, seq uint64) int {
		if l.last < seq {
			return -1
		}
		return 1
	})
	return b.lives[min(i, len(b.lives)-1)].epoch
}

// now returns the time in the precision that it is kept in.
func (b *Backend) now() time.Time { return time.UnixMilli(b.clock().UnixMilli()) }
