package queue_test

import (
	"os"
	"testing"

	"github.com/railsmechanic/eventsource/internal/check"
)

// TestMain fails the package when goroutines or descriptors are left over.
func TestMain(m *testing.M) {
	if nodes := os.Getenv(childNodes); nodes != "" {
		serveUntilKilled(nodes)
		return
	}
	check.Main(m)
}

// What the tests of several packages share.
var eventually = check.Eventually
