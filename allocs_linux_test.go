//go:build !race

package eventsource_test

import (
	"bytes"
	"net"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/railsmechanic/eventsource"
)

// A publish makes the frame, its text, and the texts of the receipt.
func TestAPublishAllocatesThreeTimes(t *testing.T) {
	s := openWith(t, nil)
	e := eventsource.Event{Data: strings.Repeat("x", 100)}
	publish := func() {
		if _, err := s.Publish(t.Context(), "news", e); err != nil {
			t.Fatal(err)
		}
	}
	for range 1000 { // the log has its size then
		publish()
	}
	if n := testing.AllocsPerRun(1000, publish); n > 3 {
		t.Errorf("it allocates %v times", n)
	}
}

// A delivery allocates nothing, whatever a publish does.
func TestADeliveryAllocatesNothing(t *testing.T) {
	const consumers, events = 100, 500
	s := openWith(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	fds := make([]int, consumers)
	for i := range fds {
		if fds[i], err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			defer unix.Close(fds[i])
			err = unix.Connect(fds[i], &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}})
		}
		if err == nil {
			_, err = unix.Write(fds[i], []byte("GET /news HTTP/1.1\r\nHost: x\r\n\r\n"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the consumers", func() bool { return s.ConsumerCountAll() == consumers })
	e := eventsource.Event{Data: strings.Repeat("x", 100)}
	var buf [16 << 10]byte
	round := func() {
		for range 10 {
			if _, err := s.Publish(t.Context(), "news", e); err != nil {
				t.Fatal(err)
			}
		}
		for _, fd := range fds {
			for got := 0; got < 10; {
				n, err := unix.Read(fd, buf[:])
				if err != nil {
					t.Fatal(err)
				}
				got += bytes.Count(buf[:n], []byte("data: "))
			}
		}
	}
	var stats [2]runtime.MemStats
	round()
	runtime.ReadMemStats(&stats[0])
	for range events / 10 {
		round()
	}
	runtime.ReadMemStats(&stats[1])
	// Three for a publish, and what the runtime does on its own.
	if n := float64(stats[1].Mallocs-stats[0].Mallocs) / events; n > 6 {
		t.Errorf("an event to %d consumers allocates %.1f times", consumers, n)
	}
}
