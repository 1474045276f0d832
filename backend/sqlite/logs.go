package sqlite

import (
	"context"
	"database/sql/driver"
	"strings"
	"time"
)

const (
	global = "all" // the channel that is below no wildcard
	every  = "*"   // the wildcard that has no rows of its own

	// buckets is how many floors of logs that went the file remembers.
	buckets = 1024
	// logsKnown is how many logs are remembered at least.
	logsKnown = 32 << 10
	// retainedFor is how long what the node says of a channel's retention is taken for
	// granted.
	retainedFor = time.Second
)

// A log is what the committer knows of one that has a row.
type log struct {
	id   int64
	name string
	// count is how many events stand in it; below zero: that is not known, however
	// many are added.
	count int
	// What the node retains of it; nothing of a wildcard. age is in milliseconds.
	bound int
	age   int64
	asked time.Time
}

// named reports whether the log counts as a channel.
func (l *log) named() bool { return !wild(l.name) && l.name != global }

// unknown is a count that no number of events brings to zero.
const unknown = -1 << 60

// logs remember logs by their names, the ones that were asked for last.
type logs struct {
	young, old map[string]*log
}

func (l *logs) get(name string) *log {
	if found := l.young[name]; found != nil {
		return found
	}
	found := l.old[name]
	if found != nil {
		l.put(found)
	}
	return found
}

func (l *logs) put(one *log) {
	if l.young == nil || len(l.young) >= logsKnown {
		l.old, l.young = l.young, make(map[string]*log, min(logsKnown, 2*len(l.young)))
	}
	l.young[one.name] = one
}

func (l *logs) drop(name string) {
	delete(l.young, name)
	delete(l.old, name)
}

// find returns the log of a name or wildcard, nil where no event stands in it.
func (c *committer) find(name string) (*log, error) {
	if l := c.logs.get(name); l != nil {
		return l, nil
	}
	id, found, err := c.db.number("SELECT id FROM logs WHERE name = ?", name)
	if err != nil || !found {
		return nil, err
	}
	l := &log{id: id, name: strings.Clone(name), count: unknown}
	c.ask(l)
	c.logs.put(l)
	return l, nil
}

// make returns the log of a name or wildcard, with a row. Its floor is the one that
// was left for it.
func (c *committer) make(name string) (*log, error) {
	l, err := c.find(name)
	if err != nil {
		return nil, err
	}
	if l != nil {
		if time.Since(l.asked) > retainedFor {
			c.ask(l)
		}
		return l, nil
	}
	l = &log{name: strings.Clone(name)}
	c.ask(l)
	err = c.db.query(context.Background(), "INSERT INTO logs (name, floor, age) VALUES (?, ?, ?) RETURNING id",
		[]driver.Value{name, int64(c.floors[bucket(name)]), l.age}, func(row []driver.Value) error {
			l.id = row[0].(int64)
			return nil
		})
	if err != nil {
		return nil, err
	}
	if l.named() {
		c.names++
	}
	c.logs.put(l)
	return l, nil
}

// ask reads what the node retains of a log.
func (c *committer) ask(l *log) {
	l.asked = time.Now()
	if wild(l.name) {
		return
	}
	r := c.node.Retention(l.name)
	l.bound, l.age = max(0, r.Events), milliseconds(max(0, r.Age))
}

// raise raises the floor of a name or wildcard, whether it has a row or not.
func (c *committer) raise(name string, seq uint64) error {
	l, err := c.find(name)
	if err != nil {
		return err
	}
	if l != nil {
		_, err = c.db.exec("UPDATE logs SET floor = max(floor, ?) WHERE id = ?", int64(seq), l.id)
		return err
	}
	return c.leaveFloor(name, seq)
}

// leaveFloor keeps the floor of a log without a row.
func (c *committer) leaveFloor(name string, seq uint64) error {
	i := bucket(name)
	if c.floors[i] >= seq {
		return nil
	}
	c.floors[i] = seq
	_, err := c.db.exec("INSERT INTO floors (bucket, floor) VALUES (?, ?) ON CONFLICT (bucket) DO UPDATE SET floor = max(floor, excluded.floor)",
		int64(i), int64(seq))
	return err
}

// tidy takes away the row of a log in which no event stands any more.
func (c *committer) tidy(l *log) error {
	if l.count > 0 {
		return nil
	}
	if _, any, err := c.db.number("SELECT seq FROM placed WHERE log = ? LIMIT 1", l.id); err != nil || any {
		return err
	}
	floor, found, err := c.db.number("DELETE FROM logs WHERE id = ? RETURNING floor", l.id)
	if err != nil {
		return err
	}
	c.logs.drop(l.name)
	if !found {
		return nil
	}
	if l.named() {
		c.names--
	}
	return c.leaveFloor(l.name, uint64(floor))
}

// bucket returns where the floor of a log without a row is: FNV-1a (32 bit) of its
// name, the same in every process.
func bucket(name string) int {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return int(h % buckets)
}

func wild(name string) bool { return strings.HasSuffix(name, every) }

// prefixes yields what the wildcards that hold name, but for "*", stand below: "a"
// and "a.b" of "a.b.c", and nothing of "all".
func prefixes(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for i := range len(name) {
			if name[i] == '.' && !yield(name[:i]) {
				return
			}
		}
	}
}
