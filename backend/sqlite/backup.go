package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Backup copies a file, which a server may have open meanwhile, to a destination that
// must not exist. The copy has everything up to one commit, and is a file that New
// takes. It is complete once it has its name; what fails leaves nothing behind.
func Backup(ctx context.Context, source, destination string) error {
	if err := backup(ctx, source, destination); err != nil {
		return fmt.Errorf("sqlite: backing up %s: %w", source, err)
	}
	return nil
}

func backup(ctx context.Context, source, destination string) (err error) {
	if _, err := os.Stat(source); err != nil {
		return err
	}
	if _, err := os.Lstat(destination); err == nil {
		return fmt.Errorf("%s exists: give a file that does not, or remove it", destination)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	directory, name := filepath.Split(destination)
	temporary, err := os.CreateTemp(directory, "."+name+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temporary.Name())
			os.Remove(temporary.Name() + "-journal")
		}
	}()
	if err := temporary.Close(); err != nil {
		return err
	}
	db, err := dial(source, "mode=ro", "_pragma=busy_timeout("+busyTimeout+")")
	if err != nil {
		return worded(err)
	}
	defer db.close()
	application, _, err := db.number("PRAGMA application_id")
	if err != nil {
		return worded(err)
	}
	if application != applicationID {
		return fmt.Errorf("it is no file of this backend (its application_id is %d)", application)
	}
	// The file is empty, which VACUUM INTO takes for one that does not exist.
	if err := db.query(ctx, "VACUUM INTO ?", []driver.Value{temporary.Name()}, func([]driver.Value) error { return nil }); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return worded(err)
	}
	if err := syncFile(temporary.Name()); err != nil {
		return err
	}
	// A link, unlike a rename, replaces nothing that came meanwhile.
	if err := os.Link(temporary.Name(), destination); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists: give a file that does not, or remove it", destination)
	} else if err != nil {
		if err := os.Rename(temporary.Name(), destination); err != nil { // a file system without links
			return err
		}
	} else if err := os.Remove(temporary.Name()); err != nil {
		return err
	}
	if directory == "" {
		directory = "."
	}
	return syncDirectory(directory)
}

// worded adds an operator's words to an error of SQLite's.
func worded(err error) error {
	if what := describe(err); what != "" {
		return fmt.Errorf("%s (%w)", what, err)
	}
	return err
}

func syncFile(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncDirectory makes a new name durable, where a directory can be opened.
func syncDirectory(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	f.Sync()
	return f.Close()
}
