package sqlite_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
)

// tmpfs mounts a file system of a size, and returns where.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		skip(t, "mounting a small file system: "+err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error("unmount:", err)
		}
	})
	return dir
}

func TestAFullDiskRefusesAndKeepsWhatWasKept(t *testing.T) {
	dir := tmpfs(t, "2m")
	file, ballast := filepath.Join(dir, "events.db"), filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &listening{}
	b := backendOf(t, file)
	if _, err := b.Start(n); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var kept []uint64
	var refusal error
	for refusal == nil {
		k, err := put(t, b, strings.Repeat("x", 8<<10))
		if refusal = err; err == nil {
			kept = append(kept, k.Seq)
		}
		if len(kept) > 1000 {
			t.Fatal("the disk does not become full")
		}
	}
	said(t, refusal, eventsource.ErrUnavailable, "the disk is full")
	if _, err := put(t, b, strings.Repeat("x", 64<<10)); !errors.Is(err, eventsource.ErrUnavailable) {
		t.Errorf("while it is full: %v", err)
	}
	if got := held(t, b); !slices.Equal(got, kept) {
		t.Errorf("kept are %v, and acknowledged %v", got, kept)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its return", n.back)
	for range 10 {
		k, err := put(t, b, strings.Repeat("y", 8<<10))
		if err != nil {
			t.Fatal("with room again:", err)
		}
		kept = append(kept, k.Seq)
	}
	if got := held(t, b); !slices.Equal(got, kept) {
		t.Errorf("kept are %v, and acknowledged %v", got, kept)
	}
	if !slices.Equal(n.seqs, kept) {
		t.Errorf("delivered were %v, and acknowledged %v", n.seqs, kept)
	}
}

func TestALockedFileIsSaidAndWaitedFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.db")
	n := &listening{}
	b := backendOf(t, file)
	if _, err := b.Start(n); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	lock := locker{file: file}
	lock.take(t)
	_, err := put(t, b, "x")
	said(t, err, eventsource.ErrUnavailable, "another process has locked the file")
	began := time.Now()
	_, err = put(t, b, "x")
	said(t, err, eventsource.ErrUnavailable, "another process has locked the file")
	if waited := time.Since(began); waited > time.Second {
		t.Errorf("the second publisher was kept waiting for %v", waited)
	}
	if got := held(t, b); len(got) != 0 {
		t.Errorf("kept are %v", got)
	}
	lock.leave(t)
	eventually(t, "its return", n.back)
	if k, err := put(t, b, "x"); err != nil || k.Seq != 1 {
		t.Errorf("without the lock: %+v, %v", k, err)
	}
}

func TestAFileThatCantBeWrittenIsSaid(t *testing.T) {
	dir, above := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "events.db")
	b := backendOf(t, file)
	if _, err := b.Start(quiet{}); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := syscall.Mount(dir, above, "", syscall.MS_BIND, ""); err != nil {
		skip(t, "mounting a directory: "+err.Error())
	}
	defer syscall.Unmount(above, 0)
	if err := syscall.Mount("", above, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		skip(t, "mounting read-only: "+err.Error())
	}
	_, err := backendOf(t, filepath.Join(above, "events.db")).Start(quiet{})
	said(t, err, nil, "read-only")
	_, err = backendOf(t, filepath.Join(above, "another.db")).Start(quiet{})
	said(t, err, nil, "read-only")
	_, err = backendOf(t, filepath.Join(dir, "nowhere", "events.db")).Start(quiet{})
	said(t, err, nil, "no such file or directory")
}

const immutableFlag = 0x10 // FS_IMMUTABLE_FL of linux/fs.h

// immutable has the system refuse every write to a file, or ends that.
func immutable(t *testing.T, file string, on bool) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		if flags &^= immutableFlag; on {
			flags |= immutableFlag
		}
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
	}
	if err != nil {
		skip(t, "making a file immutable: "+err.Error())
	}
}

func TestADiskThatFailsRefusesAndComesBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.db")
	n := &listening{}
	b := backendOf(t, file)
	if _, err := b.Start(n); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	first, err := put(t, b, "before")
	if err != nil {
		t.Fatal(err)
	}
	immutable(t, file+"-wal", true)
	t.Cleanup(func() {
		if _, err := os.Stat(file + "-wal"); err == nil {
			immutable(t, file+"-wal", false)
		}
	})
	_, err = put(t, b, "during")
	if !errors.Is(err, eventsource.ErrUnknown) && !errors.Is(err, eventsource.ErrUnavailable) {
		t.Errorf("refused with %v", err)
	}
	immutable(t, file+"-wal", false)
	eventually(t, "its return", n.back)
	last, err := put(t, b, "after")
	if err != nil {
		t.Fatal(err)
	}
	want := []uint64{first.Seq, last.Seq}
	if len(n.seqs) == 3 { // it was kept after all
		want = n.seqs
	}
	if got := held(t, b); !slices.Equal(got, want) || !slices.Equal(n.seqs, want) {
		t.Errorf("kept are %v, and delivered were %v", got, n.seqs)
	}
}

// overwrite puts nonsense into a file, from an offset on.
func overwrite(t *testing.T, file string, from int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("nonsense", int(info.Size()-from)/8)), from); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedFileIsSaidAtTheStart(t *testing.T) {
	file := filled(t)
	overwrite(t, file, 4096)
	_, err := backendOf(t, file).Start(quiet{})
	said(t, err, nil, "damaged")
	overwrite(t, file, 0)
	_, err = backendOf(t, file).Start(quiet{})
	said(t, err, nil, "no SQLite database, or a damaged one")
	if err := os.WriteFile(file, []byte("channels: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = backendOf(t, file).Start(quiet{})
	said(t, err, nil, "no SQLite database")
}

func TestAFileThatIsDamagedMeanwhileIsSaid(t *testing.T) {
	file := filled(t)
	n := &listening{}
	b := backendOf(t, file)
	if _, err := b.Start(n); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	overwrite(t, file, 4096)
	_, err := b.Read(t.Context(), eventsource.Query{Channel: "news"})
	said(t, err, eventsource.ErrUnavailable, "damaged")
	_, err = b.Publish(t.Context(), &eventsource.Record{Channels: []string{"all"}, Purge: true})
	said(t, err, eventsource.ErrUnavailable, "damaged")
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.reasons) == 0 || n.reasons[0] == nil || len(n.seqs) != 0 {
		t.Errorf("the node was told %v and given %v", n.reasons, n.seqs)
	}
}

func TestAFileOfAnotherKindIsLeftAlone(t *testing.T) {
	for _, tc := range []struct{ statement, words string }{
		{"CREATE TABLE photos (id INTEGER)", "another application"},
		{"PRAGMA application_id = 17", "another application"},
	} {
		file := filepath.Join(t.TempDir(), "foreign.db")
		shell(t, file, tc.statement)
		before, _ := os.ReadFile(file)
		_, err := backendOf(t, file).Start(quiet{})
		said(t, err, nil, tc.words)
		if after, _ := os.ReadFile(file); !slices.Equal(before, after) {
			t.Errorf("%s: the file was changed", tc.statement)
		}
	}
	file := filled(t)
	shell(t, file, fmt.Sprintf("PRAGMA user_version = %d", 99))
	_, err := backendOf(t, file).Start(quiet{})
	said(t, err, nil, "is of version 99, and this program knows up to 1")
}

func TestASecondServerIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.db")
	b := backendOf(t, file)
	if _, err := b.Start(quiet{}); err != nil {
		t.Fatal(err)
	}
	_, err := backendOf(t, file).Start(quiet{})
	said(t, err, nil, "another server has "+file+" open")
	if _, err := put(t, b, "x"); err != nil {
		t.Error("the first one:", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = backendOf(t, file)
	if _, err := b.Start(quiet{}); err != nil {
		t.Error("after the first was closed:", err)
	}
	b.Close()
}

func TestABackendThatWasNeverStartedCloses(t *testing.T) {
	b := backendOf(t, filepath.Join(t.TempDir(), "events.db"))
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.Start(quiet{}); err == nil {
		t.Error("a closed backend was started")
	}
	if _, err := sqlite.New("", nil); err == nil {
		t.Error("no file was taken")
	}
	if _, err := sqlite.New("x", &sqlite.Options{Synchronous: "off"}); err == nil {
		t.Error("synchronous off was taken")
	}
}

// Publishes to a file that had been deleted were once answered as kept, and gone with the
// process.
func TestAFileThatIsTakenAwayIsSaidAndWhatCanBeIsSaved(t *testing.T) {
	for name, lose := range map[string]func(file string) error{
		"the file": os.Remove,
		"its WAL":  func(file string) error { return os.Remove(file + "-wal") },
		"a new file": func(file string) error {
			return errors.Join(os.Rename(file, file+"-old"), os.WriteFile(file, nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "events.db")
			n := &listening{}
			b := backendOf(t, file)
			if _, err := b.Start(n); err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			var kept []uint64
			for range 10 {
				k, err := put(t, b, "x")
				if err != nil {
					t.Fatal(err)
				}
				kept = append(kept, k.Seq)
			}
			if err := lose(file); err != nil {
				t.Fatal(err)
			}
			var refusal error
			eventually(t, "it is noticed", func() bool {
				k, err := put(t, b, "x")
				if refusal = err; err == nil {
					kept = append(kept, k.Seq)
				}
				return err != nil
			})
			said(t, refusal, eventsource.ErrUnavailable, "was removed or replaced: restart the server")
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			if name != "its WAL" {
				return
			}
			again := backendOf(t, file)
			if _, err := again.Start(quiet{}); err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if got := held(t, again); !slices.Equal(got, kept) {
				t.Errorf("kept are %v, and acknowledged %v", got, kept)
			}
		})
	}
}
