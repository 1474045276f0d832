package eventsource

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An engine is a server whose one writer makes a pass only when told.
type engine struct {
	*testing.T
	s *Server
	r *registry
	w *writer
	p pass
}

func newEngine(t *testing.T, h History, portable bool) *engine {
	t.Helper()
	s, err := Open(&Settings{History: h})
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{r: s.registry, portable: portable, signal: func() {}, done: make(chan struct{})}
	close(w.done)
	s.registry.writers = append(s.registry.writers, w)
	e := &engine{T: t, s: s, r: s.registry, w: w}
	t.Cleanup(func() {
		s.registry.close()
		s.Stop()
	})
	return e
}

func (e *engine) join(names, id string, history int) *consumer {
	e.Helper()
	sub := subscription{names: strings.Split(names, ","), id: id, history: history, portable: e.w.portable, raw: true}
	c, p := e.r.join(sub, e.w, time.Second)
	if p != nil {
		e.Fatal(p)
	}
	c.awaited = true
	return c
}

func (e *engine) publish(channels string, events ...Event) []string {
	e.Helper()
	receipt, err := e.s.Publish(e.Context(), channels, events...)
	if err != nil {
		e.Fatal(err)
	}
	return receipt.IDs
}

// serve has the consumers get everything up to the mark.
func (e *engine) serve(consumers ...*consumer) {
	e.Helper()
	e.w.take(&e.p)
	if e.w.portable {
		for range e.p.sides {
			lowest := uint64(nobody)
			for _, c := range consumers {
				if pos := c.pos.Load(); pos < e.p.mark {
					lowest = min(lowest, pos)
				}
			}
			e.p.lowest = append(e.p.lowest, lowest)
		}
	}
	for _, c := range consumers {
		e.expect(c)
		c.pos.Store(e.p.mark)
		if c.awaited && !e.w.portable {
			c.awaited = false
			e.p.turned = append(e.p.turned, c)
		}
	}
}

// expect reads what a consumer is to get, and checks it where data is given.
func (e *engine) expect(c *consumer, data ...string) {
	e.Helper()
	frames, _, whole := c.collect(nil, e.r.mark.Load(), batchBytes)
	if !whole {
		e.Error("a consumer would be cut off as too slow")
	}
	if data == nil {
		return
	}
	var got []string
	for _, f := range frames {
		got = append(got, f.data())
	}
	if strings.Join(got, " ") != strings.TrimSpace(strings.Join(data, " ")) {
		e.Errorf("a consumer gets %q, not %q", got, data)
	}
}

// entries returns how many entries a log has, and how many of them in history.
func (e *engine) entries(name string) (n, kept int) {
	e.r.mu.Lock()
	defer e.r.mu.Unlock()
	ch := e.r.all
	if name != globalName {
		ch = e.r.findLocked(name)
	}
	if ch == nil {
		return 0, 0
	}
	return ch.n, ch.kept
}

func onEachWriter(t *testing.T, test func(t *testing.T, portable bool)) {
	for name, portable := range map[string]bool{"reactor": false, "portable": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, portable) })
		})
	}
}

// What came between a consumer's join and its writer's next pass was once
// dropped beyond 4 MiB, and the consumer cut off as slow.
func TestABurstBeforeTheFirstPassReachesWhoHasJoined(t *testing.T) {
	onEachWriter(t, func(t *testing.T, portable bool) {
		e := newEngine(t, History{Events: 2}, portable)
		c := e.join("a", "", 0)
		for range 10 {
			e.publish("a", Event{Data: strings.Repeat("x", 1<<20-100)})
		}
		e.serve(c)
	})
}

// A log once kept for ever what a consumer had not got, after it had: nothing
// looked at the log until its next event.
func TestTheOverflowGoesWhenTheConsumerHasCaughtUp(t *testing.T) {
	onEachWriter(t, func(t *testing.T, portable bool) {
		e := newEngine(t, History{Events: 1, Age: -1}, portable)
		c := e.join("a", "", 0)
		for range 10 {
			e.publish("a", Event{Data: "x"})
		}
		e.serve(c)
		e.w.take(&e.p)
		e.w.take(&e.p)
		time.Sleep(3 * time.Second)
		if n, _ := e.entries("a"); n != 1 {
			t.Errorf("%d entries are left, not 1", n)
		}
	})
}

// So did it with what left the history later.
func TestWhatExpiresIsNotKeptForWhoHasIt(t *testing.T) {
	onEachWriter(t, func(t *testing.T, portable bool) {
		e := newEngine(t, History{Age: time.Minute}, portable)
		c := e.join("a", "", 0)
		e.publish("a", Event{Data: "x"})
		e.serve(c)
		e.w.take(&e.p)
		time.Sleep(2 * time.Minute)
		if n, kept := e.entries("a"); n != 0 || kept != 0 {
			t.Errorf("%d entries are left, %d in the history", n, kept)
		}
	})
}

// The side of "all" stays when its last consumer leaves; who joined it then once
// had everything kept that was published meanwhile.
func TestWhatCameBeforeAConsumerIsNotUnoffered(t *testing.T) {
	onEachWriter(t, func(t *testing.T, portable bool) {
		e := newEngine(t, History{Age: time.Minute}, portable)
		c := e.join("a", "", 0)
		e.serve(c)
		if portable {
			e.r.depart(c, endGone)
		} else {
			e.p.left = append(e.p.left, departure{c, endGone})
		}
		e.w.take(&e.p)
		e.publish(globalName, Event{Data: "x"})
		e.serve(e.join("b", "", 0))
		e.w.take(&e.p)
		time.Sleep(2 * time.Minute)
		if n, _ := e.entries(globalName); n != 0 {
			t.Errorf("%d entries are left", n)
		}
	})
}

// A DELETE once made an event that had expired before a consumer came one that
// it was still to get.
func TestADeleteRevivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, History{}, false)
		e.publish("a", Event{Data: "1"})
		e.publish("b", Event{Data: "2", TTL: -1})
		time.Sleep(time.Millisecond)
		c := e.join("a,b", "", 9)
		e.expect(c, "1")
		time.Sleep(time.Millisecond)
		e.s.Close("b")
		e.expect(c, "1")
	})
}

// What a channel's own log kept no longer, a DELETE of it once left to the
// wildcards.
func TestADeleteReachesTheWildcardsThatKeepMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, whole := range []bool{false, true} {
			e := newEngine(t, History{}, false)
			e.publish("a.b", Event{Data: "1"})
			e.r.mu.Lock()
			ch := e.r.named["a.b"]
			ch.mu.Lock()
			e.r.unkeepLocked(ch) // as for the budget
			e.r.trimLocked(ch)
			ch.mu.Unlock()
			e.r.classLocked(ch)
			if whole {
				e.r.tidyLocked(ch)
			}
			e.r.mu.Unlock()
			e.s.Close("a.b")
			for _, name := range []string{"a.*", "*"} {
				if _, kept := e.entries(name); kept != 0 {
					t.Errorf("%s keeps %d events", name, kept)
				}
			}
		}
	})
}

// A channel with a far and many near expiries was once entered into the wheel
// for each of them.
func TestTheWheelHoldsAChannelFewTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, History{Age: 24 * time.Hour}, false)
		e.publish("a", Event{Data: "x"})
		for range 2000 {
			e.publish("a", Event{Data: "x", TTL: time.Millisecond})
			time.Sleep(2 * time.Second)
		}
		e.r.mu.Lock()
		defer e.r.mu.Unlock()
		if n := e.r.wheel.count; n > 2*wheelSlots {
			t.Errorf("the wheel has %d entries for one channel and its wildcard", n)
		}
	})
}

func TestTheLongestSpanFitsTheWheel(t *testing.T) {
	e := newEngine(t, History{Age: -1}, false)
	e.publish("a", Event{Data: "x", TTL: maxSpan})
	if _, kept := e.entries("a"); kept != 1 {
		t.Errorf("%d events are kept", kept)
	}
}

// An eager backend delivers what others publish while it starts.
type eager struct {
	memory
	delivered chan struct{}
}

func (b *eager) Start(node Node) (Order, error) {
	b.delivered = make(chan struct{})
	go func() {
		defer close(b.delivered)
		node.Deliver(&Record{Seq: 8, Time: time.Now(), Channels: []string{"a"}, Events: []Event{{Data: "x"}}})
	}()
	time.Sleep(time.Second)
	return Order{Epoch: Epoch{Number: 5}, Seq: 7}, nil
}

// What a backend delivered before the node knew where the order stands once got
// an id of another life, and the mark fell back behind it.
func TestDeliveriesWaitForTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &eager{}
		s, err := Open(&Settings{Backend: b})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Stop()
		<-b.delivered
		if mark := s.registry.mark.Load(); mark != 8 {
			t.Errorf("the mark is %d, not 8", mark)
		}
		if p, _ := parsePosition(s.registry.named["a"].at(0).id()); p.epoch != 5 {
			t.Errorf("the epoch is %d, not 5", p.epoch)
		}
	})
}
