package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/railsmechanic/eventsource"
)

// A committer writes the file. One goroutine owns it.
type committer struct {
	// Set when made.
	b     *Backend
	node  eventsource.Node
	epoch eventsource.Epoch
	ended chan struct{} // closed when it has ended; db is Close's then

	db *conn // nil where it could not be opened again

	stands [2]os.FileInfo // the file and its WAL, as they were opened
	looked time.Time      // when they were looked at
	gone   error          // they stand there no longer; nothing mends that
	// seq is the highest Seq that was given and delivered.
	seq  uint64
	away error

	// doubtful are the records whose commit did not answer, and doubt the highest Seq
	// if it took place; outcome says that settle has found that it did.
	doubtful []*eventsource.Record
	doubt    uint64
	outcome  bool

	// What the file says, or will once the transaction under way is committed; read
	// anew after one was rolled back.
	floor  uint64          // of "*"
	floors [buckets]uint64 // of logs that went
	names  int             // channels with rows
	held   int             // the events behind idempotency keys
	logs   logs

	// The transaction under way.
	plain   rows // events that have what most have
	special rows // the others
	placed  rows
	floored map[string]uint64 // floors that events raise which are never kept

	chores  chores
	group   []*publishing
	pausing bool    // reads wait for a checkpoint
	idle    []*conn // of the readers, until it
}

// load reads what the committer remembers of the file.
func (c *committer) load() error {
	floor, _, err := c.db.number("SELECT floor FROM state")
	if err != nil {
		return err
	}
	names, _, err := c.db.number("SELECT count(*) FROM logs WHERE name NOT LIKE '%*' AND name <> 'all'")
	if err != nil {
		return err
	}
	held, _, err := c.db.number("SELECT sum(events) FROM keys")
	if err != nil {
		return err
	}
	c.floor, c.names, c.held = uint64(floor), int(names), int(held)
	c.floors = [buckets]uint64{}
	c.logs = logs{}
	c.plain.init("events (seq, time, expires, type, channels, data)", 6)
	c.special.init("events (seq, time, expires, type, channels, data, ttl, retry, nodata, id)", 10)
	c.placed.init("placed (log, seq)", 2)
	c.floored = map[string]uint64{}
	return c.db.query(context.Background(), "SELECT bucket, floor FROM floors", nil, func(row []driver.Value) error {
		if i := row[0].(int64); i >= 0 && i < buckets {
			c.floors[i] = uint64(row[1].(int64))
		}
		return nil
	})
}

// run commits what is published until the backend is closed and nothing waits, and
// has the chores done meanwhile.
func (c *committer) run() {
	defer close(c.ended)
	defer c.resume()
	timer := time.NewTimer(choresEvery)
	defer timer.Stop()
	for {
		group, closed := c.b.take(c.group[:0])
		switch {
		case len(group) > 0:
			c.commit(group)
			clear(group)
			c.group = group
			continue
		case closed:
			return
		case c.away == nil && c.chores.more:
			c.tidyUp()
			continue
		}
		switch {
		case c.away != nil:
			c.resume()
			timer.Reset(probeEvery)
		case c.pausing:
			timer.Reset(choresEvery / 50)
		default:
			timer.Reset(choresEvery)
		}
		select {
		case <-c.b.wake:
		case <-timer.C:
			if c.away != nil {
				c.probe()
			} else {
				c.tidyUp()
				c.look()
			}
		}
	}
}

// commit keeps a group of records in one transaction, hands them to the node and
// answers their publishers.
func (c *committer) commit(group []*publishing) {
	refusal := c.away
	if refusal == nil {
		if committing, err := c.write(group); err != nil {
			refusal = c.failed(err, committing)
		}
	}
	for _, p := range group {
		if refusal != nil { // of what was refused already, too: that may be for what was not kept
			p.kept, p.err = eventsource.Kept{}, refusal
		}
		close(p.done)
	}
}

// failed puts the committer in order after a transaction that failed. It returns what
// its publishers are refused with, nil where it has been kept after all.
func (c *committer) failed(err error, committing bool) error {
	reason := unavailable(err)
	c.db.exec("ROLLBACK") // most errors have done so
	if !committing {
		c.forget()
		c.load() // and again by settle, which must succeed
		c.leave(reason)
		return reason
	}
	// An error in the middle of a commit leaves open what the disk holds.
	c.outcome = false
	if e := c.settle(); e != nil {
		c.leave(reason)
		return fmt.Errorf("%w: %w", eventsource.ErrUnknown, err)
	}
	if c.outcome {
		return nil
	}
	c.leave(reason)
	return reason
}

// forget lets go of what was to be delivered.
func (c *committer) forget() {
	clear(c.doubtful)
	c.doubtful = c.doubtful[:0]
}

// write keeps the group's records, and delivers them. committing tells that the
// commit itself failed, so that what became of it is not known.
func (c *committer) write(group []*publishing) (committing bool, err error) {
	if _, err := c.db.exec("BEGIN IMMEDIATE"); err != nil {
		return false, err
	}
	at := c.b.now()
	if at.Before(c.epoch.Since) {
		at = c.epoch.Since // the clock was set back: an earlier id would be of another life
	}
	next := c.seq + 1
	records := c.doubtful[:0]
	for _, p := range group {
		r := p.record
		if p.kept, p.err, err = c.admit(r, at); err != nil {
			return false, err
		}
		if p.err != nil || p.kept.Repeated {
			continue
		}
		r.Seq, r.Time = next, at
		next += r.Places()
		if r.Purge || r.Marks != nil {
			err = c.flush() // what they are about may be of this very group
		}
		switch {
		case err != nil:
		case r.Purge:
			err = c.purge(r)
		case r.Marks != nil:
			err = c.mark(r)
		default:
			err = c.add(r)
		}
		if err == nil && r.Key != "" {
			err = c.remember(r)
		}
		if err != nil {
			return false, err
		}
		p.kept = eventsource.Kept{Epoch: c.epoch, Seq: r.Seq, Time: r.Time}
		records = append(records, r)
	}
	c.doubtful = records
	if len(records) == 0 {
		_, err := c.db.exec("COMMIT") // of keys that have expired, if anything
		return false, err
	}
	rows := c.plain.waiting() + c.special.waiting()
	if err := c.flush(); err != nil {
		return false, err
	}
	if err := c.choresAfter(rows, at); err != nil {
		return false, err
	}
	if _, err := c.db.exec("UPDATE state SET seq = ?, floor = ?", int64(next-1), int64(c.floor)); err != nil {
		return false, err
	}
	c.doubt = next - 1
	if _, err := c.db.exec("COMMIT"); err != nil {
		return doubtfulCommit(err), err
	}
	c.seq = next - 1
	c.node.Deliver(records...)
	c.forget()
	c.checkpoint()
	c.look()
	return false, nil
}

// admit reports why a record is refused, or where the one that it repeats stands.
func (c *committer) admit(r *eventsource.Record, at time.Time) (kept eventsource.Kept, refused, err error) {
	if r.Key != "" {
		key := sha256.Sum256([]byte(r.Key))
		var body []byte
		err = c.db.query(context.Background(), "SELECT body, seq, time FROM keys WHERE key = ? AND expires > ?",
			[]driver.Value{key[:], at.UnixMilli()}, func(row []driver.Value) error {
				body, _ = row[0].([]byte)
				kept = eventsource.Kept{Seq: uint64(row[1].(int64)), Time: time.UnixMilli(row[2].(int64)), Repeated: true}
				return nil
			})
		if err != nil {
			return kept, nil, err
		}
		if kept.Repeated {
			if string(body) != string(r.Body[:]) {
				return eventsource.Kept{}, eventsource.ErrKeyReused, nil
			}
			kept.Epoch = c.b.epochOf(kept.Seq)
			return kept, nil, nil
		}
		most := c.node.Limits().IdempotencyKeys
		if c.held+int(r.Places()) > most {
			for n := choresRows; n == choresRows; {
				if n, err = c.forgetKeys(at); err != nil {
					return kept, nil, err
				}
			}
			if c.held+int(r.Places()) > most {
				return kept, eventsource.ErrKeysFull, nil
			}
		}
	}
	if r.Purge || r.Marks != nil || !slices.ContainsFunc(r.Events, func(e eventsource.Event) bool { return e.TTL >= 0 }) {
		return kept, nil, nil
	}
	fresh := 0
	for _, name := range r.Channels {
		if name == global {
			continue
		}
		l, err := c.find(name)
		if err != nil {
			return kept, nil, err
		}
		if l == nil {
			fresh++
		}
	}
	if fresh > 0 && c.names+fresh > c.node.Limits().Channels {
		return kept, eventsource.ErrChannelsFull, nil
	}
	return kept, nil, nil
}

// remember keeps the record's idempotency key. An expired one of the same name goes.
func (c *committer) remember(r *eventsource.Record) error {
	key := sha256.Sum256([]byte(r.Key))
	if was, found, err := c.db.number("SELECT events FROM keys WHERE key = ?", key[:]); err != nil {
		return err
	} else if found {
		c.held -= int(was)
	}
	c.held += int(r.Places())
	_, err := c.db.exec("INSERT OR REPLACE INTO keys (key, body, seq, time, expires, events) VALUES (?, ?, ?, ?, ?, ?)",
		key[:], slices.Clone(r.Body[:]), int64(r.Seq), r.Time.UnixMilli(), r.Time.Add(eventsource.IdempotencyAge).UnixMilli(), int64(r.Places()))
	return err
}

// add keeps the record's events, but for those that go to who is connected only:
// these take their place and raise floors.
func (c *committer) add(r *eventsource.Record) error {
	channels := r.Channels[0]
	if len(r.Channels) > 1 {
		channels = strings.Join(r.Channels, ",")
	}
	var logs []*log
	kept := false
	for i := range r.Events {
		kept = kept || r.Events[i].TTL >= 0
	}
	age := int64(0)
	if kept {
		for i, name := range r.Channels {
			l, err := c.make(name)
			if err != nil {
				return err
			}
			logs = append(logs, l)
			if i == 0 || l.age == 0 || age != 0 && l.age > age {
				age = l.age
			}
			for prefix := range prefixes(name) {
				w, err := c.make(prefix + ".*")
				if err != nil {
					return err
				}
				if !slices.Contains(logs, w) { // two channels below one wildcard
					logs = append(logs, w)
				}
			}
		}
	}
	at := r.Time.UnixMilli()
	for i := range r.Events {
		e := &r.Events[i]
		seq := r.Seq + uint64(i)
		if e.TTL < 0 {
			c.pass(r.Channels, seq)
			continue
		}
		expires := or(expiry(at, age, milliseconds(e.TTL)))
		if e.TTL == 0 && e.Retry == 0 && !e.NoData && e.ID == "" {
			c.plain.add(int64(seq), at, expires, orText(e.Type), channels, orText(e.Data))
		} else {
			c.special.add(int64(seq), at, expires, orText(e.Type), channels, orText(e.Data),
				or(milliseconds(e.TTL)), or(retry(e.Retry)), flag(e.NoData), orText(e.ID))
		}
		for _, l := range logs {
			c.placed.add(l.id, int64(seq))
			l.count++ // nothing, where it is not known
		}
	}
	if kept {
		for _, l := range logs {
			c.chores.note(l)
		}
	}
	return nil
}

// pass raises the floors of what an event was published to that is never kept.
func (c *committer) pass(channels []string, seq uint64) {
	for _, name := range channels {
		c.floored[name] = seq
		if name == global {
			continue
		}
		for prefix := range prefixes(name) {
			c.floored[prefix+".*"] = seq
		}
		c.floor = max(c.floor, seq)
	}
}

// flush writes the rows that wait.
func (c *committer) flush() error {
	for _, rows := range []*rows{&c.plain, &c.special, &c.placed} {
		if err := rows.flush(c.db); err != nil {
			return err
		}
	}
	for name, seq := range c.floored {
		if err := c.raise(name, seq); err != nil {
			return err
		}
		delete(c.floored, name)
	}
	return nil
}

// expiry returns when an event of a time expires by its channels' age and its own
// ttl, all in milliseconds; 0 is never.
func expiry(at, age, ttl int64) int64 {
	if ttl > 0 && (age == 0 || ttl < age) {
		age = ttl
	}
	if age == 0 {
		return 0
	}
	return at + age
}

// milliseconds rounds up: nothing expires early.
func milliseconds(d time.Duration) int64 {
	if d <= 0 {
		return d.Milliseconds()
	}
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

// retry returns milliseconds, -1 where a consumer is told not to wait.
func retry(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return d.Milliseconds()
}

// A row leaves out what is zero.

func or(n int64) driver.Value {
	if n == 0 {
		return nil
	}
	return n
}

func orText(s string) driver.Value {
	if s == "" {
		return nil
	}
	return s
}

func flag(set bool) driver.Value {
	if !set {
		return nil
	}
	return int64(1)
}

// rowsAtOnce are the numbers of rows that one statement inserts: each run of one has a
// cost of its own.
var rowsAtOnce = [...]int{64, 8, 1}

// rows wait to be inserted into one table.
type rows struct {
	columns int
	queries [len(rowsAtOnce)]string
	values  []driver.NamedValue
}

// init says which table and how many columns the rows are of.
func (r *rows) init(into string, columns int) {
	clear(r.values)
	r.columns, r.values = columns, r.values[:0]
	row := "(" + strings.TrimSuffix(strings.Repeat("?,", columns), ",") + ")"
	for i, n := range rowsAtOnce {
		// Unlike the plain INSERT it needs no journal of its own; a conflict, which would
		// be a mistake here, fails the group anyway.
		r.queries[i] = "INSERT OR ROLLBACK INTO " + into + " VALUES " + strings.TrimSuffix(strings.Repeat(row+",", n), ",")
	}
}

func (r *rows) waiting() int { return len(r.values) / r.columns }

func (r *rows) add(values ...driver.Value) {
	for _, v := range values {
		r.values = append(r.values, driver.NamedValue{Value: v})
	}
}

func (r *rows) flush(db *conn) error {
	left := r.values
	for i, n := range rowsAtOnce {
		for len(left) >= n*r.columns {
			args := left[:n*r.columns]
			for j := range args {
				args[j].Ordinal = j + 1
			}
			if _, err := db.execNamed(r.queries[i], args); err != nil {
				return err
			}
			left = left[len(args):]
		}
	}
	clear(r.values)
	r.values = r.values[:0]
	return nil
}
