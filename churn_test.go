package eventsource_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/check"
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
		descriptors := len(check.Descriptors())
		rush(10_000)
		// The connection that published may still be on its way out.
		eventually(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= goroutines })
		if descriptors > 0 {
			eventually(t, "the descriptors are closed", func() bool { return len(check.Descriptors()) <= descriptors })
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

// stormTime is how long connections come and go; EVENTSOURCE_TEST_STORM sets
// another time.
func stormTime(t *testing.T) time.Duration {
	text := os.Getenv("EVENTSOURCE_TEST_STORM")
	if text == "" {
		return 2 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Connections come and go as fast as they can, so that their descriptors and
// places are used again at once: as consumers of a channel that nobody else has,
// as publishers, as one after the other, as what is cut off in the middle. Each
// gets its own events and answers, all of them, and nobody else's.
func TestAReusedDescriptorIsNobodyElses(t *testing.T) {
	n := newNode(t, nil)
	var workers sync.WaitGroup
	var visits atomic.Int64
	over := time.Now().Add(stormTime(t))
	for w := range 16 {
		workers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 7))
			for i := 0; time.Now().Before(over) && !t.Failed(); i++ {
				if err := visit(n.addr, fmt.Sprintf("own.%d.%d", w, i), r); err != nil {
					t.Errorf("worker %d, visit %d: %v", w, i, err)
				}
				visits.Add(1)
			}
		})
	}
	workers.Wait()
	eventually(t, "no consumer is left", func() bool { return n.ConsumerCountAll() == 0 })
	t.Logf("%d visits", visits.Load())
}

// visit follows a channel and publishes to it, from connections that end in
// different ways, and checks what comes over each.
func visit(addr, channel string, r *rand.Rand) error {
	dial := func() (*net.TCPConn, *bufio.Reader, error) {
		c, err := net.DialTimeout("tcp", addr, 10*time.Second)
		if err != nil {
			return nil, nil, err
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		return c.(*net.TCPConn), bufio.NewReader(c), nil
	}
	end := func(c *net.TCPConn) {
		if r.IntN(2) == 0 {
			c.SetLinger(0)
		}
		c.Close()
	}
	publisher, answers, err := dial()
	if err != nil {
		return err
	}
	defer end(publisher)
	publish := func(c *net.TCPConn, answers *bufio.Reader, data string) error {
		fmt.Fprintf(c, "POST /%s HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", channel, len(data), data)
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			return fmt.Errorf("publishing: %w", err)
		}
		var got receipt
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || len(got.Channels) != 1 || got.Channels[0] != channel {
			return fmt.Errorf("the receipt is %+v, %v", got, err)
		}
		io.Copy(io.Discard, resp.Body)
		return nil
	}
	consumer, stream, err := dial()
	if err != nil {
		return err
	}
	defer end(consumer)
	if r.IntN(3) == 0 { // a publisher that becomes a consumer
		if err := publish(consumer, stream, "before"); err != nil {
			return err
		}
	}
	fmt.Fprintf(consumer, "GET /%s HTTP/1.1\r\nHost: x\r\n\r\n", channel)
	resp, err := http.ReadResponse(stream, nil)
	if err != nil {
		return fmt.Errorf("following: %w", err)
	}
	lines := bufio.NewScanner(resp.Body)
	if r.IntN(8) == 0 {
		return nil // without having read what the stream begins with
	}
	for i := range r.IntN(4) {
		want := fmt.Sprintf("%s-%d", channel, i)
		if err := publish(publisher, answers, want); err != nil {
			return err
		}
		data, ok := "", false
		for !ok && lines.Scan() {
			data, ok = strings.CutPrefix(lines.Text(), "data: ")
		}
		if data != want {
			return fmt.Errorf("%q came, not %q: %v", data, want, lines.Err())
		}
	}
	return nil
}
