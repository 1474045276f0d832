package eventsource_test

import (
	"testing"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/backendtest"
)

func TestTheInMemoryBackendDoesWhatEveryBackendMust(t *testing.T) {
	backendtest.Run(t, backendtest.Suite{
		New: func(*testing.T) *backendtest.Place {
			return &backendtest.Place{Open: func(*testing.T) eventsource.Backend { return eventsource.NewMemory() }}
		},
	})
}
