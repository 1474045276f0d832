package eventsource_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/railsmechanic/eventsource"
)

// A faulty backend does what a test has it do: faults that a real one can't be
// made to show.
type faulty struct {
	mu    sync.Mutex
	node  eventsource.Node
	seq   uint64
	err   error
	start error
}

func (b *faulty) Start(node eventsource.Node) (eventsource.Order, error) {
	b.node = node
	return eventsource.Order{Epoch: eventsource.Epoch{Number: 1}, Seq: b.seq}, b.start
}

func (b *faulty) Publish(_ context.Context, r *eventsource.Record) (eventsource.Kept, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return eventsource.Kept{}, b.err
	}
	r.Seq, r.Time = b.seq+1, time.Now()
	b.seq += uint64(max(1, len(r.Events)))
	b.node.Deliver(r)
	return eventsource.Kept{Seq: r.Seq, Time: r.Time}, nil
}

func (b *faulty) Close() error { return nil }

func (b *faulty) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func openWith(t *testing.T, settings *eventsource.Settings) *eventsource.Server {
	t.Helper()
	s, err := eventsource.Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error("shutdown:", err)
		}
	})
	return s
}

func TestWhatABackendRefusesAPublisherIsTold(t *testing.T) {
	b := &faulty{}
	s := openWith(t, &eventsource.Settings{Backend: b})
	for _, tc := range []struct {
		err     error
		status  int
		outcome string
		words   string
	}{
		{eventsource.ErrUnavailable, 503, "", "nothing was published"},
		{eventsource.ErrUnknown, 503, "unknown", "Idempotency-Key settles it"},
		{eventsource.ErrKeyReused, 422, "", "a key of its own"},
		{eventsource.ErrKeysFull, 503, "", "without one"},
		{fmt.Errorf("%w: at most 1048576 bytes", eventsource.ErrTooLarge), 413, "", "1048576"},
		{errors.New("a bug"), 503, "", "repeat later"},
	} {
		b.fail(tc.err)
		_, err := s.Publish(t.Context(), "news", eventsource.Event{Data: "x"})
		var p *eventsource.Problem
		if !errors.As(err, &p) || p.Status != tc.status || p.Outcome != tc.outcome || !strings.Contains(p.Detail, tc.words) || !errors.Is(err, tc.err) {
			t.Errorf("%v: got %#v", tc.err, err)
		}
		if tc.status == 503 && p.RetryAfter <= 0 {
			t.Errorf("%v: no time to repeat after", tc.err)
		}
	}
	b.fail(nil)
	if _, err := s.Publish(t.Context(), "news", eventsource.Event{Data: "x"}); err != nil {
		t.Error("after the faults:", err)
	}
}

func TestHealthSaysThatTheBackendIsAway(t *testing.T) {
	b := &faulty{}
	s := openWith(t, &eventsource.Settings{Backend: b, AuthToken: "root"})
	status := func(header ...string) (int, string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/health", nil)
		setHeader(r, header)
		s.Handler().ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if code, body := status(); code != 200 || !strings.Contains(body, `"ready":true`) {
		t.Errorf("at first: %d %s", code, body)
	}
	b.node.Available(errors.New("gone for lunch"))
	if code, body := status(); code != 503 || !strings.Contains(body, `"backend":"unavailable"`) || strings.Contains(body, "lunch") {
		t.Errorf("away: %d %s", code, body)
	}
	if code, body := status("Auth-Token", "root"); code != 503 || !strings.Contains(body, `"reason":"gone for lunch"`) {
		t.Errorf("away, to an administrator: %d %s", code, body)
	}
	b.node.Available(nil)
	if code, _ := status(); code != 200 {
		t.Errorf("back: %d", code)
	}
}

func TestABackendThatDoesNotStartIsSaid(t *testing.T) {
	_, err := eventsource.Open(&eventsource.Settings{Backend: &faulty{start: errors.New("the store is from a newer version")}})
	if err == nil || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("got %v", err)
	}
}

func TestWhoIsConnectedWhenTheBackendLostEventsIsToldInMidStream(t *testing.T) {
	b := &faulty{}
	s := openWith(t, &eventsource.Settings{Backend: b})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := make(chan eventsource.Event, 10)
	follow := s.Subscribe(ctx, "news", &eventsource.Subscription{Types: []string{"wanted"}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e, err := range follow {
			if err != nil {
				return
			}
			events <- e
		}
	}()
	publish := func() string {
		r, err := s.Publish(ctx, "news", eventsource.Event{Type: "wanted", Data: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return r.IDs[0]
	}
	first := publish()
	if e := <-events; e.ID != first {
		t.Fatalf("got %+v", e)
	}
	b.mu.Lock()
	b.seq += 1000
	b.node.Lost(eventsource.Order{Epoch: eventsource.Epoch{Number: 2}, Seq: b.seq})
	b.mu.Unlock()
	if e := <-events; e.Type != "eventsource.gap" || e.Data != `{"requested":null,"oldest":null}` || e.ID != "" {
		t.Errorf("in place of the gap: %+v", e)
	}
	second := publish()
	if e := <-events; e.ID != second {
		t.Errorf("after the gap: %+v", e)
	}
	cancel()
	<-done

	// An id of the earlier life is told of a gap too.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	for e, err := range s.Subscribe(ctx, "news", &eventsource.Subscription{LastEventID: first}) {
		if err != nil || e.Type != "eventsource.gap" || !strings.Contains(e.Data, second) {
			t.Errorf("with an id of the earlier life: %+v, %v", e, err)
		}
		break
	}
}

func TestARecordOfAnotherNodeArrivesLikeOneOfThisNode(t *testing.T) {
	b := &faulty{}
	s := openWith(t, &eventsource.Settings{Backend: b})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := s.Subscribe(ctx, "a,b", nil)
	b.mu.Lock()
	b.node.Deliver(
		&eventsource.Record{Channels: []string{"a", "b"}, Events: []eventsource.Event{{ID: "1"}, {ID: "2"}}, Seq: 10, Time: time.Now()},
		&eventsource.Record{Channels: []string{"all"}, Events: []eventsource.Event{{ID: "3"}}, Seq: 20, Time: time.Now()})
	b.seq = 20
	b.mu.Unlock()
	var ids []string
	for e, err := range follow {
		if err != nil {
			t.Fatal(err)
		}
		if ids = append(ids, e.ID); len(ids) == 3 {
			break
		}
	}
	if got := strings.Join(ids, " "); got != "1 2 3" {
		t.Errorf("got %s", got)
	}
}

func TestKeysAreForgottenAfterFiveMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, &eventsource.Settings{Limits: eventsource.Limits{IdempotencyKeys: 2}})
		h := s.Handler()
		post := func(key, body string) (int, string) {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, "/news", strings.NewReader(body))
			r.Header.Set("Content-Type", "text/plain")
			r.Header.Set("Idempotency-Key", key)
			h.ServeHTTP(w, r)
			return w.Code, w.Body.String()
		}
		code, first := post("a", "x")
		if code != 201 {
			t.Fatal(code, first)
		}
		time.Sleep(5*time.Minute - time.Second)
		if _, again := post("a", "x"); again != first {
			t.Errorf("the repeat: %s, not %s", again, first)
		}
		if code, _ := post("b", "x"); code != 201 {
			t.Errorf("the second key: %d", code)
		}
		if code, body := post("c", "x"); code != 503 {
			t.Errorf("one key too many: %d %s", code, body)
		}
		time.Sleep(time.Second)
		if code, again := post("a", "y"); code != 201 || again == first {
			t.Errorf("after five minutes: %d %s", code, again)
		}
		if got := s.Stats().Published; got != 3 {
			t.Errorf("%d events were published, not 3", got)
		}
	})
}
