package eventsource_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/railsmechanic/eventsource"
)

func TestAStreamBeginsWithItsHeadersAndItsPosition(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Retry: 1234 * time.Millisecond, Headers: map[string]string{"x-served-by": "me"}})
		s := n.stream(t, "/news")
		want := map[string]string{"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no",
			"X-Content-Type-Options": "nosniff", "X-Served-By": "me", "Connection": "keep-alive"}
		if path.http2 {
			delete(want, "Connection")
			if s.proto != "HTTP/2.0" {
				t.Errorf("served by %s", s.proto)
			}
		}
		for name, value := range want {
			if got := s.header.Get(name); got != value {
				t.Errorf("%s is %q", name, got)
			}
		}
		if s.header.Get("Date") == "" || s.header.Get("Content-Length") != "" {
			t.Errorf("the headers are %v", s.header)
		}
		b := s.next()
		if b.retry != "1234" || b.comment == "" || b.hasData || b.event != "" {
			t.Errorf("it begins with %q", b.raw)
		}
		if u, err := uuid.Parse(b.id); err != nil || u.Version() != 7 || u.Variant() != uuid.RFC4122 {
			t.Errorf("its position is %q: %v", b.id, err)
		}
		// Who is cut off now has missed nothing.
		s.close()
		r := n.post(t, "/news", asText, "missed").receipt(t)
		again := n.follow(t, "/news", "Last-Event-ID", b.id)
		if e := again.event(); e.data != "missed" || e.id != r.ID {
			t.Errorf("after the return came %+v", e)
		}
	})
}

func TestEventsArriveLiveAndInOrder(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		s := n.follow(t, "/news")
		var want []string
		for i := range 500 {
			want = append(want, "event "+strconv.Itoa(i)+strings.Repeat(".", i%97*40))
			if i%50 == 0 {
				s.expect(want[:0]...)
			}
			publish(t, n.Server, "news", eventsource.Event{Data: want[i]})
		}
		s.expect(want...)
	})
}

func TestLargeEventsArriveWhole(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		s := n.follow(t, "/news")
		var want []string
		for i := range 8 {
			want = append(want, strings.Repeat(strconv.Itoa(i), 900_000))
			publish(t, n.Server, "news", eventsource.Event{Data: want[i]})
		}
		s.expect(want...)
	})
}

func TestAFilterLetsItsTypesThrough(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		for query, want := range map[string]string{
			"?event=a": "a", "?event=a,b": "a b", "?event=message": "untyped message", "?event=message,b": "untyped b message",
			"?event=": "untyped a b c message", "": "untyped a b c message", "?event=none": "", "?event=A": "",
		} {
			s := n.follow(t, "/news"+query)
			for _, typ := range []string{"", "a", "b", "c", "message"} {
				data := typ
				if typ == "" {
					data = "untyped"
				}
				publish(t, n.Server, "news", eventsource.Event{Type: typ, Data: data})
			}
			s.expect(strings.Fields(want)...)
			n.Close("news") // the end is told whatever the filter
			if data, _ := s.ended(); data != `{"reason":"closed"}` {
				t.Errorf("%s: the end is %q", query, data)
			}
		}
	})
}

func TestAnEnvelopeSaysWhereAnEventCameFrom(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		s := n.follow(t, "/news,pets.*?envelope=1")
		for _, tc := range []struct {
			channels, channel, want string
			event                   eventsource.Event
		}{
			{"news", "news", `"data":"a\nb <é>"`, eventsource.Event{ID: "1", Data: "a\r\nb <é>"}},
			{"pets.cats", "pets.cats", `"event":"e"`, eventsource.Event{ID: "2", Type: "e", Data: "{}"}},
			{"pets.cats,news", "news", `"id":"3"`, eventsource.Event{ID: "3"}},
			{"sport,pets.dogs", "pets.dogs", `"id":"4"`, eventsource.Event{ID: "4"}},
			{"all", "all", `"event":""`, eventsource.Event{ID: "5", Data: "x"}},
		} {
			publish(t, n.Server, tc.channels, tc.event)
			b := s.event()
			var e struct {
				Channel, ID, Event string
				Data               *string
				Time               time.Time
			}
			if err := json.Unmarshal([]byte(b.data), &e); err != nil {
				t.Fatalf("%q: %v", b.data, err)
			}
			if e.Channel != tc.channel || e.ID != tc.event.ID || b.id != e.ID || e.Event != tc.event.Type || b.event != tc.event.Type ||
				*e.Data != tc.event.Data || time.Since(e.Time) > time.Minute {
				t.Errorf("%+v to %s arrived as %s", tc.event, tc.channels, b.raw)
			}
		}
	})
}

func TestHistoryBeginsWithTheLastKeptEvents(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		for i := range 6 {
			publish(t, n.Server, "news", eventsource.Event{Type: string(rune('a' + i%2)), Data: "n" + strconv.Itoa(i)})
		}
		publish(t, n.Server, "all", eventsource.Event{Type: "b", Data: "all"})
		publish(t, n.Server, "sport", eventsource.Event{Data: "s"})
		for query, want := range map[string]string{
			"/news?history=2": "n5 all", "/news?history=100": "n0 n1 n2 n3 n4 n5 all", "/news?history=0": "", "/news": "",
			"/news?history=2&event=a": "n2 n4", "/news,sport?history=3": "n5 all s", "/other?history=5": "all", "/*?history=2": "all s",
		} {
			s := n.follow(t, query)
			s.expect(strings.Fields(want)...)
			publish(t, n.Server, "all", eventsource.Event{Type: "a", Data: "live", TTL: -1})
			s.expect("live")
		}
		for _, query := range []string{"history=-1", "history=x", "history=1.5", "history=99999999999", "envelope=yes", "event=" + strings.Repeat("a,", 101)} {
			n.do(t, "GET", "/news?"+query, nil).refused(t, 400)
		}
	})
}

func TestTheLastIDMayComeInSeveralWays(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		publish(t, n.Server, "news", eventsource.Event{ID: "1"}, eventsource.Event{ID: "2"}, eventsource.Event{ID: "3", Data: "3"}, eventsource.Event{ID: "ü/4", Data: "4"})
		for i, tc := range []struct{ query, header, want string }{
			{"?last_event_id=2", "", "3 4"},
			{"?lastEventId=2", "", "3 4"},
			{"?lastEventID=2", "", "3 4"},
			{"", "2", "3 4"},
			{"?last_event_id=1", "3", "4"},
			{"?last_event_id=&history=1", "", "4"},
			{"?last_event_id=2&history=1", "", "3 4"},
			{"?last_event_id=%C3%BC%2F4", "", ""},
			{"", "ü/4", ""},
		} {
			s := n.follow(t, fmt.Sprintf("/news,live%d%s", i, tc.query), "Last-Event-ID", tc.header)
			s.expect(strings.Fields(tc.want)...)
			publish(t, n.Server, fmt.Sprint("live", i), eventsource.Event{Data: "live"})
			s.expect("live")
			s.close()
		}
		long := strings.Repeat("x", 256)
		n.do(t, "GET", "/news", nil, "Last-Event-ID", long).refused(t, 400, "255 bytes")
		n.do(t, "GET", "/news?last_event_id="+long, nil).refused(t, 400, "255 bytes")
		n.follow(t, "/news?last_event_id="+long, "Last-Event-ID", "2").expect("3", "4")
	})
}

func TestResumeReplaysWhatWasMissed(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		for _, named := range []bool{false, true} {
			n := path.node(t, nil)
			var ids []string
			send := func(i int) {
				channel := []string{"pets.cats", "news", "all", "pets.dogs,news", "pets.cats,other"}[i%5]
				e := eventsource.Event{Data: strconv.Itoa(i)}
				if named {
					e.ID = "mine-" + strconv.Itoa(i)
				}
				ids = append(ids, publish(t, n.Server, channel, e)...)
			}
			for i := range 40 {
				send(i)
			}
			for path, has := range map[string]func(i int) bool{
				"/news":           func(i int) bool { return i%5 == 1 || i%5 == 2 || i%5 == 3 },
				"/news,pets.cats": func(i int) bool { return true },
				"/pets.*":         func(i int) bool { return i%5 != 1 },
				"/*,news":         func(i int) bool { return true },
			} {
				for _, from := range []int{0, 1, 17, 38, 39} {
					if named && !has(from) {
						continue // no consumer of these channels has that id
					}
					s := n.follow(t, path, "Last-Event-ID", ids[from])
					for i := from + 1; i < len(ids); i++ {
						if has(i) {
							if b := s.event(); b.data != strconv.Itoa(i) || b.id != ids[i] {
								t.Fatalf("%s after %d: %d is %+v", path, from, i, b)
							}
						}
					}
					for send(len(ids)); !has(len(ids) - 1); {
						send(len(ids))
					}
					if b := s.event(); b.data != strconv.Itoa(len(ids)-1) || b.id != ids[len(ids)-1] {
						t.Fatalf("%s: the live event is %+v", path, b)
					}
					s.close()
				}
			}
		}
	})
}

// While events come without a pause, a consumer is cut off and comes back, time
// and again: it must get each once, whether it is replayed or live.
func TestResumeHasNoSeam(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{History: eventsource.History{Events: 5000}})
		const events = 2000
		var wg sync.WaitGroup
		defer wg.Wait()
		first := n.stream(t, "/a,b.*")
		last := first.next().id
		first.close()
		for i := range 2 {
			wg.Go(func() {
				for j := range events / 2 {
					n.Publish(context.Background(), []string{"a", "b.c", "all", "a,b.d"}[j%4], eventsource.Event{Data: strconv.Itoa(i*events/2 + j)})
				}
			})
		}
		seen := map[string]bool{}
		for len(seen) < events {
			s := n.follow(t, "/a,b.*", "Last-Event-ID", last)
			for i := 0; i < 50 && len(seen) < events; i++ {
				b := s.event()
				if b.event != "" || seen[b.data] {
					t.Fatalf("came back after %s and got %+v, seen: %v", last, b, seen[b.data])
				}
				seen[b.data] = true
				last = b.id
			}
			s.close()
		}
	})
}

// gap fails the test unless the next event is one.
func (s *stream) gap(requested, oldest string) {
	s.t.Helper()
	text := func(id string) string {
		if id == "" {
			return "null"
		}
		return strconv.Quote(id)
	}
	b := s.event()
	if want := fmt.Sprintf(`{"requested":%s,"oldest":%s}`, text(requested), text(oldest)); b.event != "eventsource.gap" || b.hasID || b.data != want {
		s.t.Fatalf("in place of the gap %s came %q", want, b.raw)
	}
}

func TestAGapIsToldOfWhatIsNoLongerKept(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{History: eventsource.History{Events: 3}})
		ends := 0
		follow := func(channels, id string) (s *stream, live func()) {
			t.Helper()
			ends++
			end := fmt.Sprint("end", ends)
			s = n.follow(t, "/"+channels+","+end, "Last-Event-ID", id)
			return s, func() {
				t.Helper()
				publish(t, n.Server, end, eventsource.Event{Data: "live"})
				s.expect("live")
				s.close()
			}
		}
		s, live := follow("news", "unknown")
		s.gap("unknown", "")
		live()

		var ids []string
		for i := range 6 {
			ids = append(ids, publish(t, n.Server, "news", eventsource.Event{Data: strconv.Itoa(i)})...)
		}
		s, live = follow("news", "unknown")
		s.gap("unknown", ids[3])
		s.expect("3", "4", "5")
		live()
		s = n.follow(t, "/news?event=none", "Last-Event-ID", ids[0]) // whatever the filter
		s.gap(ids[0], ids[3])
		s.close()
		for i, want := range []string{"gap", "gap", "3 4 5", "4 5", "5", ""} {
			s, live := follow("news", ids[i])
			if want == "gap" {
				s.gap(ids[i], ids[3])
				want = "3 4 5"
			}
			s.expect(strings.Fields(want)...)
			live()
		}

		// At most as many as a channel keeps follow a gap, whatever is followed.
		publish(t, n.Server, "sport", eventsource.Event{Data: "s1"}, eventsource.Event{Data: "s2"})
		s, live = follow("news,sport", "unknown")
		s.gap("unknown", ids[3])
		s.expect("5", "s1", "s2")
		live()

		// Who lacks nothing of what it follows is told of none.
		s, live = follow("sport", ids[0])
		s.expect("s1", "s2")
		live()

		last := publish(t, n.Server, "news", eventsource.Event{Data: "last"})[0]
		n.Close("news")
		s, live = follow("news", ids[4])
		s.gap(ids[4], "")
		live()
		_, live = follow("news", last)
		live()
	})
}

// One log has lost events that lie above the place where the others begin.
func TestWhatOneLogHasLostDoesNotEndWhoBeginsBelowIt(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{History: eventsource.History{Events: 3}})
		old := publish(t, n.Server, "news", eventsource.Event{Type: "a", Data: "old"})
		for i := range 5 {
			publish(t, n.Server, "sport", eventsource.Event{Type: "b", Data: strconv.Itoa(i)})
		}
		told, asked := n.follow(t, "/news,sport?event=a", "Last-Event-ID", "unknown"), n.follow(t, "/news,sport?history=9")
		told.gap("unknown", old[0])
		publish(t, n.Server, "sport", eventsource.Event{Type: "a", Data: "live"})
		told.expect("old", "live")
		asked.expect("old", "2", "3", "4", "live")
	})
}

func TestWithoutHistoryAnIDStillSaysWhetherAnythingWasMissed(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{History: eventsource.History{Events: -1}})
		s := n.follow(t, "/news")
		ids := publish(t, n.Server, "news", eventsource.Event{Data: "1"}, eventsource.Event{Data: "2"})
		s.expect("1", "2")
		s.close()
		again := n.follow(t, "/news", "Last-Event-ID", ids[1])
		publish(t, n.Server, "news", eventsource.Event{Data: "3"})
		again.expect("3")
		missed := n.follow(t, "/news", "Last-Event-ID", ids[0])
		missed.gap(ids[0], "")
		publish(t, n.Server, "news", eventsource.Event{Data: "4"})
		missed.expect("4")
		own := n.follow(t, "/news", "Last-Event-ID", "mine")
		own.gap("mine", "")
		if n.do(t, "HEAD", "/news", nil).header.Get("X-Channel-Exists") != "true" {
			t.Error("a channel that is followed does not exist")
		}
	})
}

func TestAPublishersIDThatWasEvictedIsAGap(t *testing.T) {
	n := newNode(t, &eventsource.Settings{History: eventsource.History{Events: 2}})
	publish(t, n.Server, "news", eventsource.Event{ID: "1"}, eventsource.Event{ID: "2", Data: "2"}, eventsource.Event{ID: "3", Data: "3"})
	s := n.follow(t, "/news", "Last-Event-ID", "1")
	s.gap("1", "2")
	s.expect("2", "3")
	// An id that was used twice may send twice, and never skips.
	publish(t, n.Server, "news", eventsource.Event{ID: "3", Data: "again"})
	n.follow(t, "/news", "Last-Event-ID", "3").expect("again")
}

func TestTTLEndsBeforeHistoryDoes(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		s := n.follow(t, "/news")
		first := n.post(t, "/news", asJSON, `{"data":"first"}`).receipt(t).ID
		n.post(t, "/news", asJSON, `{"data":"only live","ttl":0}`)
		s.expect("first", "only live")
		n.post(t, "/news", asJSON, `{"data":"kept"}`)
		back := n.follow(t, "/news", "Last-Event-ID", first)
		back.gap(first, n.lastOf(t, "news"))
		back.expect("kept")
		n.follow(t, "/news?history=9").expect("first", "kept")

		short := n.post(t, "/short", asJSON, `[{"data":"a"},{"data":"b","ttl":30},{"data":"c"}]`)
		var ids []receipt
		json.Unmarshal([]byte(short.body), &ids)
		eventually(t, "b has expired", func() bool {
			s := n.follow(t, "/short?history=9")
			defer s.close()
			s.expect("a")
			return s.event().data == "c"
		})
		s = n.follow(t, "/short", "Last-Event-ID", ids[0].ID)
		s.gap(ids[0].ID, ids[2].ID)
		s.expect("c")
		n.follow(t, "/short", "Last-Event-ID", ids[1].ID).expect("c") // b itself is had
	})
}

// lastOf returns the id of the newest kept event of a channel.
func (n *node) lastOf(t testing.TB, channel string) string {
	t.Helper()
	s := n.follow(t, "/"+channel+"?history=1")
	defer s.close()
	return s.event().id
}

func TestAHeartbeatBringsTheMarkWhenItHasMoved(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Heartbeat: 60 * time.Millisecond})
		s := n.stream(t, "/news")
		at := s.next().id
		for range 2 {
			if b := s.next(); b.raw != ":\n\n" {
				t.Fatalf("a heartbeat without news is %q", b.raw)
			}
		}
		// An event for others moves the mark.
		other := publish(t, n.Server, "sport", eventsource.Event{Data: "x"})[0]
		b := s.next()
		for b.raw == ":\n\n" {
			b = s.next()
		}
		if b.raw != ":\nid: "+b.id+"\n\n" || b.id == at || b.id[14:] != other[14:] {
			t.Fatalf("a heartbeat after %s is %q", other, b.raw)
		}
		if again := s.next(); again.raw != ":\n\n" {
			t.Errorf("the mark is told twice: %q", again.raw)
		}
		s.close()
		// What it says holds: nothing that came before is missed or sent again.
		publish(t, n.Server, "news", eventsource.Event{Data: "new"})
		n.follow(t, "/news,sport", "Last-Event-ID", b.id).expect("new")

		// An id of an event needs no mark.
		s = n.follow(t, "/news")
		publish(t, n.Server, "news", eventsource.Event{Data: "y"})
		s.expect("y")
		if b := s.next(); b.raw != ":\n\n" {
			t.Errorf("after an event the heartbeat is %q", b.raw)
		}
		// A filtered one needs it.
		s = n.follow(t, "/news?event=none")
		publish(t, n.Server, "news", eventsource.Event{Data: "z"})
		for b = s.next(); b.raw == ":\n\n"; b = s.next() {
		}
		if !b.hasID || b.hasData {
			t.Errorf("after a filtered event comes %q", b.raw)
		}
	})
}

func TestDeleteEndsWhoFollowsByName(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		one, list, wild, other := n.follow(t, "/pets.cats"), n.follow(t, "/news,pets.cats"), n.follow(t, "/pets.*"), n.follow(t, "/news")
		publish(t, n.Server, "pets.cats", eventsource.Event{Data: "x"})
		for _, s := range []*stream{one, list, wild} {
			s.expect("x")
		}
		if a := n.do(t, "DELETE", "/pets.cats", nil); a.status != 200 || a.body != `{"channels":["pets.cats"],"disconnected":2}`+"\n" {
			t.Errorf("answered %d %s", a.status, a.body)
		}
		for _, s := range []*stream{one, list} {
			if data, retry := s.ended(); data != `{"reason":"closed"}` || retry == "" {
				t.Errorf("the end is %q, retry %q", data, retry)
			}
		}
		eventually(t, "both have left", func() bool { return n.ConsumerCountAll() == 2 })
		publish(t, n.Server, "pets.cats", eventsource.Event{Data: "y"})
		publish(t, n.Server, "news", eventsource.Event{Data: "z"})
		wild.expect("y")
		other.expect("z")
		if a := n.do(t, "DELETE", "/nobody,pets.cats", nil); a.body != `{"channels":["nobody","pets.cats"],"disconnected":0}`+"\n" {
			t.Errorf("answered %s", a.body)
		}
		publish(t, n.Server, "gone", eventsource.Event{Data: "z"})
		if a := n.do(t, "DELETE", "/all", nil); a.body != `{"channels":["gone","news"],"disconnected":1}`+"\n" {
			t.Errorf("DELETE /all answered %s", a.body)
		}
		other.ended()
		eventually(t, "three are counted as closed", func() bool {
			st := n.Stats()
			return st.Disconnects["closed"] == 3 && st.Consumers == 1
		})
		if a := n.do(t, "DELETE", "/all", nil); a.body != `{"channels":[],"disconnected":0}`+"\n" {
			t.Errorf("another DELETE /all answered %s", a.body)
		}
	})
}

func TestShutdownEndsStreamsAndSaysWhenToReturn(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Retry: 2 * time.Second})
		streams := make([]*stream, 10)
		for i := range streams {
			streams[i] = n.follow(t, "/news")
		}
		publish(t, n.Server, "news", eventsource.Event{Data: "last"})
		n.Stop()
		retries := map[string]bool{}
		for _, s := range streams {
			s.expect("last")
			data, retry := s.ended()
			ms, _ := strconv.Atoi(retry)
			if data != `{"reason":"draining"}` || ms < 2000 || ms > 4000 {
				t.Errorf("the end is %q, retry %q", data, retry)
			}
			retries[retry] = true
		}
		if len(retries) < 5 {
			t.Errorf("they are told to return at once: %v", retries)
		}
		if st := n.Stats(); st.Disconnects["draining"] != 10 || st.Consumers != 0 || !st.Draining {
			t.Errorf("the stats are %+v", st)
		}
	})
}

// passing fails the test unless a GET is refused with a status, to a browser by
// a stream that ends at once.
func (n *node) passing(t testing.TB, path, words string) {
	t.Helper()
	a := n.do(t, "GET", path, nil)
	a.refused(t, 503, words)
	if after, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || after < 1 {
		t.Errorf("Retry-After is %q", a.header.Get("Retry-After"))
	}
	s := n.stream(t, path, "Accept", "text/event-stream")
	if s.header.Get("Content-Type") != "text/event-stream" || s.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("the stream's headers are %v", s.header)
	}
	b := s.next()
	ms, _ := strconv.Atoi(b.retry)
	if ms < 1000 || !strings.Contains(b.comment, words) || b.hasID || b.hasData {
		t.Errorf("the refusal is %q", b.raw)
	}
	if b, ok := s.nextOrEnd(); ok {
		t.Errorf("after the refusal comes %q", b.raw)
	}
	s.close()
}

func TestARefusalThatWillPassIsAStreamToABrowser(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Limits: eventsource.Limits{Consumers: 2, Channels: 2}})
		first := n.follow(t, "/a")
		n.passing(t, "/b,c", "channels exist")
		n.follow(t, "/a,b")
		n.passing(t, "/a", "2 consumers")
		n.post(t, "/c", asText, "x").refused(t, 503, "2 channels")
		n.post(t, "/a", asText, "x").receipt(t)
		first.close()
		eventually(t, "one has left", func() bool { return n.ConsumerCountAll() == 1 })
		n.passing(t, "/c", "2 channels")
		n.follow(t, "/a")
		if st := n.Stats(); st.Refusals[503] != 7 || st.Connects != 3 {
			t.Errorf("the stats are %+v", st)
		}
		// What will not pass is no stream.
		n.do(t, "GET", "/a!", nil, "Accept", "text/event-stream").refused(t, 404)
	})
}

func TestWhileItDrainsConsumersAreToldToComeBack(t *testing.T) {
	s, err := eventsource.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	h := httptest.NewServer(s.Handler())
	defer h.Close()
	n := &node{Server: s, url: h.URL, client: h.Client()}
	n.passing(t, "/news", "shutting down")
}

func TestAChannelGoesWithItsLastConsumer(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Limits: eventsource.Limits{Channels: 2}})
		for range 20 {
			s := n.follow(t, "/a,b,x.*")
			s.close()
			eventually(t, "it has left", func() bool { channels, _ := eventsource.Held(n.Server); return channels == 0 })
		}
		if _, held := eventsource.Held(n.Server); held != 0 {
			t.Errorf("%d bytes are held for nothing", held)
		}
	})
}

func TestWhoNeverReadsIsCutOffAndMissesNothing(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		if path.http2 {
			return // its client reads for whoever does not
		}
		n := path.node(t, &eventsource.Settings{Timeout: 200 * time.Millisecond, History: eventsource.History{Events: 10_000}})
		var c net.Conn
		if path.tls {
			var err error
			if c, err = tls.Dial("tcp", n.addr, &tls.Config{InsecureSkipVerify: true}); err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(c, "GET /news HTTP/1.1\r\nHost: x\r\n\r\n")
		} else {
			c = n.raw(t, "GET /news HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		reader := n.follow(t, "/news")
		eventually(t, "both are there", func() bool { return n.ConsumerCountAll() == 2 })
		data := strings.Repeat("x", 100_000)
		for i := 0; n.Stats().Disconnects["slow"] == 0; i++ {
			if i == 3000 {
				t.Fatal("300 MB were published, and it is not slow yet")
			}
			publish(t, n.Server, "news", eventsource.Event{Data: data})
			if reader.event().data != data {
				t.Fatal("who reads got something else")
			}
			if i > 200 {
				eventually(t, "it is slow", func() bool { return n.Stats().Disconnects["slow"] == 1 })
			}
		}
		eventually(t, "it has left", func() bool { return n.ConsumerCountAll() == 1 })
		hungUp(t, "who never read", c)
	})
}

func TestALeavingConsumerIsNoticed(t *testing.T) {
	for _, path := range everyPath {
		if path.tls {
			continue
		}
		for how, leave := range map[string]func(c *net.TCPConn){
			"close":      func(c *net.TCPConn) { c.Close() },
			"reset":      func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
			"half-close": func(c *net.TCPConn) { c.CloseWrite() },
		} {
			t.Run(path.name+"/"+how, func(t *testing.T) {
				n := path.node(t, nil)
				stays := n.follow(t, "/news")
				c := n.raw(t, "GET /news HTTP/1.1\r\nHost: x\r\n\r\n")
				count := func() string { return n.do(t, "HEAD", "/news", nil).header.Get("X-Consumer-Count") }
				eventually(t, "it is there", func() bool { return count() == "2" })
				began := time.Now()
				leave(c.(*net.TCPConn))
				eventually(t, "it has left", func() bool { return count() == "1" })
				if took := time.Since(began); took > time.Second {
					t.Errorf("it took %v", took)
				}
				publish(t, n.Server, "news", eventsource.Event{Data: "x"})
				stays.expect("x")
				if got := n.Stats().Disconnects["gone"]; got != 1 {
					t.Errorf("%d are gone", got)
				}
			})
		}
	}
}

func TestWhoSendsMoreThanAConsumerDoesIsCut(t *testing.T) {
	for _, path := range []servingPath{paths[0], everyPath[2]} {
		t.Run(path.name, func(t *testing.T) {
			n := path.node(t, nil)
			c := n.raw(t, "GET /news HTTP/1.1\r\nHost: x\r\n\r\nGET /pipelined HTTP/1.1\r\nHost: x\r\n\r\n")
			garbage := make([]byte, 1000)
			for range 60 {
				c.Write(garbage)
			}
			eventually(t, "it is there", func() bool { return n.ConsumerCount("news") == 1 })
			if n.ChannelExists("pipelined") {
				t.Error("the pipelined request was served")
			}
			for range 20 {
				c.Write(garbage)
			}
			eventually(t, "it was cut", func() bool { return n.ConsumerCountAll() == 0 })
			if path.foreign || !eventsource.HasReactor {
				return
			}
			if got := n.Stats().Disconnects; got["noisy"] != 1 {
				t.Errorf("the ends are %v", got)
			}
		})
	}
}

func TestHTTP10GetsRawText(t *testing.T) {
	for _, path := range everyPath {
		if path.tls {
			continue
		}
		t.Run(path.name, func(t *testing.T) {
			n := path.node(t, nil)
			c := n.raw(t, "GET /news HTTP/1.0\r\n\r\n")
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Header.Get("Connection") != "close" || len(resp.TransferEncoding) > 0 || resp.ContentLength >= 0 {
				t.Errorf("the head is %+v", resp)
			}
			s := readStream(t, resp, func() { c.Close() })
			s.next()
			publish(t, n.Server, "news", eventsource.Event{ID: "1", Data: "x"})
			if b := s.event(); b.raw != "id: 1\ndata: x\n\n" {
				t.Errorf("got %q", b.raw)
			}
			n.Close("news")
			if data, _ := s.ended(); data != `{"reason":"closed"}` {
				t.Errorf("the end is %q", data)
			}
		})
	}
}

func TestAStreamIsWholeChunksOfHTTP11(t *testing.T) {
	for _, path := range everyPath {
		if path.tls {
			continue
		}
		t.Run(path.name, func(t *testing.T) {
			n := path.node(t, nil)
			c := n.raw(t, "GET /news HTTP/1.1\r\nHost: x\r\n\r\n")
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			publish(t, n.Server, "news", eventsource.Event{Data: "x"})
			n.Close("news")
			body, err := io.ReadAll(resp.Body) // an unfinished body is an error
			if err != nil || !strings.Contains(string(body), "data: x\n") || !strings.HasSuffix(string(body), "\n\n") {
				t.Errorf("read %q, %v", body, err)
			}
		})
	}
}

// A limitedWriter is what a middleware leaves that wraps a ResponseWriter
// without Unwrap.
type limitedWriter struct{ http.ResponseWriter }

func TestAWriterWithoutHijackAndDeadlinesIsRefused(t *testing.T) {
	s := openWith(t, nil)
	h := s.Handler()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(limitedWriter{w}, r) }))
	defer server.Close()
	n := &node{Server: s, url: server.URL, client: server.Client()}
	n.do(t, "GET", "/news", nil).refused(t, 500, "Unwrap")
	n.post(t, "/news", asText, "x").receipt(t)
	if n.ConsumerCountAll() != 0 {
		t.Error("it is counted")
	}
}

// unwrapping can't be hijacked, and has deadlines.
type unwrapping struct{ http.ResponseWriter }

func (u unwrapping) Unwrap() http.ResponseWriter { return u.ResponseWriter }
func (u unwrapping) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, http.ErrNotSupported
}

func TestAWriterThatCantBeHijackedIsServedPortably(t *testing.T) {
	s := openWith(t, nil)
	h := s.Handler()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(unwrapping{w}, r) }))
	defer server.Close()
	n := &node{Server: s, url: server.URL, client: server.Client()}
	stream := n.follow(t, "/news")
	publish(t, s, "news", eventsource.Event{Data: "x"})
	stream.expect("x")
	stream.close()
	eventually(t, "it has left", func() bool { return s.ConsumerCountAll() == 0 })
}

// On HTTP/2 a write deadline resets the stream when it passes, though nothing
// is being written: a quiet stream ended five seconds after its last event.
func TestAQuietStreamOutlivesTheTimeout(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Timeout: 20 * time.Millisecond, Heartbeat: 100 * time.Millisecond})
		s := n.follow(t, "/news")
		for range 3 {
			if b := s.next(); b.raw != ":\n\n" {
				t.Fatalf("a heartbeat is %q", b.raw)
			}
		}
		publish(t, n.Server, "news", eventsource.Event{Data: "x"})
		s.expect("x")
	})
}

func TestTheRouterIsServedByAnotherServer(t *testing.T) {
	s := openWith(t, nil)
	server := httptest.NewServer(s.Router())
	defer server.Close()
	n := &node{Server: s, url: server.URL, client: server.Client()}
	stream := n.follow(t, "/news")
	n.post(t, "/news", asText, "x")
	stream.expect("x")
	s.Stop()
	stream.ended()
}
