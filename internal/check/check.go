// Package check is what the tests of several packages share: who waits for something, who
// leaves something behind, and who is left out.
package check

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patience is how long is waited for something.
const patience = 10 * time.Second

// Main runs a package's tests, and ends the process: with a failure when goroutines or
// descriptors are left over. It is all that TestMain does.
func Main(m *testing.M) {
	flag.Parse()
	if fuzz := flag.Lookup("test.fuzz"); fuzz != nil && fuzz.Value.String() != "" {
		os.Exit(m.Run()) // the fuzzer has goroutines and pipes of its own
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close() // the runtime's poller is open from now on
	}
	goroutines, descriptors := runtime.NumGoroutine(), Descriptors()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	if code == 0 && !Settled(func() bool { return runtime.NumGoroutine() <= goroutines }) {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		fmt.Printf("FAIL: %d goroutines were left over:\n%s\n", runtime.NumGoroutine()-goroutines, stacks)
		code = 1
	}
	if code == 0 && !Settled(func() bool { return len(Descriptors()) <= len(descriptors) }) {
		fmt.Printf("FAIL: descriptors were left over: %v, there had been %v\n", Descriptors(), descriptors)
		code = 1
	}
	os.Exit(code)
}

// Descriptors returns what the process has open, where the system says it, but for what the
// runtime keeps of processes that it started.
func Descriptors() []string {
	var all []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && to != "anon_inode:[pidfd]" && !strings.HasPrefix(to, "/proc/") {
			all = append(all, e.Name()+" "+to)
		}
	}
	return all
}

// Settled polls until ok or ten seconds have passed.
func Settled(ok func() bool) bool {
	deadline := time.Now().Add(patience)
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

// Eventually fails the test unless ok comes true.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !Settled(ok) {
		t.Fatal("in vain was waited for: " + what)
	}
}

// Skip leaves a test out, loudly: it fails where everything must run.
func Skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("EVENTSOURCE_TEST_NO_SKIP") == "1" {
		t.Fatal("nothing may be skipped here: " + why)
	}
	t.Skip("SKIPPED: " + why)
}
