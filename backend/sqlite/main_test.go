package sqlite_test

import (
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the package when goroutines or descriptors are left over.
func TestMain(m *testing.M) {
	if file := os.Getenv(childFile); file != "" {
		publishUntilKilled(file)
		return
	}
	flag.Parse()
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close() // the runtime's poller is open from now on
	}
	goroutines, descriptors := runtime.NumGoroutine(), openFiles()
	code := m.Run()
	if code == 0 && !settled(func() bool { return runtime.NumGoroutine() <= goroutines }) {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		fmt.Printf("FAIL: %d goroutines were left over:\n%s\n", runtime.NumGoroutine()-goroutines, stacks)
		code = 1
	}
	if code == 0 && !settled(func() bool { return len(openFiles()) <= len(descriptors) }) {
		fmt.Printf("FAIL: descriptors were left over: %v, there had been %v\n", openFiles(), descriptors)
		code = 1
	}
	os.Exit(code)
}

// openFiles returns what the process has open, where the system says it.
func openFiles() []string {
	var open []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(to, "anon_inode:") {
			open = append(open, e.Name()+" "+to)
		}
	}
	return open
}

// settled polls until ok or ten seconds have passed.
func settled(ok func() bool) bool {
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
	return true
}

// eventually fails the test unless ok comes true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !settled(ok) {
		t.Fatal("in vain was waited for: " + what)
	}
}

// skip leaves a test out, loudly: it fails where everything must run.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("EVENTSOURCE_TEST_NO_SKIP") == "1" || os.Getenv("CI") != "" && os.Getuid() == 0 {
		t.Fatal("nothing may be skipped here: " + why)
	}
	t.Skip("SKIPPED: " + why)
}
