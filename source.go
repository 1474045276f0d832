package eventsource

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"time"
)

// A Publisher publishes events to a channel, or to several joined by commas,
// as Server.Publish does. It is safe for concurrent use.
type Publisher func(ctx context.Context, channel string, events ...Event) (Receipt, error)

// A Source feeds events in from elsewhere.
type Source interface {
	// Run publishes what comes in until ctx ends, reconnecting by itself, and
	// acknowledges upstream only what has been published. A return before ctx
	// has ended is logged, and Run is called again after a while.
	Run(ctx context.Context, publish Publisher) error
}

// An Endpoint is a Source that is fed by HTTP requests to the server itself.
// The server serves POST on its path from the time it is opened, with the body
// limited, and asks for a grant as Channel says.
type Endpoint interface {
	Source
	http.Handler
	// Path is where it is served, such as "/api/events".
	Path() string
	// Channel names what a request must be granted to publish to, once a token
	// is configured; "" when the source looks for a secret of its own.
	Channel() string
}

// sourcePause is how long a source that returned waits before it runs again, at
// first and at most.
const (
	sourcePause    = 100 * time.Millisecond
	maxSourcePause = 30 * time.Second
)

// A running source.
type running struct {
	Source
	name    string // its kind and number, for the log and /health
	failing atomic.Bool
	done    chan struct{}
}

// runSource runs a source until ctx ends, again after each return.
func (s *Server) runSource(ctx context.Context, number int, src Source) *running {
	kind := strings.TrimPrefix(reflect.TypeOf(src).String(), "*")
	kind, _, _ = strings.Cut(kind, ".")
	run := &running{Source: src, name: fmt.Sprintf("%s-%d", kind, number+1), done: make(chan struct{})}
	go func() {
		defer close(run.done)
		pause := sourcePause
		for {
			began := time.Now()
			run.failing.Store(false)
			err := src.Run(ctx, s.Publish)
			if ctx.Err() != nil {
				return
			}
			run.failing.Store(true)
			s.log.Error("a source ended", "source", run.name, "error", err)
			if time.Since(began) > maxSourcePause {
				pause = sourcePause
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause/2 + rand.N(pause)):
			}
			pause = min(2*pause, maxSourcePause)
		}
	}()
	return run
}
