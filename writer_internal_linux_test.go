package eventsource

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/railsmechanic/eventsource/internal/reactor"
)

// idleWriter returns a writer whose loop the test is, and a func that opens a
// connection to it: the writer's end, and the other.
func idleWriter(t *testing.T) (*reactorWriter, func() (int, *os.File)) {
	t.Helper()
	s, err := Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.newReactorWriter()
	if err != nil {
		t.Fatal(err)
	}
	close(w.done)
	s.registry.writers = append(s.registry.writers, w.writer)
	s.writers = append(s.writers, w)
	s.reactorsOnce.Do(func() {})
	w.tick()
	t.Cleanup(func() {
		for _, s := range w.slots {
			if s.c != nil {
				w.disconnect(s.c, endGone)
			}
		}
		w.take(&w.pass)
		w.dismiss()
		w.loop.Close()
		s.Stop()
	})
	return w, func() (int, *os.File) {
		t.Helper()
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		peer := os.NewFile(uintptr(pair[1]), "peer")
		peer.SetDeadline(time.Now().Add(10 * time.Second))
		t.Cleanup(func() { peer.Close() })
		return pair[0], peer
	}
}

// arrives makes a client of a connection that has sent something, and returns the
// token of its events.
func (w *reactorWriter) arrives(fd int, request string) uint64 {
	w.adopt(arrival{client: client{front: &front{s: w.s}, fd: int32(fd)}, request: []byte(request)})
	w.welcome()
	place := uint32(len(w.clients.all) - 1)
	return uint64(w.clients.all[place].generation)<<32 | uint64(place)
}

// An event that was told of a descriptor before its place was used again does
// nothing to who has the place now.
func TestALateEventIsNobodyElses(t *testing.T) {
	w, connect := idleWriter(t)
	join := func() *consumer {
		t.Helper()
		sub := subscription{names: []string{"a"}, greet: true}
		sub.fd, _ = connect()
		c, p := w.s.registry.join(sub, w.writer, time.Second)
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
		fd, _ := connect()
		return w.arrives(fd, "")
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
}

const (
	somePublish   = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx"
	someSubscribe = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
)

// An answer that is due is sent before anything else becomes of its connection.
func TestAnAnswerThatIsDueComesFirst(t *testing.T) {
	w, connect := idleWriter(t)
	read := func(peer *os.File, want string) {
		t.Helper()
		b := make([]byte, 4096)
		if n, err := peer.Read(b); !strings.HasPrefix(string(b[:n]), want) {
			t.Errorf("read %q, not %q: %v", b[:n], want, err)
		}
	}

	fd, peer := connect()
	token := w.arrives(fd, somePublish)
	peer.WriteString(someSubscribe)
	w.hear(reactor.Event{Token: token, Readable: true})
	read(peer, "HTTP/1.1 201 ")
	w.serve()
	read(peer, "HTTP/1.1 200 ")

	fd, peer = connect()
	token = w.arrives(fd, somePublish)
	unix.Shutdown(fd, unix.SHUT_RD) // as if the other side had closed its half
	w.hear(reactor.Event{Token: token, Readable: true, Closed: true})
	read(peer, "HTTP/1.1 201 ")

	fd, peer = connect()
	w.arrives(fd, somePublish)
	w.serve()
	read(peer, "HTTP/1.1 201 ")
}

// Who goes before its answer could be sent takes nobody else's place with it.
func TestAnAnswerThatCanNotBeSentGivesUpItsClientOnce(t *testing.T) {
	w, connect := idleWriter(t)
	for _, then := range []string{someSubscribe, somePublish, ""} {
		fd, peer := connect()
		token := w.arrives(fd, somePublish)
		peer.WriteString(then)
		unix.Shutdown(fd, unix.SHUT_WR) // the answer fails
		w.hear(reactor.Event{Token: token, Readable: then != "", Closed: then == ""})
		w.reply()
		free := slices.Clone(w.clients.free)
		slices.Sort(free)
		if len(slices.Compact(free)) != len(w.clients.free) || len(free) != len(w.clients.all) {
			t.Errorf("%.4q: of %d places, free are %v", then, len(w.clients.all), w.clients.free)
		}
	}
}

// A client that says nothing is closed: one that never has after the server's
// timeout, one that has published after idleTimeout.
func TestSilentClientsAreClosed(t *testing.T) {
	w, connect := idleWriter(t)
	fd, _ := connect()
	silent := uint32(w.arrives(fd, ""))
	fd, _ = connect()
	idle := uint32(w.arrives(fd, somePublish))
	w.reply()
	begin := w.now
	for _, tt := range []struct {
		after        time.Duration
		silent, idle bool
	}{
		{w.s.settings.Timeout - 1, true, true},
		{w.s.settings.Timeout, false, true},
		{idleTimeout - 1, false, true},
		{idleTimeout, false, false},
	} {
		w.now = begin + int64(tt.after)
		for range w.clients.all {
			w.sweep()
		}
		if got := w.clients.all[silent].front != nil; got != tt.silent {
			t.Errorf("after %v, who never said anything is there: %v", tt.after, got)
		}
		if got := w.clients.all[idle].front != nil; got != tt.idle {
			t.Errorf("after %v, who has published is there: %v", tt.after, got)
		}
	}
}

// Who publishes to few hears back when they have the event; who publishes to many,
// before. Here the publisher shares the first consumer's connection, which shows.
func TestAnswersComeAfterFewDeliveriesAndBeforeMany(t *testing.T) {
	for consumers, after := range map[int]bool{offersTogether: true, offersTogether + 1: false} {
		w, connect := idleWriter(t)
		first, peer := connect()
		for fd := first; consumers > 0; consumers-- {
			sub := subscription{names: []string{"a"}, greet: true, fd: fd}
			if _, p := w.s.registry.join(sub, w.writer, time.Second); p != nil {
				t.Fatal(p)
			}
			if consumers > 1 {
				fd, _ = connect()
			}
		}
		w.serve()
		shared, err := unix.FcntlInt(uintptr(first), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.arrives(shared, somePublish)
		w.serve()
		b := make([]byte, 8192)
		n, err := peer.Read(b)
		answer, event := strings.Index(string(b[:n]), " 201 "), strings.Index(string(b[:n]), "data: x")
		if answer < 0 || event < 0 || (answer > event) != after {
			t.Errorf("the answer is at %d, the event at %d, which is to come first: %v; %v", answer, event, after, err)
		}
	}
}
