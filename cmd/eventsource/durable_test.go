package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A returning follows channels over one connection after the other, with the last id
// that it had.
type returning struct {
	url    string
	lastID string
	got    []string // "id data"
	gaps   int
}

// follow reads until an event with this data has come.
func (f *returning) follow(ctx context.Context, last string) error {
	for {
		done, err := f.read(ctx, last)
		if done || ctx.Err() != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond) // the server is away
	}
}

func (f *returning) read(ctx context.Context, last string) (done bool, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url, nil)
	if err != nil {
		return true, err
	}
	r.Header.Set("Last-Event-ID", f.lastID)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	id, event, data := "", "", ""
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			id = value
		case "event":
			event = value
		case "data":
			data = value
		case "":
			if id != "" {
				f.lastID = id
			}
			switch {
			case event == "eventsource.gap":
				f.gaps++
			case data != "" && event == "":
				f.got = append(f.got, id+" "+data)
				if data == last {
					return true, nil
				}
			}
			id, event, data = "", "", ""
		}
	}
	return false, nil
}

// A server is killed again and again while many publish. Who was answered finds its
// event there once and in order, whoever was not may repeat it by its key, and nobody
// who follows sees anything of it but a reconnect.
func TestWhatWasAnsweredSurvivesEveryKill(t *testing.T) {
	kills := 6
	if n, err := strconv.Atoi(os.Getenv("EVENTSOURCE_TEST_KILLS")); err == nil {
		kills = n
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	file := filepath.Join(t.TempDir(), "events.db")
	args := []string{"--port", fmt.Sprint(freePorts(t, 1)[0]), "--backend", "sqlite:" + file, "--config", write(t, "empty.yml", "")}
	srv := serving(t, nil, args...)
	_, first := request(t, http.MethodPost, srv.url+"/a?id=first", "Content-Type", "text/plain")
	if !strings.Contains(first, `"id":"first"`) {
		t.Fatal(first)
	}

	url := srv.url // the same after each kill
	var followers sync.WaitGroup
	follow := make([]*returning, 4)
	for i := range follow {
		follow[i] = &returning{url: url + []string{"/a,b", "/b,a", "/*", "/a,b.*,b"}[i], lastID: "first"}
		followers.Go(func() {
			if err := follow[i].follow(ctx, "the end"); err != nil {
				t.Error(err)
			}
		})
	}

	// Each publishes one thing after the other, and repeats it until it is answered.
	var publishers sync.WaitGroup
	var mu sync.Mutex
	answered := map[string]string{} // data by id
	batches := map[string][]string{}
	over := make(chan struct{})
	for p := range 16 {
		publishers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				channel := []string{"a", "b", "a,b"}[(p+n)%3]
				name := fmt.Sprintf("%d-%d", p, n)
				events := []string{name}
				if n%4 == 0 {
					events = []string{name + "-x", name + "-y", name + "-z"}
				}
				ids, err := publishUntilAnswered(ctx, url+"/"+channel, name, events)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for i, id := range ids {
					answered[id] = events[i]
				}
				if len(ids) > 1 {
					batches[ids[0]] = ids
				}
				mu.Unlock()
			}
		})
	}
	for range kills {
		time.Sleep(20*time.Millisecond + rand.N(150*time.Millisecond))
		srv.Process.Kill()
		<-srv.ended
		srv = serving(t, nil, args...)
	}
	close(over)
	publishers.Wait()
	if _, err := publishUntilAnswered(ctx, url+"/all", "the end", []string{"the end"}); err != nil {
		t.Fatal(err)
	}
	followers.Wait()

	again := &returning{url: url + "/a,b", lastID: "first"}
	if err := again.follow(ctx, "the end"); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	lastSeq := ""
	for i, line := range again.got[:len(again.got)-1] {
		id, data, _ := strings.Cut(line, " ")
		if answered[id] != data {
			t.Fatalf("%s has %q, but its publisher was answered %q", id, data, answered[id])
		}
		if seen[data] {
			t.Fatalf("%q is there twice", data)
		}
		seen[data] = true
		if seq := id[24:]; seq <= lastSeq { // of the id's last bits, as long as there are few
			t.Fatalf("%s comes after %s", seq, lastSeq)
		} else {
			lastSeq = seq
		}
		for j, other := range batches[id] {
			if !strings.HasPrefix(again.got[i+j], other+" ") {
				t.Fatalf("of the batch %v there is %s at %d", batches[id], again.got[i+j], j)
			}
		}
	}
	if len(seen) != len(answered) {
		t.Errorf("%d events are there, %d were answered", len(seen), len(answered))
	}
	for i, f := range follow {
		if f.gaps > 0 || !slices.Equal(f.got, again.got) {
			t.Errorf("follower %d got %d events and %d gaps; there are %d", i, len(f.got), f.gaps, len(again.got))
		}
	}
	t.Logf("%d kills, %d events", kills, len(answered))
}

// publishUntilAnswered publishes events as one batch, with the same key again until it
// is answered, and returns their ids.
func publishUntilAnswered(ctx context.Context, url, key string, events []string) ([]string, error) {
	batch := make([]map[string]string, len(events))
	for i, e := range events {
		batch[i] = map[string]string{"data": e}
	}
	body, err := json.Marshal(batch)
	if err != nil {
		return nil, err
	}
	for ; ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", key)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			continue
		}
		answer, err := io.ReadAll(res.Body)
		res.Body.Close()
		switch {
		case err != nil || res.StatusCode == http.StatusServiceUnavailable:
			continue
		case res.StatusCode != http.StatusCreated:
			return nil, fmt.Errorf("%s: %s", res.Status, answer)
		}
		var receipts []struct{ ID string }
		if err := json.Unmarshal(answer, &receipts); err != nil {
			return nil, err
		}
		var ids []string
		for _, r := range receipts {
			ids = append(ids, r.ID)
		}
		return ids, nil
	}
	return nil, ctx.Err()
}
