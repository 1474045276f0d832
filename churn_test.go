package eventsource_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// comeAndGo connects, reads up to where stop says, and resets the connection.
func comeAndGo(addr, target string, head bool) error {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	conn := c.(*net.TCPConn)
	defer conn.Close()
	conn.SetLinger(0)
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", target); err != nil {
		return err
	}
	if !head {
		return nil // gone before the server has found its answer
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", response.Status)
	}
	_, err = response.Body.Read(make([]byte, 1))
	return err
}

// heap returns the bytes that are in use once what is garbage is gone.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestTenThousandConnectsAndResetsLeaveNothingBehind(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{})
		rush := func(visits int) {
			t.Helper()
			const together = 32
			var visitors sync.WaitGroup
			for i := range together {
				visitors.Go(func() {
					for v := i; v < visits; v += together {
						// Channels of their own, shared ones, wildcards and lists; one in
						// eight is gone before it has read anything.
						target := []string{fmt.Sprintf("/own.%d", v), "/shared", "/own.*", fmt.Sprintf("/shared,own.%d,list.%d", v, v)}[v%4]
						if err := comeAndGo(n.addr, target, v%8 != 3); err != nil {
							t.Errorf("visit %d: %v", v, err)
							return
						}
					}
				})
			}
			// What is published meanwhile reaches some in the middle of their leaving.
			over := make(chan struct{})
			go func() { visitors.Wait(); close(over) }()
			for publishing := true; publishing; {
				select {
				case <-over:
					publishing = false
				default:
					n.post(t, "/shared?ttl=1", "text/plain", strings.Repeat("x", 1000))
				}
			}
			if a := n.do(t, http.MethodDelete, "/all", nil); a.status != http.StatusOK {
				t.Fatalf("DELETE: %d %s", a.status, a.body)
			}
			eventually(t, "no consumer is left", func() bool {
				return n.do(t, http.MethodHead, "/all", nil).header.Get("X-Consumer-Count") == "0"
			})
			eventually(t, "no channel is left", func() bool {
				channels, _ := eventsource.Held(n.Server)
				return channels == 0
			})
			n.client.CloseIdleConnections()
		}
		rush(1000) // what is made once is made now
		goroutines, before := runtime.NumGoroutine(), heap()
		descriptors := len(openDescriptors())
		rush(10_000)
		// The connection that published may still be on its way out.
		eventually(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= goroutines })
		if descriptors > 0 {
			eventually(t, "the descriptors are closed", func() bool { return len(openDescriptors()) <= descriptors })
		}
		grown := int64(0)
		eventually(t, "the memory is free again", func() bool {
			grown = heap() - before
			return grown < 1<<20 // 100 bytes a visit
		})
		if _, held := eventsource.Held(n.Server); held != 0 {
			t.Errorf("%d bytes are still counted as held", held)
		}
		t.Logf("%d bytes more", grown)
	})
}
