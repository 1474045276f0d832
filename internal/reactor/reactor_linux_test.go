package reactor

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"
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
