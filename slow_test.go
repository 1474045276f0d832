package eventsource_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// slowed runs one consumer of a path that does not read while so many events of a
// size are published, beside others that do, and returns all of them once the
// first has read on; it is the first of them.
func (st *storm) slowed(path string, events, size int) []*follower {
	t := st.t
	t.Helper()
	hold := make(chan struct{})
	followers := []*follower{{st: st, path: path, hold: hold},
		{st: st, path: path}, {st: st, path: path}, {st: st, path: "*"}}
	to := []string{"a", "b", "a,b", "all"}
	if path == "a" { // served with the bytes that others of the channel get
		to = []string{"a", "a", "all"}
	}
	var following sync.WaitGroup
	for i, f := range followers {
		following.Go(func() {
			if err := f.run(); err != nil {
				t.Errorf("follower %d: %v", i, err)
			}
		})
	}
	eventually(t, "all consumers are connected", func() bool { return st.ConsumerCountAll() == len(followers) })
	for n := range events {
		began := time.Now()
		data := fmt.Sprintf("%d %s", n, strings.Repeat("x", size+n%777))
		if err := st.publish(to[n%len(to)], "", data); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > slowTimeout/2 {
			t.Errorf("a publish took %v: it has waited for a consumer", took)
		}
	}
	if err := st.publish("all", "", lastWords); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the others have left", func() bool { return st.ConsumerCountAll() <= 1 })
	close(hold)
	following.Wait()
	slices.Sort(st.order)
	return followers
}

// slowTimeout is how long who does not read is given in these tests.
const slowTimeout = 20 * time.Second

func TestAConsumerWhoseSocketIsFullGetsTheRestOnceItReads(t *testing.T) {
	for _, history := range []int{4, 10_000} {
		onEach(t, paths, func(t *testing.T, path servingPath) {
			for _, follows := range []string{"a", "a,b"} {
				st := path.storm(t, &eventsource.Settings{Timeout: slowTimeout, History: eventsource.History{Events: history}})
				// 3.5 MB: beyond what a socket with a small window takes at once, within
				// what a channel keeps for who waits.
				st.checkWhole(st.slowed(follows, 350, 10_000))
				if n := st.Stats().Disconnects["slow"]; n != 0 {
					t.Errorf("%d consumers were cut off", n)
				}
			}
		})
	}
}

func TestAConsumerThatFallsBehindWhatIsKeptIsCutOffAndTold(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		st := path.storm(t, &eventsource.Settings{Timeout: slowTimeout, History: eventsource.History{Events: 4}})
		followers := st.slowed("a,b", 1500, 20_000) // 30 MB
		st.checkTold(followers[:1])
		st.checkWhole(followers[1:])
		if n := st.Stats().Disconnects["slow"]; n != 1 {
			t.Errorf("%d consumers were cut off for being slow, not 1", n)
		}
	})
}

func TestAConsumerThatMakesNoProgressIsCutOffAndCounted(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Timeout: 500 * time.Millisecond,
			History: eventsource.History{Events: 10_000, Bytes: 256 << 20}})
		fill(t, n)
		conn := stalled(t, n, "/filler?history=10000")
		defer conn.Close()
		eventually(t, "it has been counted as slow", func() bool { return n.Stats().Disconnects["slow"] == 1 })
		if got := n.ConsumerCountAll(); got != 0 {
			t.Errorf("%d consumers are left", got)
		}
	})
}

// fill publishes more than a socket takes.
func fill(t *testing.T, n *node) {
	t.Helper()
	for range 1000 {
		if _, err := n.Publish(t.Context(), "filler", eventsource.Event{Data: strings.Repeat("x", 16<<10)}); err != nil {
			t.Fatal(err)
		}
	}
}

// stalled follows path and reads nothing but the response's head. It returns
// when the socket is full.
func stalled(t *testing.T, n *node, path string) net.Conn {
	t.Helper()
	st := &storm{t: t, node: n, ctx: t.Context()}
	f := &follower{st: st, hold: make(chan struct{})}
	dialer := net.Dialer{Control: f.control}
	conn, err := dialer.DialContext(t.Context(), "tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	slow, sent := n.Stats().Disconnects["slow"], n.Stats().Sent
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	buf := make([]byte, 12)
	if _, err := conn.Read(buf); err != nil || !bytes.Equal(buf, []byte("HTTP/1.1 200")) {
		t.Fatalf("it was answered %q: %v", buf, err)
	}
	same := 0
	eventually(t, "its socket is full", func() bool {
		now := n.Stats().Sent
		if same++; now != sent || now == 0 && same < 100 { // the portable path counts what it has wholly written
			sent, same = now, 0
		}
		return same > 20 || n.Stats().Disconnects["slow"] > slow
	})
	return conn
}

// What the log of one channel kept for a full socket was once taken from the
// history of all others.
func TestFullSocketsCostNoOtherChannelItsHistory(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Timeout: time.Minute, History: eventsource.History{Events: 50, Bytes: 8 << 20}})
		for range 10 {
			n.post(t, "/calm", "text/plain", "calm")
		}
		for i := range 4 {
			channel := fmt.Sprintf("full.%d", i)
			f := &follower{hold: make(chan struct{})}
			dialer := net.Dialer{Control: f.control}
			conn, err := dialer.DialContext(t.Context(), "tcp", n.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: x\r\n\r\n", channel)
			eventually(t, "it is connected", func() bool { return n.ConsumerCount(channel) == 1 })
			for range 400 {
				if _, err := n.Publish(t.Context(), channel, eventsource.Event{Data: strings.Repeat("x", 16<<10)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if held := n.Stats().HistoryBytes; held > 8<<20 {
			t.Errorf("%d bytes are held as history", held)
		}
		s := n.follow(t, "/calm?history=100")
		n.post(t, "/calm", "text/plain", "last")
		for range 10 {
			s.expect("calm")
		}
		s.expect("last")
	})
}

// A crowd is consumers of one channel that each say when they have an event.
type crowd struct {
	took []time.Duration // of the last event, by consumer
	got  sync.WaitGroup
	at   atomic.Pointer[time.Time] // when the last event was published
	end  sync.WaitGroup
}

// crowd connects so many consumers to a channel.
func (n *node) crowd(t *testing.T, channel string, size int) *crowd {
	t.Helper()
	c := &crowd{took: make([]time.Duration, size)}
	for i := range size {
		conn, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: x\r\n\r\n", channel)
		c.end.Go(func() {
			defer conn.Close()
			lines := bufio.NewReaderSize(conn, 512)
			for {
				line, err := lines.ReadSlice('\n')
				switch {
				case err != nil:
					return
				case bytes.HasPrefix(line, []byte("data: quit")):
					return
				case bytes.HasPrefix(line, []byte("data: ")):
					c.took[i] = time.Since(*c.at.Load())
					c.got.Done()
				}
			}
		})
	}
	eventually(t, "the crowd is there", func() bool { return n.ConsumerCount(channel) == size })
	return c
}

// publish publishes an event and returns the 99th percentile of the time until a
// consumer of the crowd has it.
func (c *crowd) publish(t *testing.T, n *node, channel string) time.Duration {
	t.Helper()
	c.got.Add(len(c.took))
	now := time.Now()
	c.at.Store(&now)
	if _, err := n.Publish(t.Context(), channel, eventsource.Event{Data: strings.Repeat("x", 100)}); err != nil {
		t.Fatal(err)
	}
	c.got.Wait()
	slices.Sort(c.took)
	return c.took[len(c.took)*99/100]
}

func TestAConsumerThatNeverReadsDelaysNoOther(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Timeout: time.Minute,
			History: eventsource.History{Events: 10_000, Bytes: 256 << 20}})
		fill(t, n)
		c := n.crowd(t, "news", 1000)
		// Rounds with and without it take turns, so that what else the machine does
		// falls on both; noise is forgiven, a delay that stays is not.
		const tries, rounds, events = 6, 4, 15
		var ratio float64
		for range tries {
			var alone, beside []time.Duration
			for range rounds {
				for range events {
					alone = append(alone, c.publish(t, n, "news"))
				}
				conn := stalled(t, n, "/news,filler?history=10000")
				for range events {
					beside = append(beside, c.publish(t, n, "news"))
				}
				if got := n.ConsumerCountAll(); got != 1001 {
					t.Fatalf("%d consumers are connected, not 1001: nothing was measured", got)
				}
				conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
				eventually(t, "it has left", func() bool { return n.ConsumerCountAll() == 1000 })
			}
			slices.Sort(alone)
			slices.Sort(beside)
			ratio = float64(beside[len(beside)/2]) / float64(alone[len(alone)/2])
			t.Logf("99th percentile: %v alone, %v beside one that never reads", alone[len(alone)/2], beside[len(beside)/2])
			if ratio < 1.2 {
				break
			}
		}
		if ratio >= 1.2 {
			t.Errorf("one consumer that never reads makes the others' 99th percentile %.2f times what it was", ratio)
		}
		if _, err := n.Publish(context.Background(), "news", eventsource.Event{Data: "quit"}); err != nil {
			t.Fatal(err)
		}
		c.end.Wait()
	})
}
