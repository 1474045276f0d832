package eventsource_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// A storm is a server on a real socket, many who publish to it and many who
// follow it, some of them cut off again and again.
type storm struct {
	t *testing.T
	*node
	ctx context.Context // ends when the storm has taken too long

	mu        sync.Mutex
	order     []string       // the ids that were answered; sorted, they stand in the order of Seq
	published map[string]int // the data of each, and how often it was published
}

// stormTimeout is when a storm is given up.
const stormTimeout = 60 * time.Second

// lastWords is the data of the event that ends a storm.
const lastWords = "the end"

// storm serves settings on the path, for a storm.
func (p servingPath) storm(t *testing.T, settings *eventsource.Settings) *storm {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stormTimeout)
	t.Cleanup(cancel)
	st := &storm{t: t, node: p.node(t, settings), ctx: ctx, published: map[string]int{}}
	st.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 100
	return st
}

// publish posts one event, or a batch of several.
func (st *storm) publish(channels string, fields string, data ...string) error {
	var body strings.Builder
	for i, d := range data {
		fmt.Fprintf(&body, "%c{\"data\":%q%s}", "[,"[min(i, 1)], d, fields)
	}
	text := body.String() + "]"
	if len(data) == 1 {
		text = text[1 : len(text)-1]
	}
	request, err := http.NewRequestWithContext(st.ctx, http.MethodPost, st.url+"/"+channels, strings.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := st.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusCreated {
		return fmt.Errorf("publish: %s: %s", response.Status, answer)
	}
	if len(data) == 1 {
		answer = []byte("[" + string(answer) + "]")
	}
	var receipts []struct{ ID string }
	if err := json.Unmarshal(answer, &receipts); err != nil {
		return err
	}
	if len(receipts) != len(data) {
		return fmt.Errorf("%d answers to %d events", len(receipts), len(data))
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	for i, r := range receipts {
		st.order = append(st.order, r.ID)
		st.published[r.ID+" "+data[i]]++
	}
	return nil
}

// A strictReader reads an event stream as this server is to send it: it refuses
// what a lenient one would drop.
type strictReader struct{ r *bufio.Reader }

// next returns the next whole block. One that is cut off is not there.
func (s strictReader) next() (block, error) {
	var b block
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return b, err
		}
		line = line[:len(line)-1]
		name, value, ok := strings.Cut(line, ": ")
		switch {
		case line == "":
			b.data = strings.TrimSuffix(b.data, "\n")
			return b, nil
		case strings.HasPrefix(line, ":"):
		case !ok:
			return b, malformed(line)
		case name == "id" && !b.hasID && value != "":
			b.id, b.hasID = value, true
		case name == "event" && b.event == "":
			b.event = value
		case name == "data":
			b.data, b.hasData = b.data+value+"\n", true
		case name == "retry":
			if _, err := strconv.Atoi(value); err != nil {
				return b, malformed(line)
			}
		default:
			return b, malformed(line)
		}
	}
}

// malformed is a line that no stream of this server may have.
type malformed string

func (m malformed) Error() string {
	return fmt.Sprintf("the line %q does not belong into a stream", string(m))
}

// A got is an event that a follower got, or a gap that it was told of.
type got struct {
	id, data string
	gap      bool
	mark     uint64 // for a gap: no event beyond it can be missing
}

// seqOf returns the Seq that the server put into an id.
func seqOf(id string) uint64 {
	id = strings.ReplaceAll(id, "-", "")
	seq, err := strconv.ParseUint(id[max(0, len(id)-14):], 16, 64)
	if err != nil {
		panic(err)
	}
	return seq
}

// A follower follows channels over one connection after the other, with the
// last id that it had, until it has read the last words.
type follower struct {
	st   *storm
	path string
	hold <-chan struct{} // it reads nothing of its first connection before this is closed
	got  []got
	ends map[string]int // the reasons that the server gave
	cuts int            // connections that ended without one

	mu   sync.Mutex
	conn *net.TCPConn // nil while it has none
}

// cut resets the follower's connection, whatever it is doing there, and reports
// false when it has none.
func (f *follower) cut() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		return false
	}
	f.conn.SetLinger(0)
	f.conn.Close()
	f.conn = nil
	return true
}

// run follows until the last words.
func (f *follower) run() error {
	f.ends = map[string]int{}
	last := ""
	for {
		done, err := f.connect(&last)
		switch {
		case done:
			return nil
		case f.st.ctx.Err() != nil:
			return fmt.Errorf("it never read the last words: %d events, %d cuts, ends %v, %w", len(f.got), f.cuts, f.ends, err)
		case errors.As(err, new(malformed)):
			return err
		}
	}
}

// control gives who is to hold a small window, before it connects.
func (f *follower) control(_, _ string, raw syscall.RawConn) error {
	if f.hold == nil {
		return nil
	}
	return raw.Control(func(fd uintptr) { smallWindow(fd) })
}

// connect follows over one connection.
func (f *follower) connect(last *string) (done bool, err error) {
	dialer := net.Dialer{Control: f.control}
	c, err := dialer.DialContext(f.st.ctx, "tcp", f.st.addr)
	if err != nil {
		return false, err
	}
	conn := c.(*net.TCPConn)
	defer conn.Close()
	deadline, _ := f.st.ctx.Deadline()
	conn.SetDeadline(deadline)
	id := ""
	if *last != "" {
		id = "Last-Event-ID: " + *last + "\r\n"
	}
	if _, err := fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n%s\r\n", f.path, f.st.addr, id); err != nil {
		return false, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return false, err
	}
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "text/event-stream" {
		return false, malformed(response.Status)
	}
	f.mu.Lock()
	f.conn = conn
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.conn = nil
		f.mu.Unlock()
	}()
	mark := f.st.Stats().Mark
	if f.hold != nil && *last == "" {
		select {
		case <-f.hold:
		case <-f.st.ctx.Done():
		}
	}
	r := strictReader{bufio.NewReader(response.Body)}
	for {
		b, err := r.next()
		if err != nil {
			f.cuts++
			return false, err
		}
		if b.hasID {
			*last = b.id
		}
		switch {
		case !b.hasData:
		case b.event == "eventsource.gap":
			if strings.HasPrefix(b.data, `{"requested":null`) { // in mid-stream
				mark = f.st.Stats().Mark
			}
			f.got = append(f.got, got{gap: true, mark: mark})
		case b.event == "eventsource.end":
			var end struct{ Reason string }
			if err := json.Unmarshal([]byte(b.data), &end); err != nil {
				return false, malformed(b.data)
			}
			f.ends[end.Reason]++
			return false, nil
		default:
			f.got = append(f.got, got{id: b.id, data: b.data})
			if b.data == lastWords {
				return true, nil
			}
		}
	}
}

// A plan says how a storm goes.
type plan struct {
	publishers int
	each       int                           // what a publisher publishes
	paths      []string                      // what the followers follow, in turn
	followers  int                           //
	cuts       int                           // of the second half of the followers
	channels   func(publisher, n int) string // where a publisher's n-th goes
	fields     func() string                 // further members of an event
	disturb    func()                        // done beside, again and again
}

// blow runs the storm and returns its followers, when each has read the last
// words.
func (st *storm) blow(p plan) []*follower {
	t := st.t
	t.Helper()
	var followers []*follower
	var following sync.WaitGroup
	for i := range p.followers {
		f := &follower{st: st, path: p.paths[i%len(p.paths)]}
		followers = append(followers, f)
		following.Go(func() {
			if err := f.run(); err != nil {
				t.Errorf("follower %d: %v", i, err)
			}
		})
	}
	eventually(t, "all consumers are connected", func() bool { return st.ConsumerCountAll() == p.followers })

	// The cuts are spread over what is published: who has published its part
	// waits until somebody has been cut off.
	var publishing sync.WaitGroup
	var cuts atomic.Int64
	total := p.publishers * p.each
	turn := make(chan struct{})
	var count atomic.Int64
	for i := range p.publishers {
		publishing.Go(func() {
			for n := range p.each {
				data := fmt.Sprintf("%d-%d", i, n)
				if n%7 == 0 { // longer than what one read takes, and of several lines
					data += "\n" + strings.Repeat("in the middle of this a connection is reset; ", 60) + "\n."
				}
				batch := []string{data}
				if n%5 == 0 {
					batch = append(batch, data+"'")
				}
				fields := ""
				if p.fields != nil {
					fields = p.fields()
				}
				if err := st.publish(p.channels(i, n), fields, batch...); err != nil {
					t.Errorf("publisher %d: %v", i, err)
					return
				}
				for want := count.Add(1) * int64(p.cuts) / int64(total); cuts.Load() < want; {
					select {
					case <-turn:
					case <-st.ctx.Done():
						return
					}
				}
			}
		})
	}
	over := make(chan struct{})
	var cutting sync.WaitGroup
	cutting.Go(func() {
		for {
			select {
			case turn <- struct{}{}:
			case <-over:
				return
			}
			if cuts.Load() < int64(p.cuts) {
				victim := followers[p.followers/2+rand.IntN(p.followers/2)]
				if victim.cut() {
					cuts.Add(1)
				}
			}
			if p.disturb != nil {
				p.disturb()
			}
		}
	})
	publishing.Wait()
	close(over)
	cutting.Wait()
	if n := int(cuts.Load()); n != p.cuts {
		t.Errorf("%d of %d cuts were made", n, p.cuts)
	}
	if err := st.publish("all", "", lastWords); err != nil {
		t.Fatal(err)
	}
	following.Wait()
	slices.Sort(st.order)
	return followers
}

// checkWhole fails the test unless each follower has what was published, once
// and in the order of the ids, and no word of a gap.
func (st *storm) checkWhole(followers []*follower) {
	t := st.t
	t.Helper()
	cuts, ends := 0, map[string]int{}
	for i, f := range followers {
		cuts += f.cuts
		for reason, n := range f.ends {
			ends[reason] += n
		}
		if len(f.got) != len(st.order) {
			t.Errorf("follower %d got %d events of %d", i, len(f.got), len(st.order))
		}
		for n := range min(len(f.got), len(st.order)) {
			if g := f.got[n]; g.id != st.order[n] {
				t.Errorf("follower %d: event %d is %s (gap %v), not %s", i, n, g.id, g.gap, st.order[n])
				break
			} else if st.published[g.id+" "+g.data] != 1 {
				t.Errorf("follower %d: event %s came with the data %.40q, which it was not published with", i, g.id, g.data)
				break
			}
		}
	}
	t.Logf("%d events, %d followers, %d connections ended without a word, ends %v", len(st.order), len(followers), cuts, ends)
}

// checkTold fails the test unless each follower got a part of what was
// published, once and in order, and a word of a gap before whatever is missing.
func (st *storm) checkTold(followers []*follower) {
	t := st.t
	t.Helper()
	place := map[string]int{}
	for i, id := range st.order {
		place[id] = i
	}
	missing, gaps, ends := 0, 0, map[string]int{}
	for i, f := range followers {
		for reason, n := range f.ends {
			ends[reason] += n
		}
		next, told := 0, uint64(0)
		for _, g := range f.got {
			if g.gap {
				gaps++
				told = g.mark
				continue
			}
			at, ok := place[g.id]
			switch {
			case !ok || st.published[g.id+" "+g.data] != 1:
				t.Errorf("follower %d got %s with %.40q, which nobody published", i, g.id, g.data)
			case at < next:
				t.Errorf("follower %d got %s a second time, or late", i, g.id)
			case at > next && seqOf(st.order[at-1]) > told:
				t.Errorf("follower %d missed %d events before %s, and was told of no gap", i, at-next, g.id)
			}
			missing += at - next
			next = at + 1
		}
		if next != len(st.order) {
			t.Errorf("follower %d did not get the last words", i)
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d events, %d followers, %d missing after %d gaps, ends %v", len(st.order), len(followers), missing, gaps, ends)
}

func TestAStormReachesEveryConsumerOnceAndInOneOrder(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		st := path.storm(t, &eventsource.Settings{
			Timeout: 30 * time.Second, History: eventsource.History{Events: 100_000}})
		st.checkWhole(st.blow(plan{
			publishers: 64, each: 20, followers: 200, cuts: 500,
			paths:    []string{"storm"},
			channels: func(int, int) string { return "storm" },
		}))
	})
}

func TestAStormOverFourChannelsAndAllIsOneOrderWithOneLastID(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		st := path.storm(t, &eventsource.Settings{
			Timeout: 30 * time.Second, History: eventsource.History{Events: 100_000}})
		to := []string{"a", "b", "c", "d", "all", "a,c", "d,b,a"}
		st.checkWhole(st.blow(plan{
			publishers: 64, each: 20, followers: 200, cuts: 500,
			paths:    []string{"a,b,c,d", "d,c,b,a"},
			channels: func(p, n int) string { return to[(p+n)%len(to)] },
		}))
	})
}

func TestAStormThroughWildcardsIsTheSameOrder(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		st := path.storm(t, &eventsource.Settings{
			Timeout: 30 * time.Second, History: eventsource.History{Events: 100_000}})
		to := []string{"w.a", "w.b", "w.b.c", "w.d.e.f", "all", "w.a,w.b", "w.b.c,w.d.e.f"}
		st.checkWhole(st.blow(plan{
			publishers: 16, each: 40, followers: 100, cuts: 250,
			paths:    []string{"w.*", "*", "w.a,w.*", "w.a,w.b,w.b.*,w.d.*"},
			channels: func(p, n int) string { return to[(p+n)%len(to)] },
		}))
	})
}

func TestAStormBeyondTheHistoryLeavesNobodyUntold(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		st := path.storm(t, &eventsource.Settings{
			Timeout: 30 * time.Second, History: eventsource.History{Events: 4}})
		st.checkTold(st.blow(plan{
			publishers: 64, each: 20, followers: 100, cuts: 500,
			paths:    []string{"a,b", "a,*", "*"},
			channels: func(p, n int) string { return []string{"a", "b", "all", "a,b"}[(p+n)%4] },
		}))
	})
}

func TestAStormOfDeletesAndShortLivesLeavesNobodyUntold(t *testing.T) {
	deletesAndShortLives(t, func(*testing.T) eventsource.Backend { return nil })
}

// A file knows earlier than the logs what has expired, and says so of events that these
// have not had yet.
func TestAStormOfDeletesAndShortLivesOverAFileLeavesNobodyUntold(t *testing.T) {
	deletesAndShortLives(t, func(t *testing.T) eventsource.Backend { return file(t, newFile(t)) })
}

func deletesAndShortLives(t *testing.T, backend func(*testing.T) eventsource.Backend) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		st := path.storm(t, &eventsource.Settings{Backend: backend(t),
			Timeout: 30 * time.Second, History: eventsource.History{Events: 64}})
		st.checkTold(st.blow(plan{
			publishers: 32, each: 20, followers: 100, cuts: 300,
			paths:    []string{"a,b", "a,*", "*", "b,a"},
			channels: func(p, n int) string { return []string{"a", "b", "all", "a,b"}[(p+n)%4] },
			fields: func() string {
				if rand.IntN(3) == 0 {
					return fmt.Sprintf(`,"ttl":%d`, 1+rand.IntN(20))
				}
				return ""
			},
			disturb: func() {
				if rand.IntN(20) == 0 {
					st.Close([]string{"a", "b", "a,b"}[rand.IntN(3)])
				}
			},
		}))
	})
}

// Who published just before a DELETE or a shutdown was once answered 201 for
// what nobody who was connected got.
func TestWhatWasPublishedBeforeAnEndComesBeforeIt(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		deleted, drained := n.follow(t, "/a"), n.follow(t, "/b")
		publish := func(channel string) {
			t.Helper()
			if _, err := n.Publish(t.Context(), channel, eventsource.Event{Data: "before"}); err != nil {
				t.Fatal(err)
			}
		}
		publish("a")
		n.Close("a")
		deleted.expect("before", `{"reason":"closed"}`)
		publish("b")
		if err := n.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		drained.expect("before", `{"reason":"draining"}`)
	})
}
