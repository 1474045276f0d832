package eventsource

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/railsmechanic/eventsource/internal/reactor"
)

// An event that was told of a descriptor before its place was used again does
// nothing to who has the place now.
func TestALateEventIsNobodyElses(t *testing.T) {
	s, err := Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	w, err := s.newReactorWriter() // whose loop this test is
	if err != nil {
		t.Fatal(err)
	}
	close(w.done)
	s.registry.writers = append(s.registry.writers, w.writer)
	s.writers = append(s.writers, w)
	s.reactorsOnce.Do(func() {})
	socket := func() int {
		t.Helper()
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(pair[1]) })
		return pair[0]
	}
	w.tick()

	join := func() *consumer {
		t.Helper()
		sub := subscription{names: []string{"a"}, greet: true}
		sub.conn.fd = int32(socket())
		c, p := s.registry.join(sub, w.writer, time.Second)
		if p != nil {
			t.Fatal(p)
		}
		w.serve()
		return c
	}
	first := join()
	late := w.token(first)
	w.disconnect(first, endGone)
	second := join()
	if uint32(late) != second.slot {
		t.Fatal("the slot is not used again")
	}
	if w.handle(reactor.Event{Token: late, Closed: true}); second.fd < 0 {
		t.Error("a consumer is gone by an event of another")
	}
	if w.handle(reactor.Event{Token: w.token(second), Closed: true}); second.fd >= 0 {
		t.Error("a consumer that has gone is kept")
	}

	arrive := func() uint64 {
		t.Helper()
		w.adopt(arrival{client: client{front: &front{s: s}, fd: int32(socket())}})
		w.serve()
		place := uint32(len(w.clients.all) - 1)
		return uint64(w.clients.all[place].generation)<<32 | uint64(place)
	}
	late = arrive()
	reactor.Close(w.release(uint32(late)))
	now := arrive()
	if uint32(late) != uint32(now) {
		t.Fatal("the place is not used again")
	}
	if w.hear(reactor.Event{Token: late, Closed: true}); w.clients.all[uint32(now)].front == nil {
		t.Error("a client is gone by an event of another")
	}
	if w.hear(reactor.Event{Token: now, Closed: true}); w.clients.all[uint32(now)].front != nil {
		t.Error("a client that has gone is kept")
	}
	w.dismiss()
	w.loop.Close()
}
