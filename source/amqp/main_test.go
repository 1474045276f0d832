package amqp_test

import (
	"testing"

	"github.com/railsmechanic/eventsource/internal/check"
)

// TestMain fails the package when goroutines or descriptors are left over.
func TestMain(m *testing.M) {
	check.Main(m)
}

// What the tests of several packages share.
var settled, eventually = check.Settled, check.Eventually
