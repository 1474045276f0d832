//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// mercurioData makes a file as mercurio leaves it.
const mercurioData = `
CREATE TABLE notifications (id integer, event_id text NOT NULL, source_id text NOT NULL, destination_id text NOT NULL,
	data text NOT NULL, created_at datetime, read_at datetime, PRIMARY KEY (id));
INSERT INTO notifications VALUES
	(1, '0f1c', 'terminal', '123', 'it''s "new"', '2021-03-01 10:00:00+00:00', '2021-03-01 11:00:00+00:00'),
	(2, '0f1d', 'terminal', '123', 'two
lines', '2021-03-02 10:00:00+00:00', NULL),
	(3, '0f1d', 'terminal', '456', 'two', '2021-03-02 10:00:00+00:00', NULL),
	(4, '0f1e', 'terminal', 'jürgen', 'ü', '2021-03-02 10:00:00+00:00', NULL);`

// Every command of the chapter on mercurio in docs/migrating.md is run as it stands
// there, but for the port, and prints what the chapter says.
func TestThePageOfMercurio(t *testing.T) {
	needs(t, "curl")
	needs(t, "sqlite3")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	// mercurio's folder, with its key and its data.
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Symlink(program, in("eventsource")),
		os.Symlink(examples, in("examples")),
		os.Mkdir(in("auth"), 0o700),
		os.WriteFile(in("auth/private-key"), []byte("the key of this test and of no other"), 0o600),
		os.Mkdir(in("db"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "sqlite3", in("db/mercurio.db"), mercurioData).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	port := strconv.Itoa(freePorts(t, 1)[0])
	s := openShell(t, dir, "RUN_AS_EVENTSOURCE=1", "EVENTSOURCE_PORT="+port)
	if blocks := s.follow(migration(t, "mercurio"), strings.NewReplacer("8000", port)); blocks < 15 {
		t.Errorf("%d blocks are few", blocks)
	}
}
