package sqlite_test

import (
	"os"
	"testing"

	"github.com/railsmechanic/eventsource/internal/check"
)

// TestMain fails the package when goroutines or descriptors are left over.
func TestMain(m *testing.M) {
	if file := os.Getenv(childFile); file != "" {
		publishUntilKilled(file)
		return
	}
	check.Main(m)
}

// What the tests of several packages share.
var eventually, skip = check.Eventually, check.Skip
