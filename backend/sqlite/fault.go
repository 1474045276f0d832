package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	modernc "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/railsmechanic/eventsource"
)

// probeEvery is how often it is tried, while records are refused, whether they could
// be kept again.
const probeEvery = 500 * time.Millisecond

const codeNotADatabase = lib.SQLITE_NOTADB

// code returns the primary result code of an error of SQLite's, 0 where it is none.
func code(err error) int {
	if e, ok := errors.AsType[*modernc.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

// describe says in an operator's words what an error of SQLite's means.
func describe(err error) string {
	switch code(err) {
	case lib.SQLITE_FULL:
		return "the disk is full"
	case lib.SQLITE_READONLY, lib.SQLITE_PERM, lib.SQLITE_AUTH:
		return "the file can't be written: its file system or its permissions make it read-only"
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED, lib.SQLITE_PROTOCOL:
		return "another process has locked the file"
	case lib.SQLITE_CORRUPT:
		return "the file is damaged: restore a copy of it"
	case lib.SQLITE_NOTADB:
		return "the file is no SQLite database, or a damaged one: restore a copy of it"
	case lib.SQLITE_IOERR:
		return "the disk fails, or is full"
	case lib.SQLITE_CANTOPEN:
		return "the file can't be opened, or its directory not be written"
	case lib.SQLITE_NOMEM:
		return "there is no memory left"
	}
	return ""
}

// doubtfulCommit reports whether a commit that failed may have taken place all the same.
// Where there was no room, no lock or no right to write, its last page was not written.
func doubtfulCommit(err error) bool {
	switch code(err) {
	case lib.SQLITE_FULL, lib.SQLITE_BUSY, lib.SQLITE_READONLY:
		return false
	}
	return true
}

// unavailable wraps the cause of a failure, none of what was to be kept being so.
func unavailable(err error) error {
	if what := describe(err); what != "" {
		return fmt.Errorf("%w: %s (%w)", eventsource.ErrUnavailable, what, err)
	}
	return fmt.Errorf("%w: %w", eventsource.ErrUnavailable, err)
}

// leave has records refused until probe finds that they can be kept again.
func (c *committer) leave(reason error) {
	c.away = reason
	c.b.mu.Lock()
	c.b.away = reason
	waiting := c.b.waiting
	c.b.waiting = nil
	c.b.mu.Unlock()
	c.node.Available(reason)
	for _, p := range waiting {
		p.err = reason
		close(p.done)
	}
}

// probe has records taken again if a small one can be kept.
func (c *committer) probe() {
	if err := c.settle(); err != nil {
		c.b.log.Debug("the backend is still away", "file", c.b.file, "error", err)
		return
	}
	c.away = nil
	c.b.mu.Lock()
	c.b.away = nil
	c.b.mu.Unlock()
	c.node.Available(nil)
}

// look has records refused for good where the file or its WAL was removed or replaced
// under the server: what is written there is gone with the process. What the WAL has
// is brought into the file, where that still stands.
func (c *committer) look() {
	if c.gone != nil || c.away != nil || time.Since(c.looked) < choresEvery {
		return
	}
	c.looked = time.Now()
	for i, name := range []string{c.b.file, c.b.file + "-wal"} {
		info, err := os.Stat(name)
		if err == nil && c.stands[i] == nil {
			c.stands[i] = info
		}
		if c.stands[i] == nil || err == nil && os.SameFile(info, c.stands[i]) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		c.gone = fmt.Errorf("%w: %s was removed or replaced: restart the server", eventsource.ErrUnavailable, filepath.Base(name))
		if err := c.db.script("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
			c.b.log.Error("what the WAL had could not be saved", "file", c.b.file, "error", err)
		}
		c.leave(c.gone)
		return
	}
}

// settle opens the file anew, finds out what became of a group whose commit did not
// answer, and writes. What had reached the log of SQLite's without being committed is
// overwritten then, and can't come back after the process has been killed.
func (c *committer) settle() error {
	if c.gone != nil {
		return c.gone
	}
	c.db.close()
	c.db = nil
	db, err := dial(c.b.file, "mode=rw", "_pragma=busy_timeout("+busyTimeout+")")
	if err != nil {
		return err
	}
	db.fault = c.b.fault
	c.db = db
	if err := db.script(pragmas(c.b.synchronous)); err != nil {
		return err
	}
	if _, err := db.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	seq, found, err := db.number("SELECT seq FROM state")
	if err == nil && !found {
		err = errors.New("the file has lost its state")
	}
	if err == nil && uint64(seq) != c.seq && (len(c.doubtful) == 0 || uint64(seq) != c.doubt) {
		err = fmt.Errorf("the file stands at %d in place of %d: it was changed or replaced; restart the server", seq, c.seq)
	}
	if err == nil {
		_, err = db.exec("UPDATE state SET tries = tries + 1") // what stays the same is not written
	}
	if err == nil {
		_, err = db.exec("COMMIT")
	}
	if err != nil {
		db.exec("ROLLBACK")
		return err
	}
	if len(c.doubtful) > 0 {
		if uint64(seq) == c.doubt {
			c.seq = c.doubt
			c.node.Deliver(c.doubtful...)
			c.outcome = true
		}
		clear(c.doubtful)
		c.doubtful = c.doubtful[:0]
	}
	return c.load()
}
