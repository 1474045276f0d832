package sqlite

import (
	"context"
	"database/sql/driver"
	"slices"
	"strconv"
	"strings"

	"github.com/railsmechanic/eventsource"
)

// A going event leaves some of its channels' logs.
type going struct {
	seq      uint64
	channels string
}

// seqs are places, as the JSON array that a statement reads them from.
type seqs []byte

func (s *seqs) add(seq uint64) {
	if len(*s) == 0 {
		*s = append(*s, '[')
	} else {
		(*s)[len(*s)-1] = ','
	}
	*s = append(strconv.AppendUint(*s, seq, 10), ']')
}

func (s seqs) json() string {
	if len(s) == 0 {
		return "[]"
	}
	return string(s)
}

// A loss is what one log loses.
type loss struct {
	log     *log
	seqs    seqs
	latest  uint64 // the one that was added last
	highest uint64
}

// drop takes events out of the logs of those of their channels that leaves says; and
// out of the wildcards above and the file, where no other channel keeps them. Floors
// rise.
func (c *committer) drop(events []going, leaves func(channel string) bool) error {
	var gone seqs
	losses := map[string]*loss{}
	lose := func(name string, seq uint64) error {
		l := losses[name]
		if l == nil {
			found, err := c.find(name)
			if err != nil {
				return err
			}
			l = &loss{log: found} // no log: it stood in none
			losses[name] = l
		}
		if l.latest == seq { // two channels below one wildcard
			return nil
		}
		l.seqs.add(seq)
		l.latest, l.highest = seq, max(l.highest, seq)
		return nil
	}
	for _, e := range events {
		kept := false
		for name := range strings.SplitSeq(e.channels, ",") {
			if leaves(name) {
				if err := lose(name, e.seq); err != nil {
					return err
				}
				continue
			}
			if kept {
				continue
			}
			l, err := c.find(name)
			if err != nil {
				return err
			}
			if l != nil {
				if _, kept, err = c.db.number("SELECT 1 FROM placed WHERE log = ? AND seq = ?", l.id, int64(e.seq)); err != nil {
					return err
				}
			}
		}
		if kept {
			continue
		}
		gone.add(e.seq)
		if e.channels != global {
			c.floor = max(c.floor, e.seq)
		}
		for name := range strings.SplitSeq(e.channels, ",") {
			for prefix := range prefixes(name) {
				if err := lose(prefix+".*", e.seq); err != nil {
					return err
				}
			}
		}
	}
	if len(gone) > 0 {
		if _, err := c.db.exec("DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?))", gone.json()); err != nil {
			return err
		}
	}
	for name, l := range losses {
		if l.log == nil {
			if err := c.leaveFloor(name, l.highest); err != nil {
				return err
			}
			continue
		}
		n, err := c.db.exec("DELETE FROM placed WHERE log = ? AND seq IN (SELECT value FROM json_each(?))", l.log.id, l.seqs.json())
		if err != nil {
			return err
		}
		l.log.count -= int(n)
		if _, err := c.db.exec("UPDATE logs SET floor = max(floor, ?) WHERE id = ?", int64(l.highest), l.log.id); err != nil {
			return err
		}
		if err := c.tidy(l.log); err != nil {
			return err
		}
	}
	return nil
}

// purge drops the record's channels' events, and says which had any.
func (c *committer) purge(r *eventsource.Record) error {
	at := r.Time.UnixMilli()
	if r.Channels[0] == global {
		return c.purgeAll(r, at)
	}
	r.Purged = []string{}
	for _, name := range r.Channels {
		l, err := c.find(name)
		if err != nil {
			return err
		}
		if l == nil {
			continue
		}
		if _, any, err := c.db.number(`SELECT 1 FROM placed p CROSS JOIN events e ON e.seq = p.seq
			WHERE p.log = ? AND (e.expires IS NULL OR e.expires > ?) LIMIT 1`, l.id, at); err != nil {
			return err
		} else if any {
			r.Purged = append(r.Purged, name)
		}
	}
	slices.Sort(r.Purged)
	for _, name := range r.Channels {
		for {
			l, err := c.find(name)
			if err != nil {
				return err
			}
			if l == nil {
				break
			}
			events, err := c.oldest(l, 10_000) // so many at once, for memory
			if err != nil {
				return err
			}
			if len(events) == 0 {
				if err := c.tidy(l); err != nil {
					return err
				}
				break
			}
			if err := c.drop(events, func(channel string) bool { return slices.Contains(r.Channels, channel) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// purgeAll drops everything. Without conditions it costs next to nothing a row.
func (c *committer) purgeAll(r *eventsource.Record, at int64) error {
	r.Purged = []string{}
	type one struct {
		name  string
		floor uint64
	}
	var went []one
	err := c.db.query(context.Background(), `SELECT name, max(floor, coalesce((SELECT max(seq) FROM placed WHERE log = logs.id), 0)),
		EXISTS (SELECT 1 FROM placed p CROSS JOIN events e ON e.seq = p.seq WHERE p.log = logs.id AND (e.expires IS NULL OR e.expires > ?))
		FROM logs ORDER BY name`, []driver.Value{at}, func(row []driver.Value) error {
		name := row[0].(string)
		went = append(went, one{name, uint64(row[1].(int64))})
		if !wild(name) && name != global && row[2].(int64) != 0 {
			r.Purged = append(r.Purged, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, w := range went {
		if err := c.leaveFloor(w.name, w.floor); err != nil {
			return err
		}
		if wild(w.name) {
			c.floor = max(c.floor, w.floor)
		}
	}
	// Of "*", too high a floor tells of a gap where none may be; too low a one would
	// hide it.
	if len(r.Purged) > 0 {
		c.floor = max(c.floor, r.Seq-1)
	}
	for _, query := range []string{"DELETE FROM events", "DELETE FROM placed", "DELETE FROM logs"} {
		if _, err := c.db.exec(query); err != nil {
			return err
		}
	}
	c.logs, c.names = logs{}, 0
	c.chores.overdue, c.chores.dirty = nil, nil
	return nil
}

// oldest returns the first events of a log, at most n.
func (c *committer) oldest(l *log, n int) ([]going, error) {
	var events []going
	err := c.db.query(context.Background(), `SELECT p.seq, e.channels FROM placed p CROSS JOIN events e ON e.seq = p.seq
		WHERE p.log = ? ORDER BY p.seq`, []driver.Value{l.id}, func(row []driver.Value) error {
		events = append(events, going{uint64(row[0].(int64)), row[1].(string)})
		return enough(len(events) >= n)
	})
	return events, err
}

// mark marks the record's channel's events, and counts those that are unread then.
func (c *committer) mark(r *eventsource.Record) error {
	r.Unread = 0
	l, err := c.find(r.Channels[0])
	if err != nil || l == nil {
		return err
	}
	var listed seqs
	for _, seq := range r.Marks.Seqs {
		listed.add(seq)
	}
	read := int64(1)
	if r.Marks.Unread {
		read = 0
	}
	if r.Marks.UpTo > 0 {
		if _, err := c.db.exec("UPDATE placed SET read = ?1 WHERE log = ?2 AND seq <= ?3 AND read <> ?1", read, l.id, int64(min(r.Marks.UpTo, 1<<62))); err != nil {
			return err
		}
	}
	if len(listed) > 0 {
		if _, err := c.db.exec("UPDATE placed SET read = ? WHERE log = ? AND seq IN (SELECT value FROM json_each(?))", read, l.id, listed.json()); err != nil {
			return err
		}
	}
	n, _, err := c.db.number(`SELECT (SELECT count(*) FROM placed WHERE log = ?1 AND read = 0) -
		(SELECT count(*) FROM events e INDEXED BY events_expires CROSS JOIN placed p ON p.log = ?1 AND p.seq = e.seq AND p.read = 0 WHERE e.expires <= ?2)`,
		l.id, r.Time.UnixMilli())
	r.Unread = int(n)
	return err
}
