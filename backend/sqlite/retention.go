package sqlite

import (
	"context"
	"database/sql/driver"
	"os"
	"strings"
	"time"

	"github.com/railsmechanic/eventsource"
)

const (
	// choresEvery is how often is looked for what is no longer retained, while nothing
	// is known to be.
	choresEvery = 250 * time.Millisecond
	// choresRows is how many events one transaction drops at most, so that no publish
	// waits long.
	choresRows = 500
	// dirtyLogs is how many logs may wait to be cut; with more, all are looked at.
	dirtyLogs = 64 << 10
	// sweepRows is how many rows one look at several logs counts.
	sweepRows = 20_000
)

// chores are what a committer does besides: it drops what is retained no longer, a
// small transaction at a time, between commits or at the end of one.
type chores struct {
	more bool // something is known to be left
	// The logs that hold more than their bound: by so much that they are cut under
	// load, too, or that it is not known; and by little, for when there is time.
	overdue, dirty map[string]struct{}
	// swept is the last log that was looked at since the start, for settings that have
	// become tighter; done when all were.
	swept int64
	done  bool
	// aged is the place up to which the events' expiries were set anew of the log aging.
	aging, aged int64

	last time.Time // when any were done
	full time.Time // when all were
	wal  time.Time // when its size was looked at
}

// slack is by how much a log may exceed its bound while there is much to do: to cut many
// events at once costs less.
func slack(bound int) int { return max(32, bound/16) }

// note has a log cut that may hold more than its bound.
func (c *chores) note(l *log) {
	if l.bound == 0 || l.count >= 0 && l.count <= l.bound {
		return
	}
	if c.dirty == nil {
		c.overdue, c.dirty = map[string]struct{}{}, map[string]struct{}{}
	}
	into := c.dirty
	if l.count < 0 || l.count > l.bound+slack(l.bound) {
		into = c.overdue
	}
	if _, ok := into[l.name]; !ok && len(into) >= dirtyLogs {
		c.swept, c.done = 0, false
		return
	}
	into[l.name] = struct{}{}
}

// tidyUp does some chores in a transaction of their own.
func (c *committer) tidyUp() {
	at := c.b.now()
	if err := c.tidyUpAt(at); err != nil {
		c.db.exec("ROLLBACK")
		if e := c.load(); e != nil {
			err = e
		}
		c.leave(unavailable(err))
		return
	}
	c.checkpoint()
}

func (c *committer) tidyUpAt(at time.Time) error {
	if !c.chores.more {
		if any, err := c.due(at); err != nil || !any {
			return err
		}
	}
	if _, err := c.db.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if err := c.someChores(choresRows, at, true); err != nil {
		return err
	}
	if _, err := c.db.exec("UPDATE state SET floor = ?1 WHERE floor <> ?1", int64(c.floor)); err != nil {
		return err
	}
	_, err := c.db.exec("COMMIT")
	return err
}

// due reports whether there is anything to do.
func (c *committer) due(at time.Time) (bool, error) {
	if len(c.chores.overdue)+len(c.chores.dirty) > 0 || !c.chores.done {
		return true, nil
	}
	for _, query := range []string{
		"SELECT 1 FROM events INDEXED BY events_expires WHERE expires <= ? LIMIT 1",
		"SELECT 1 FROM keys INDEXED BY keys_expires WHERE expires <= ? LIMIT 1",
	} {
		if _, any, err := c.db.number(query, at.UnixMilli()); any || err != nil {
			return any, err
		}
	}
	return false, nil
}

// choresAfter does some chores in the transaction that has added rows, so that under a
// constant load as much goes as comes.
func (c *committer) choresAfter(rows int, at time.Time) error {
	ch := &c.chores
	if len(ch.overdue) == 0 && !ch.more && time.Since(ch.last) < choresEvery/4 {
		return nil
	}
	return c.someChores(max(choresRows, 2*rows), at, time.Since(ch.full) > choresEvery)
}

// someChores drops up to a number of events. Only where all are to be done it cuts logs
// to the last event, and looks at those that nothing was published to.
func (c *committer) someChores(budget int, at time.Time, all bool) error {
	ch := &c.chores
	ch.last = time.Now()
	expired, err := c.expire(budget, at)
	if err != nil {
		return err
	}
	budget -= expired
	forgotten, err := c.forgetKeys(at)
	if err != nil {
		return err
	}
	if budget, err = c.cut(ch.overdue, budget); err != nil {
		return err
	}
	if all {
		ch.full = ch.last
		if budget, err = c.cut(ch.dirty, budget); err != nil {
			return err
		}
		if budget > 0 && !ch.done {
			if err := c.sweep(budget); err != nil {
				return err
			}
		}
	}
	ch.more = budget <= 0 || forgotten == choresRows || !ch.done
	return nil
}

// cut cuts logs to their bounds, and returns what is left of the budget.
func (c *committer) cut(logs map[string]struct{}, budget int) (int, error) {
	for name := range logs {
		if budget <= 0 {
			break
		}
		l, err := c.find(name)
		if err != nil {
			return 0, err
		}
		left := false
		if l != nil {
			n := 0
			if n, left, err = c.trim(l, budget); err != nil {
				return 0, err
			}
			budget -= max(1, n)
		}
		if !left {
			delete(logs, name)
		}
	}
	return budget, nil
}

// expire drops events whose time is over.
func (c *committer) expire(most int, at time.Time) (int, error) {
	var events []going
	err := c.db.query(context.Background(), "SELECT seq, channels FROM events INDEXED BY events_expires WHERE expires <= ? ORDER BY expires",
		[]driver.Value{at.UnixMilli()}, func(row []driver.Value) error {
			events = append(events, going{uint64(row[0].(int64)), row[1].(string)})
			return enough(len(events) >= most)
		})
	if err != nil || len(events) == 0 {
		return 0, err
	}
	return len(events), c.drop(events, func(string) bool { return true })
}

// forgetKeys forgets idempotency keys whose time is over, at most choresRows. One
// whose time is further away than it can be is of a clock that has been set back since:
// it is kept for its whole time from now on, and not for ever.
func (c *committer) forgetKeys(at time.Time) (n int, err error) {
	latest := at.Add(eventsource.IdempotencyAge).UnixMilli()
	if _, any, err := c.db.number("SELECT 1 FROM keys INDEXED BY keys_expires WHERE expires > ? LIMIT 1", latest+1000); err != nil {
		return 0, err
	} else if any {
		if _, err := c.db.exec("UPDATE keys SET expires = ?1 WHERE expires > ?1", latest); err != nil {
			return 0, err
		}
	}
	err = c.db.query(context.Background(), `DELETE FROM keys WHERE key IN (SELECT key FROM keys INDEXED BY keys_expires WHERE expires <= ? LIMIT 500)
		RETURNING events`, []driver.Value{at.UnixMilli()}, func(row []driver.Value) error {
		c.held -= int(row[0].(int64))
		n++
		return nil
	})
	return n, err
}

// trim cuts a log to its bound, by at most a number of events, and reports whether more
// are left to cut.
func (c *committer) trim(l *log, most int) (n int, left bool, err error) {
	c.ask(l)
	if l.bound == 0 {
		return 0, false, nil
	}
	count := l.count
	if count < 0 {
		limit := int64(l.bound + sweepRows)
		counted, _, err := c.db.number("SELECT count(*) FROM (SELECT 1 FROM placed WHERE log = ? LIMIT ?)", l.id, limit)
		if err != nil {
			return 0, false, err
		}
		if count = int(counted); counted < limit {
			l.count = count
		}
	}
	if count <= l.bound {
		return 0, false, nil
	}
	events, err := c.oldest(l, min(most, count-l.bound))
	if err != nil {
		return 0, false, err
	}
	name := l.name
	if err := c.drop(events, func(channel string) bool { return channel == name }); err != nil {
		return 0, false, err
	}
	return len(events), count-len(events) > l.bound, nil
}

// sweep looks at the next logs, whether their settings have become others since the
// file was written. It goes on where it ended before.
func (c *committer) sweep(budget int) error {
	ch := &c.chores
	for counted := 0; counted < sweepRows && budget > 0; {
		var l *log
		var age int64
		err := c.db.query(context.Background(), "SELECT name, id, age FROM logs WHERE id > ? ORDER BY id LIMIT 1", []driver.Value{ch.swept},
			func(row []driver.Value) error {
				l = &log{name: row[0].(string), id: row[1].(int64), count: unknown}
				age = row[2].(int64)
				return nil
			})
		if err != nil {
			return err
		}
		if l == nil {
			ch.done = true
			return nil
		}
		counted++
		if !wild(l.name) {
			if known := c.logs.get(l.name); known != nil {
				l = known
			}
			c.ask(l)
			if age != l.age {
				n, left, err := c.age(l, budget)
				if err != nil || left {
					return err
				}
				budget -= n
			}
			n, left, err := c.trim(l, budget)
			if err != nil {
				return err
			}
			budget -= n
			counted += max(0, l.count)
			if left {
				return nil
			}
		}
		ch.swept = l.id
	}
	return nil
}

// age sets anew when the events of a log expire, at most so many, and reports whether
// there are more.
func (c *committer) age(l *log, most int) (n int, left bool, err error) {
	type change struct{ seq, expires int64 }
	var changes []change
	ch := &c.chores
	if ch.aging != l.id {
		ch.aging, ch.aged = l.id, 0
	}
	last := ch.aged
	ages := map[string]int64{}
	err = c.db.query(context.Background(), `SELECT p.seq, e.time, e.ttl, e.expires, e.channels FROM placed p CROSS JOIN events e ON e.seq = p.seq
		WHERE p.log = ? AND p.seq > ? ORDER BY p.seq`, []driver.Value{l.id, ch.aged}, func(row []driver.Value) error {
		n++
		last = row[0].(int64)
		longest, first := int64(0), true
		for name := range strings.SplitSeq(row[4].(string), ",") {
			age, ok := ages[name]
			if !ok {
				age = milliseconds(max(0, c.node.Retention(name).Age))
				ages[name] = age
			}
			if first || age == 0 || longest != 0 && age > longest {
				longest = age
			}
			first = false
		}
		if expires := expiry(integer(row[1]), longest, integer(row[2])); expires != integer(row[3]) {
			changes = append(changes, change{last, expires})
		}
		return enough(n == most)
	})
	if err != nil {
		return 0, false, err
	}
	for _, e := range changes {
		if _, err := c.db.exec("UPDATE events SET expires = ? WHERE seq = ?", or(e.expires), e.seq); err != nil {
			return 0, false, err
		}
	}
	if n == most {
		ch.aged = last
		return n, true, nil
	}
	ch.aging = 0
	_, err = c.db.exec("UPDATE logs SET age = ? WHERE id = ?", l.age, l.id)
	return n, false, err
}

// integer returns the number of a column, 0 where it has none.
func integer(v driver.Value) int64 {
	n, _ := v.(int64)
	return n
}

// walMost is how large the WAL may become before the reads are made to wait until it
// begins anew. It is more than journal_size_limit leaves there.
const walMost = 72 << 20

// checkpoint has the WAL begin anew where it grows and grows, as it does while there
// is always a read going on: SQLite's own checkpoints wait for a moment without any. New
// reads wait until those under way have ended, and publishers for neither.
func (c *committer) checkpoint() {
	if !c.pausing {
		if time.Since(c.chores.wal) < choresEvery {
			return
		}
		c.chores.wal = time.Now()
		info, err := os.Stat(c.b.file + "-wal")
		if err != nil || info.Size() < c.b.walMost {
			return
		}
		c.pausing = true
		c.b.mu.Lock()
		c.b.pause = make(chan struct{})
		c.b.mu.Unlock()
	}
	for len(c.idle) < readers {
		select {
		case r := <-c.b.readers:
			c.idle = append(c.idle, r)
		default:
			if time.Since(c.chores.wal) > time.Second { // a long read: another time
				c.resume()
			}
			return
		}
	}
	// What another process reads makes it wait, too, and a publish with it.
	if err := c.db.script("PRAGMA busy_timeout = 100; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA busy_timeout = " + busyTimeout); err != nil {
		c.b.log.Warn("the WAL could not be checkpointed", "file", c.b.file, "error", err)
	}
	c.resume()
}

// resume lets reads go on.
func (c *committer) resume() {
	if !c.pausing {
		return
	}
	c.pausing = false
	for _, r := range c.idle {
		c.b.readers <- r
	}
	c.idle = c.idle[:0]
	c.chores.wal = time.Now()
	c.b.mu.Lock()
	close(c.b.pause)
	c.b.pause = nil
	c.b.mu.Unlock()
}
