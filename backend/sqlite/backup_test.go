package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
)

func TestABackupHasEverythingUpToOneCommit(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "events.db")
	b := backendOf(t, file)
	if _, err := b.Start(quiet{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	started := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ctx.Err() == nil; n++ {
			r := &eventsource.Record{Channels: []string{"news"}, Events: []eventsource.Event{{Data: fmt.Sprint(n)}, {Data: fmt.Sprint(n)}}}
			if _, err := b.Publish(context.Background(), r); err != nil {
				t.Error(err)
			}
			if n == 50 {
				close(started)
			}
		}
	}()
	<-started
	copied := filepath.Join(dir, "copy.db")
	if err := sqlite.Backup(t.Context(), file, copied); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s was left", e.Name())
		}
	}
	all := held(t, b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	c := backendOf(t, copied)
	order, err := c.Start(quiet{})
	if err != nil {
		t.Fatal("the copy:", err)
	}
	defer c.Close()
	got := held(t, c)
	if len(got) < 100 || len(got)%2 != 0 || !slices.Equal(got, all[:len(got)]) || order.Seq != got[len(got)-1] {
		t.Errorf("the copy has %d of %d events and stands at %d", len(got), len(all), order.Seq)
	}
	if len(order.Earlier) != 1 || order.Earlier[0].Last != order.Seq {
		t.Errorf("the copy's lives are %+v", order.Earlier)
	}
}

func TestABackupReplacesNothingAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	file := filled(t)
	there := filepath.Join(dir, "there.db")
	if err := os.WriteFile(there, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	said(t, sqlite.Backup(t.Context(), file, there), nil, "exists")
	if text, _ := os.ReadFile(there); string(text) != "precious" {
		t.Error("it was replaced")
	}
	if err := sqlite.Backup(t.Context(), filepath.Join(dir, "none.db"), filepath.Join(dir, "copy.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no file: %v", err)
	}
	foreign := filepath.Join(dir, "foreign.db")
	shell(t, foreign, "CREATE TABLE photos (id INTEGER)")
	said(t, sqlite.Backup(t.Context(), foreign, filepath.Join(dir, "copy.db")), nil, "no file of this backend")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sqlite.Backup(ctx, file, filepath.Join(dir, "copy.db")); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("left were %v", entries)
	}
}
