package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/railsmechanic/eventsource"
)

// applicationID says in a file's header whose it is: "EvSr".
const applicationID = 0x45765372

// steps bring a file from one version to the next: steps[0] makes an empty file one
// of version 1. A step is never changed once it was released.
var steps = []string{`
-- The order: the highest Seq that was given, and the floor of all that went to a name.
CREATE TABLE state (
	one   INTEGER PRIMARY KEY CHECK (one = 1),
	seq   INTEGER NOT NULL,
	floor INTEGER NOT NULL,
	tries INTEGER NOT NULL -- how often was tried whether the file can be written
);
INSERT INTO state VALUES (1, 0, 0, 0);

-- The lives of the order: one each time that the file is opened, oldest first.
CREATE TABLE lives (
	place  INTEGER PRIMARY KEY,
	number INTEGER NOT NULL UNIQUE,
	since  INTEGER NOT NULL, -- Unix milliseconds
	last   INTEGER           -- the highest Seq of it, once it has ended
);

CREATE TABLE events (
	seq      INTEGER PRIMARY KEY,
	time     INTEGER NOT NULL, -- Unix milliseconds
	expires  INTEGER,          -- likewise; NULL: never
	ttl      INTEGER,          -- milliseconds
	retry    INTEGER,          -- milliseconds
	nodata   INTEGER,
	id       TEXT,             -- where its publisher gave one
	type     TEXT,
	channels TEXT NOT NULL,    -- joined by commas
	data     TEXT
);
CREATE INDEX events_id ON events (id) WHERE id IS NOT NULL;
CREATE INDEX events_expires ON events (expires) WHERE expires IS NOT NULL;

-- The logs that hold events: names, "all", and the wildcards above the names but for
-- "*", which is every event that is not for "all".
CREATE TABLE logs (
	id    INTEGER PRIMARY KEY,
	name  TEXT NOT NULL UNIQUE,
	floor INTEGER NOT NULL,
	age   INTEGER NOT NULL -- the retention's that its events expire by, in milliseconds
);

CREATE TABLE placed (
	log  INTEGER NOT NULL,
	seq  INTEGER NOT NULL,
	read INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (log, seq)
) WITHOUT ROWID;

-- The floors of logs that went, by a hash of their names.
CREATE TABLE floors (
	bucket INTEGER PRIMARY KEY,
	floor  INTEGER NOT NULL
);

CREATE TABLE keys (
	key     BLOB PRIMARY KEY,
	body    BLOB NOT NULL,
	seq     INTEGER NOT NULL,
	time    INTEGER NOT NULL,
	expires INTEGER NOT NULL,
	events  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX keys_expires ON keys (expires);
`}

// prepare makes the file one of this version, or says why it can't be.
func prepare(db *conn, file, synchronous string) error {
	application, _, err := db.number("PRAGMA application_id")
	if err != nil {
		return err
	}
	version, _, err := db.number("PRAGMA user_version")
	if err != nil {
		return err
	}
	tables, _, err := db.number("SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return err
	}
	switch {
	case application == 0 && version == 0 && tables == 0: // a new one
	case application != applicationID:
		return fmt.Errorf("%s is a database of another application (its application_id is %d): give a file of its own", file, application)
	case version > int64(len(steps)):
		return fmt.Errorf("%s is of version %d, and this program knows up to %d: use the newer program that wrote it, or another file",
			file, version, len(steps))
	case version < 1:
		return fmt.Errorf("%s has the version %d, which no program wrote: restore a copy of it", file, version)
	}
	mode := ""
	if err := db.query(context.Background(), "PRAGMA journal_mode = WAL", nil, func(row []driver.Value) error {
		mode, _ = row[0].(string)
		return nil
	}); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("%s can't be kept in WAL mode (it stays in %q): use a local file system", file, mode)
	}
	if err := db.script(pragmas(synchronous)); err != nil {
		return err
	}
	if version == int64(len(steps)) {
		return nil
	}
	if err := db.script("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, step := range steps[version:] {
		if err := db.script(step); err != nil {
			return errors.Join(err, db.script("ROLLBACK"))
		}
	}
	if err := db.script(fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT", applicationID, len(steps))); err != nil {
		return errors.Join(err, db.script("ROLLBACK"))
	}
	return nil
}

// pragmas are those of the connection that writes. It checkpoints every 16 MiB of
// WAL, since a page that many commits wrote is copied once then, and cuts a WAL that
// grew beyond 64 MiB.
func pragmas(synchronous string) string {
	return "PRAGMA busy_timeout = " + busyTimeout + "; PRAGMA synchronous = " + synchronous + "; PRAGMA foreign_keys = OFF;" +
		"PRAGMA cache_size = -32768; PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864"
}

// A life is one of the order, as long as the file was open.
type life struct {
	epoch eventsource.Epoch
	last  uint64 // the highest Seq of it
}

// livesKept is how many lives are kept beyond those that events are left of.
const livesKept = 1000

// begin ends the life that was, begins another and returns all of them, the
// present one last with every Seq to come, and the highest Seq that was given.
//
// Each opening is a life of its own, since the file may have been restored from a
// copy: what was given after the copy was made is beyond the copied life's last.
func begin(db *conn) (lives []life, seq uint64, err error) {
	if _, err := db.exec("BEGIN IMMEDIATE"); err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			db.exec("ROLLBACK")
		}
	}()
	last, found, err := db.number("SELECT seq FROM state")
	if err != nil {
		return nil, 0, err
	}
	if !found {
		return nil, 0, errors.New("the file has lost its state: restore a copy of it")
	}
	// A state that is behind the events would have their places given again.
	if highest, _, err := db.number("SELECT max(seq) FROM events"); err != nil {
		return nil, 0, err
	} else if highest > last {
		return nil, 0, fmt.Errorf("the file has an event with Seq %d, beyond the highest that was given, %d: restore a copy of it", highest, last)
	}
	if _, err := db.exec("UPDATE lives SET last = ? WHERE last IS NULL", last); err != nil {
		return nil, 0, err
	}
	if _, err := db.exec(`DELETE FROM lives WHERE place <= (SELECT max(place) FROM lives) - ?
		AND last < coalesce((SELECT min(seq) FROM events), ?)`, int64(livesKept), last+1); err != nil {
		return nil, 0, err
	}
	var epoch eventsource.Epoch
	for taken := true; taken; {
		epoch = eventsource.NewEpoch()
		if _, taken, err = db.number("SELECT number FROM lives WHERE number = ?", int64(epoch.Number)); err != nil {
			return nil, 0, err
		}
	}
	// Times are kept in milliseconds, as ids show them.
	epoch.Since = epoch.Since.Truncate(time.Millisecond)
	if _, err := db.exec("INSERT INTO lives (number, since) VALUES (?, ?)", int64(epoch.Number), epoch.Since.UnixMilli()); err != nil {
		return nil, 0, err
	}
	err = db.query(context.Background(), "SELECT number, since, last FROM lives ORDER BY place", nil, func(row []driver.Value) error {
		end := ^uint64(0)
		if row[2] != nil {
			end = uint64(row[2].(int64))
		}
		lives = append(lives, life{eventsource.Epoch{Number: uint32(row[0].(int64)), Since: time.UnixMilli(row[1].(int64))}, end})
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	if _, err := db.exec("COMMIT"); err != nil {
		return nil, 0, err
	}
	return lives, uint64(last), nil
}

// fileSize returns a file's size, 0 where there is none.
func fileSize(file string) (int64, error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
