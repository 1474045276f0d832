package redis

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/railsmechanic/eventsource"
)

// mostUnacknowledged is how many entries may wait to be acknowledged before no more are
// read.
const mostUnacknowledged = 4 * mostEntries

// An acknowledged is an entry that needs not come again.
type acknowledged struct {
	key, id string
	refused *eventsource.RefusedError // why it is never published; nil: it was
	entry   *redis.XMessage           // if it is refused
}

// An acks acknowledges entries, together those that were done while the ones before were
// acknowledged. It is safe for concurrent use.
type acks struct {
	// Set when made.
	ctx    context.Context
	to     *line
	config *Config
	lost   func() // called when it can't go on
	more   chan struct{}
	done   chan struct{}

	mu     sync.Mutex
	list   []acknowledged
	ending bool
	freed  chan struct{} // closed when the list was taken; nil while nobody waits
	err    error         // why it can't go on
}

func newAcks(ctx context.Context, to *line, config *Config, lost func()) *acks {
	a := &acks{ctx: ctx, to: to, config: config, lost: lost, more: make(chan struct{}, 1), done: make(chan struct{})}
	go a.run()
	return a
}

// add has an entry acknowledged.
func (a *acks) add(one acknowledged) {
	a.mu.Lock()
	a.list = append(a.list, one)
	a.mu.Unlock()
	signal(a.more)
}

// room waits until few enough wait to be acknowledged. Its error is ctx's, or says why they
// can't be.
func (a *acks) room(ctx context.Context) error {
	a.mu.Lock()
	if a.err != nil || len(a.list) < mostUnacknowledged {
		defer a.mu.Unlock()
		return a.err
	}
	if a.freed == nil {
		a.freed = make(chan struct{})
	}
	freed := a.freed
	a.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-freed:
		return nil
	}
}

// run acknowledges until close, or until it can't.
func (a *acks) run() {
	defer close(a.done)
	for range a.more {
		list, ending := a.take()
		if err := a.acknowledge(list); err != nil {
			a.fail(err)
			return
		}
		if ending {
			return
		}
	}
}

// take returns what waits, and whether it is the last.
func (a *acks) take() (list []acknowledged, ending bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list, a.list = a.list, nil
	if a.freed != nil {
		close(a.freed)
		a.freed = nil
	}
	return list, a.ending
}

// fail notes why it can't go on.
func (a *acks) fail(err error) {
	a.mu.Lock()
	a.err = err
	a.mu.Unlock()
	a.take() // who waits for room is told
	a.lost()
}

// acknowledge acknowledges entries, those that are refused after they were copied.
func (a *acks) acknowledge(list []acknowledged) error {
	ids := map[string][]string{}
	for i := range list {
		if one := &list[i]; one.refused != nil && a.config.DeadLetter != "" {
			if err := a.bury(one); err != nil {
				return fmt.Errorf("dead_letter %s: %w", a.config.DeadLetter, err)
			}
		} else {
			ids[one.key] = append(ids[one.key], one.id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := a.to.Pipelined(a.ctx, func(p redis.Pipeliner) error {
		for key, ids := range ids {
			p.XAck(a.ctx, key, a.config.Group, ids...)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	return nil
}

// bury copies an entry that is never published to where such are kept, and acknowledges it
// then: MULTI would acknowledge also what could not be copied.
func (a *acks) bury(one *acknowledged) error {
	values := []any{"eventsource.stream", one.key, "eventsource.id", one.id,
		"eventsource.reason", one.refused.Reason, "eventsource.detail", one.refused.Err.Error()}
	for _, field := range slices.Sorted(maps.Keys(one.entry.Values)) {
		values = append(values, field, one.entry.Values[field])
	}
	if err := a.to.XAdd(a.ctx, &redis.XAddArgs{Stream: a.config.DeadLetter, Values: values}).Err(); err != nil {
		return err
	}
	return a.to.XAck(a.ctx, one.key, a.config.Group, one.id).Err()
}

// close acknowledges what is left, and returns why that could not be done.
func (a *acks) close() error {
	a.mu.Lock()
	a.ending = true
	a.mu.Unlock()
	signal(a.more)
	<-a.done
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}
