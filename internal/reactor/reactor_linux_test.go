package reactor

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const long = 10 * time.Second

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pair returns a descriptor that was taken, and the connection's other side.
func pair() (int, *net.TCPConn) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	peer := must(net.Dial("tcp", l.Addr().String())).(*net.TCPConn)
	peer.SetDeadline(time.Now().Add(long))
	return must(Take(must(l.Accept()).(*net.TCPConn))), peer
}

// held returns a loop that holds the descriptor of a pair with token.
func held(t *testing.T, token uint64) (*Loop, int, *net.TCPConn) {
	fd, peer := pair()
	l := must(New())
	must(0, l.Add(fd, token))
	t.Cleanup(func() { l.Close(); Close(fd); peer.Close() })
	return l, fd, peer
}

// expect checks what one Wait tells.
func expect(t *testing.T, l *Loop, timeout time.Duration, want ...Event) {
	t.Helper()
	if got, err := l.Wait(nil, timeout); !slices.Equal(got, want) || err != nil {
		t.Errorf("%+v is told, not %+v: %v", got, want, err)
	}
}

// drained checks what there is to be dropped.
func drained(t *testing.T, fd, n int, closed bool) {
	t.Helper()
	if m, c := Read(fd, make([]byte, 64)); m != n || c != closed {
		t.Errorf("drained %d bytes, closed %v, not %d, %v", m, c, n, closed)
	}
}

func TestTakenConnectionStaysOpen(t *testing.T) {
	fd, peer := pair()
	defer peer.Close()
	if n, full, err := Write(fd, []byte("hello")); n != 5 || full || err != nil {
		t.Errorf("wrote %d, full %v: %v", n, full, err)
	}
	Finish(fd)
	if b, err := io.ReadAll(peer); string(b) != "hello" || err != nil {
		t.Errorf("the other side read %q: %v", b, err)
	}
}

func TestTokensTellOfWhatCame(t *testing.T) {
	const token = 7<<32 | 1<<31 | 5
	l, fd, peer := held(t, token)
	expect(t, l, 0)
	peer.Write([]byte("noise"))
	expect(t, l, long, Event{Token: token, Readable: true})
	drained(t, fd, 5, false)
	drained(t, fd, 0, false)
	peer.CloseWrite()
	expect(t, l, long, Event{Token: token, Readable: true, Closed: true})
	drained(t, fd, 0, true)
}

func TestResetIsTold(t *testing.T) {
	l, fd, peer := held(t, 1)
	peer.SetLinger(0)
	peer.Close()
	expect(t, l, long, Event{Token: 1, Readable: true, Closed: true})
	drained(t, fd, 0, true)
	if _, _, err := Write(fd, []byte("x")); err == nil {
		t.Error("a write after a reset does not fail")
	}
}

func TestWritableIsToldOnlyWhileAskedFor(t *testing.T) {
	l, fd, peer := held(t, 1)
	for full, err := false, error(nil); !full; {
		if _, full, err = Write(fd, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	l.Writable(fd, 2, true)
	go io.Copy(io.Discard, peer)
	expect(t, l, long, Event{Token: 2, Writable: true})
	l.Writable(fd, 1, false)
	expect(t, l, 0)
}

func TestWakeEndsThisWaitOrTheNext(t *testing.T) {
	l, _, _ := held(t, 1)
	time.AfterFunc(10*time.Millisecond, l.Wake)
	expect(t, l, -1)
	time.Sleep(20 * time.Millisecond) // a signal may have ended that wait
	l.Wake()
	expect(t, l, -1)
	for range 10 {
		begin := time.Now()
		if expect(t, l, 20*time.Millisecond); time.Since(begin) >= 20*time.Millisecond {
			return
		}
	}
	t.Error("one wake-up ends every wait")
}

func TestWhatHappensWhileNobodyWaitsWakesTheNextWait(t *testing.T) {
	l, fd, peer := held(t, 1)
	expect(t, l, 20*time.Millisecond) // the bell stays armed
	peer.Write([]byte("x"))
	time.Sleep(10 * time.Millisecond)
	expect(t, l, long, Event{Token: 1, Readable: true})
	drained(t, fd, 1, false)
	for range 100 {
		go peer.Write([]byte("x"))
		expect(t, l, long, Event{Token: 1, Readable: true})
		drained(t, fd, 1, false)
	}
}

func TestNobodyIsWokenWhileTheGoroutineIsAtWork(t *testing.T) {
	l, _, peer := held(t, 1)
	time.AfterFunc(10*time.Millisecond, func() { peer.Write([]byte("x")) })
	expect(t, l, long, Event{Token: 1, Readable: true})
	peer.Write([]byte("y"))
	time.Sleep(10 * time.Millisecond)
	must(0, l.bell.raw.Control(func(epoll uintptr) {
		if n := must(look(int(epoll), make([]unix.EpollEvent, 1))); n > 0 {
			t.Error("Go's own epoll set is told of what nobody waits for")
		}
	}))
}

func TestTimeoutsAreThoseOfEachWait(t *testing.T) {
	l, _, _ := held(t, 1)
	time.AfterFunc(10*time.Millisecond, l.Wake)
	expect(t, l, long)
	for _, timeout := range []time.Duration{200 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond} {
		begin := time.Now()
		expect(t, l, timeout)
		if took := time.Since(begin); took < timeout-2*time.Millisecond || took > timeout+long/2 {
			t.Errorf("a wait of %v took %v", timeout, took)
		}
	}
}

func TestAnInnerLoopIsToldOfByTheOuter(t *testing.T) {
	outer := must(New())
	defer outer.Close()
	inner := must(outer.Inner(9))
	defer inner.Close()
	fd, peer := pair()
	defer Close(fd)
	defer peer.Close()
	must(0, inner.Add(fd, 1))
	expect(t, outer, 0)
	peer.Write([]byte("x"))
	expect(t, outer, long, Event{Token: 9, Readable: true})
	expect(t, inner, 0, Event{Token: 1, Readable: true})
	drained(t, fd, 1, false)
	expect(t, inner, 0)
	expect(t, outer, 0)
}

func TestAnAcceptedConnectionHasItsLimits(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0")).(*net.TCPListener)
	defer l.Close()
	accept := must(Listen(l, time.Second))
	defer accept.Close()
	peer := must(net.Dial("tcp", l.Addr().String()))
	defer peer.Close()
	peer.Write([]byte("x"))
	var fds [1]int
	var peers [1]netip.AddrPort
	must(accept.Accept(fds[:], peers[:]))
	defer Close(fds[0])
	if got := peers[0].String(); got != peer.LocalAddr().String() {
		t.Errorf("the other side is %s, not %s", got, peer.LocalAddr())
	}
	must(0, LimitUnsent(fds[0], 12345))
	must(0, LimitSilence(fds[0], 67*time.Second))
	for name, want := range map[int]int{unix.TCP_NODELAY: 1, unix.TCP_NOTSENT_LOWAT: 12345, unix.TCP_USER_TIMEOUT: 67_000} {
		if got := must(unix.GetsockoptInt(fds[0], unix.IPPROTO_TCP, name)); got != want {
			t.Errorf("option %d is %d, not %d", name, got, want)
		}
	}
}
