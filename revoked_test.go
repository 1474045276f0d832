package eventsource_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// Who reads slowly is behind when its token goes. It may get what was published
// before, and nothing of what comes after, however long it goes on to read.
func TestASlowReaderGetsNothingFromAfterItsTokenIsGone(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		settings := &eventsource.Settings{Public: []string{}, AuthToken: "boss", Timeout: slowTimeout,
			Keys: []eventsource.Key{{Token: "k", Subscribe: []string{"news"}}}}
		n := path.node(t, settings)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url+"/news", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Auth-Token", "k")
		resp, err := n.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		in := bufio.NewReader(resp.Body)
		published := 0
		publish := func() {
			t.Helper()
			published++
			_, err := n.Publish(t.Context(), "news", eventsource.Event{Type: strconv.Itoa(published), Data: strings.Repeat("x", 200_000)})
			if err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the consumer", func() bool { return n.ConsumerCount("news") == 1 })
		for range 150 { // more than sockets hold
			publish()
		}
		without := *settings
		without.Keys = nil
		if err := n.Reload(path.settings(&without)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		before := published
		for published < before+200 {
			line, err := in.ReadSlice('\n')
			if err == bufio.ErrBufferFull {
				continue
			}
			if err != nil {
				return // it was cut off, or has ended
			}
			if typ, ok := bytes.CutPrefix(line, []byte("event: ")); ok {
				if i, _ := strconv.Atoi(string(bytes.TrimSpace(typ))); i > before {
					t.Fatalf("event %d was published after the token had gone, after %d", i, before)
				}
				publish()
			}
		}
		t.Error("the stream goes on")
	})
}

func TestALineThatWaitsWhileTheTokenGoesIsRefused(t *testing.T) {
	settings := &eventsource.Settings{AuthToken: "boss", Keys: []eventsource.Key{{Token: "k", Publish: []string{"news"}}},
		Limits: eventsource.Limits{PublishesPerSecond: 20}}
	n := newNode(t, settings)
	s := n.follow(t, "/news")
	l := n.lines(t, "", "Auth-Token", "k")
	l.send(strings.Repeat(`{"data":"x"}`+"\n", 40)) // waits for a second
	time.Sleep(100 * time.Millisecond)
	without := *settings
	without.Keys = nil
	if err := n.Reload(&without); err != nil {
		t.Fatal(err)
	}
	if got := l.answer(); !strings.Contains(got, `"status":401`) {
		t.Errorf("answered %s", got)
	}
	n.client.CloseIdleConnections()
	n.post(t, "/news", asText, "the first", "Auth-Token", "boss").receipt(t)
	s.expect("the first")
}

func TestABodyThatComesAfterTheTokenHasGoneIsRefused(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		settings := &eventsource.Settings{AuthToken: "boss", Keys: []eventsource.Key{{Token: "k", Publish: []string{"news"}}}}
		n := path.node(t, settings)
		c := n.raw(t, "POST /news HTTP/1.1\r\nHost: x\r\nAuth-Token: k\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nx")
		time.Sleep(50 * time.Millisecond)
		without := *settings
		without.Keys = nil
		if err := n.Reload(path.settings(&without)); err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "y")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("answered %s", resp.Status)
		}
	})
}
