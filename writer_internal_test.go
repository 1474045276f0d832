package eventsource

import (
	"testing"
	"time"
)

// idleNotifier opens a server with a writer of portable consumers that makes no pass
// by itself.
func idleNotifier(t *testing.T, settings *Settings) (*Server, *writer) {
	t.Helper()
	s, err := Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	w := &writer{r: s.registry, portable: true, signal: func() {}, done: make(chan struct{})}
	close(w.done)
	s.registry.writers = append(s.registry.writers, w)
	return s, w
}

// A consumer that joined while the notifier made a pass was once forgotten: the
// pass had not seen it, and let go of what it was to replay.
func TestWhoJoinsDuringAPassIsWaitedFor(t *testing.T) {
	s, w := idleNotifier(t, &Settings{History: History{Events: 1}})
	r := s.registry
	join := func(id string) *consumer {
		t.Helper()
		c, p := r.join(subscription{names: []string{"a"}, id: id, portable: true, raw: true}, w, time.Second)
		if p != nil {
			t.Fatal(p)
		}
		return c
	}
	publish := func() string {
		t.Helper()
		receipt, err := s.Publish(t.Context(), "a", Event{Data: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return receipt.IDs[0]
	}
	var p pass
	first := join("")
	w.take(&p)
	begin := publish()
	publish()
	w.take(&p)
	for range p.sides { // the notifier looks at its members, who have all
		first.pos.Store(p.mark)
		p.lowest = append(p.lowest, nobody)
	}
	second := join(begin)
	if second.gap != "" {
		t.Fatal("a gap was told of:", second.gap)
	}
	publish() // what second is to replay leaves the history
	w.take(&p)
	frames, _, whole := second.collect(nil, r.mark.Load(), batchBytes)
	if !whole || len(frames) != 2 {
		t.Errorf("%d events are there for who joined, whole %v, not 2", len(frames), whole)
	}
	r.depart(first, endGone)
	r.depart(second, endGone)
	w.take(&p)
	if n := r.connected(); n != 0 {
		t.Errorf("%d consumers are left", n)
	}
}

// A machine that stood still for longer than the wheel looks ahead once left the
// channels that were due meanwhile out of the wheel for ever.
func TestWhatExpiredWhileTheMachineStoodStillGoes(t *testing.T) {
	s, err := Open(&Settings{History: History{Age: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if _, err := s.Publish(t.Context(), "a.b", Event{Data: "x"}); err != nil {
		t.Fatal(err)
	}
	r := s.registry
	r.mu.Lock()
	r.began = r.began.Add(-(wheelSlots + 100) * time.Second)
	r.mu.Unlock()
	r.turn()
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.named) + len(r.wild); n != 0 || r.budget.held != 0 {
		t.Errorf("%d channels and %d bytes are left", n, r.budget.held)
	}
}
