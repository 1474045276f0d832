//go:build unix

package sqlite_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// What is in the file was once for every user of the machine to read.
func TestTheFileIsItsOwnersOnly(t *testing.T) {
	directory := t.TempDir()
	b := backendOf(t, filepath.Join(directory, "events.db"))
	if _, err := b.Start(quiet{}); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := put(t, b, "secret"); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(directory)
	if err != nil || len(files) != 4 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Error(f, err)
		}
	}
}

// Two servers once had one file open, where one of them was given a link to it.
func TestALinkIsTheFileThatItLeadsTo(t *testing.T) {
	directory := t.TempDir()
	file, link, early := filepath.Join(directory, "events.db"), filepath.Join(directory, "link.db"), filepath.Join(directory, "early.db")
	for _, l := range []string{link, early} {
		if err := os.Symlink(file, l); err != nil {
			t.Fatal(err)
		}
	}
	first := backendOf(t, early) // makes the file
	if _, err := first.Start(quiet{}); err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for _, name := range []string{file, link, early} {
		_, err := backendOf(t, name).Start(quiet{})
		said(t, err, nil, "another server has ")
	}
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	directory := t.TempDir()
	pipe := filepath.Join(directory, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{directory, pipe} {
		_, err := backendOf(t, name).Start(quiet{})
		said(t, err, nil, "is no regular file")
	}
	_, err := backendOf(t, filepath.Join(directory, "none", "events.db")).Start(quiet{})
	said(t, err, nil, "make its directory first")
	if files, err := os.ReadDir(directory); err != nil || len(files) != 1 {
		t.Error(files, err)
	}
}
