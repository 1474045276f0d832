package sqlite

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/railsmechanic/eventsource"
)

// read runs what reads the file on a connection of its own, all of it on one state
// of the file.
func (b *Backend) read(ctx context.Context, run func(db *conn) error) error {
	b.mu.Lock()
	pause := b.pause
	b.mu.Unlock()
	if pause != nil {
		select {
		case <-pause:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var db *conn
	select {
	case db = <-b.readers:
	case <-ctx.Done():
		return ctx.Err()
	}
	if db == nil {
		return eventsource.ErrClosed
	}
	defer func() { b.readers <- db }()
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return eventsource.ErrClosed
	}
	_, err := db.exec("BEGIN")
	if err == nil {
		err = run(db)
		if _, e := db.exec("ROLLBACK"); err == nil {
			err = e
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, eventsource.ErrClosed):
		return err
	}
	return unavailable(err)
}

const (
	eventColumns = "e.seq, e.time, e.retry, e.nodata, e.id, e.type, e.channels, e.data, e.ttl"
	unexpired    = " AND (e.expires IS NULL OR e.expires > ?2)"
)

// selection returns the tables and conditions of a query, and their arguments: ?1 is
// the log, ?2 the time.
func selection(q *eventsource.Query, log int64, at time.Time) (sql string, args []driver.Value) {
	var s strings.Builder
	args = []driver.Value{log, at.UnixMilli()}
	seq := "p.seq"
	switch {
	case q.Channel == every:
		s.WriteString(" FROM events e")
		if q.ID == "" {
			s.WriteString(" NOT INDEXED")
		}
		s.WriteString(" WHERE ?1 = 0 AND e.channels <> 'all'")
		seq = "e.seq"
	case q.ID != "":
		s.WriteString(" FROM events e INDEXED BY events_id CROSS JOIN placed p ON p.log = ?1 AND p.seq = e.seq WHERE true")
		seq = "e.seq"
	default:
		s.WriteString(" FROM placed p CROSS JOIN events e ON e.seq = p.seq WHERE p.log = ?1")
	}
	condition := func(sql string, arg driver.Value) {
		args = append(args, arg)
		fmt.Fprintf(&s, sql, len(args))
	}
	s.WriteString(unexpired)
	if q.After > 0 {
		condition(" AND "+seq+" > ?%d", int64(min(q.After, 1<<62)))
	}
	if q.Before > 0 {
		condition(" AND "+seq+" < ?%d", int64(min(q.Before, 1<<62)))
	}
	if q.ID != "" {
		condition(" AND e.id = ?%d", q.ID)
	}
	if q.Types != nil {
		types, _ := json.Marshal(q.Types)
		condition(" AND coalesce(e.type, 'message') IN (SELECT value FROM json_each(?%d))", string(types))
	}
	if q.Status != eventsource.AnyStatus {
		read := int64(0)
		if q.Status == eventsource.Read {
			read = 1
		}
		if q.Channel == every { // marks are a channel's
			condition(" AND ?%d = 0", read)
		} else {
			condition(" AND p.read = ?%d", read)
		}
	}
	return s.String(), args
}

// logOf returns a log and its floor, 0 where no event stands in it.
func logOf(db *conn, name string, at time.Time) (log int64, floor uint64, err error) {
	if name == every {
		n, _, err := db.number("SELECT floor FROM state")
		if err != nil {
			return 0, 0, err
		}
		expired, _, err := db.number("SELECT max(seq) FROM events INDEXED BY events_expires WHERE expires <= ? AND channels <> 'all'", at.UnixMilli())
		return 0, uint64(max(n, expired)), err
	}
	found := false
	err = db.query(context.Background(), "SELECT id, floor FROM logs WHERE name = ?", []driver.Value{name}, func(row []driver.Value) error {
		log, floor, found = row[0].(int64), uint64(row[1].(int64)), true
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	if !found {
		n, _, err := db.number("SELECT floor FROM floors WHERE bucket = ?", int64(bucket(name)))
		return 0, uint64(n), err
	}
	// What has expired is gone, whether it has been dropped yet or not.
	expired, _, err := db.number(`SELECT max(p.seq) FROM events e INDEXED BY events_expires CROSS JOIN placed p ON p.log = ?1 AND p.seq = e.seq
		WHERE e.expires <= ?2`, log, at.UnixMilli())
	return log, max(floor, uint64(expired)), err
}

// Read returns a page of a channel's events.
func (b *Backend) Read(ctx context.Context, q eventsource.Query) (page eventsource.Page, err error) {
	err = b.read(ctx, func(db *conn) error {
		at := b.now()
		log, floor, err := logOf(db, q.Channel, at)
		page.Floor = floor
		if err != nil || log == 0 && q.Channel != every {
			return err
		}
		from, args := selection(&q, log, at)
		columns := eventColumns + ", p.read"
		order := "p.seq"
		if q.Channel == every {
			columns, order = eventColumns+", 0", "e.seq"
		} else if q.ID != "" {
			order = "e.seq"
		}
		if q.Descending {
			order += " DESC"
		}
		if q.Limit > 0 {
			page.Events = make([]eventsource.Stored, 0, min(q.Limit, 256))
		}
		bytes := 0
		return db.query(ctx, "SELECT "+columns+from+" ORDER BY "+order, args, func(row []driver.Value) error {
			if q.Limit > 0 && len(page.Events) == q.Limit {
				page.More = true
				return errEnough
			}
			data, _ := row[7].(string)
			if bytes += len(data); q.Bytes > 0 && bytes > q.Bytes && len(page.Events) > 0 {
				page.More = true
				return errEnough
			}
			page.Events = append(page.Events, b.stored(row, data, at))
			return nil
		})
	})
	if err != nil {
		return eventsource.Page{}, fmt.Errorf("sqlite: reading %s: %w", q.Channel, err)
	}
	return page, nil
}

// stored returns the event of a row as it is now.
func (b *Backend) stored(row []driver.Value, data string, now time.Time) eventsource.Stored {
	at := time.UnixMilli(row[1].(int64))
	e := eventsource.Stored{Seq: uint64(row[0].(int64)), Channels: strings.Split(row[6].(string), ","), Read: integer(row[9]) != 0}
	if ttl := time.Duration(integer(row[8])) * time.Millisecond; ttl > 0 {
		// A clock that was set back, or settings that were, don't prolong it, nor end it.
		e.TTL = max(time.Millisecond, min(ttl, ttl-now.Sub(at)))
	}
	e.Time, e.Data, e.NoData = at, data, row[3] != nil
	e.Retry = time.Duration(integer(row[2])) * time.Millisecond
	e.Type, _ = row[5].(string)
	if e.ID, _ = row[4].(string); e.ID == "" {
		e.ID = b.epochOf(e.Seq).ID(e.Seq, at)
	}
	return e
}

// Count returns how many events Read would return without Limit and Bytes.
func (b *Backend) Count(ctx context.Context, q eventsource.Query) (n int, err error) {
	err = b.read(ctx, func(db *conn) error {
		log := int64(0)
		if q.Channel != every {
			id, found, err := db.number("SELECT id FROM logs WHERE name = ?", q.Channel)
			if err != nil || !found {
				return err
			}
			log = id
		}
		at := b.now()
		sql, args := selection(&q, log, at)
		sql = "SELECT count(*)" + sql
		if q.Channel != every && q.ID == "" && q.Types == nil {
			sql, args = counting(&q, log, at)
		}
		return db.query(ctx, sql, args, func(row []driver.Value) error {
			n = int(integer(row[0]))
			return nil
		})
	})
	if err != nil {
		return 0, fmt.Errorf("sqlite: counting %s: %w", q.Channel, err)
	}
	return n, nil
}

// counting returns the query that counts a log without a look at its events, but for
// those that have expired.
func counting(q *eventsource.Query, log int64, at time.Time) (sql string, args []driver.Value) {
	before := uint64(1 << 62)
	if q.Before > 0 {
		before = min(before, q.Before)
	}
	args = []driver.Value{log, at.UnixMilli(), int64(min(q.After, 1<<62)), int64(before)}
	condition := "p.seq > ?3 AND p.seq < ?4"
	switch q.Status {
	case eventsource.Unread:
		condition += " AND p.read = 0"
	case eventsource.Read:
		condition += " AND p.read <> 0"
	}
	return "SELECT (SELECT count(*) FROM placed p WHERE p.log = ?1 AND " + condition + `) - (SELECT count(*)
		FROM events e INDEXED BY events_expires CROSS JOIN placed p ON p.log = ?1 AND p.seq = e.seq WHERE e.expires <= ?2 AND ` + condition + ")", args
}

// Channels returns names with retained events, sorted by their bytes. A limit of 0 is
// any number.
func (b *Backend) Channels(ctx context.Context, prefix, after string, limit int) (names []string, err error) {
	names = []string{}
	err = b.read(ctx, func(db *conn) error {
		// Above every name that begins with prefix: no name has the byte.
		args := []driver.Value{prefix, prefix + "\x7f", after, b.now().UnixMilli()}
		return db.query(ctx, `SELECT name FROM logs WHERE name >= ?1 AND name < ?2 AND name > ?3 AND name <> 'all' AND name NOT LIKE '%*'
			AND EXISTS (SELECT 1 FROM placed p CROSS JOIN events e ON e.seq = p.seq WHERE p.log = logs.id AND (e.expires IS NULL OR e.expires > ?4))
			ORDER BY name`, args, func(row []driver.Value) error {
			names = append(names, row[0].(string))
			return enough(len(names) == limit)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("sqlite: listing channels: %w", err)
	}
	return names, nil
}
