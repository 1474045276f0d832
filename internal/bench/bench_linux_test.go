package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestMain is the floor as well: the loads start this program as one.
func TestMain(m *testing.M) {
	if asked, status := floorCommand(os.Args[1:]); asked {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// tiny is the smallest scale on which every load still does what it is for.
var tiny = scale{part: 100, load: 150 * time.Millisecond, warmup: 50 * time.Millisecond, settle: 20 * time.Millisecond}

// TestRowsMeasureTheServerAndTheFloor runs rows of every kind of load: none may
// fail or lose an event.
func TestRowsMeasureTheServerAndTheFloor(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "eventsource")
	if err := build(t.Context(), binary, "-pgo=off"); err != nil {
		t.Fatal(err)
	}
	var out, log bytes.Buffer
	b := bench{out: &out, log: &log}
	if err := b.parse([]string{"-json", "-repeat=1", "-server", binary, "-rows=fanout-1k,window,churn,ndjson-10,all,resume,kept,restart"}); err != nil {
		t.Fatal(err)
	}
	b.scale = tiny
	if err := b.run(t.Context()); err != nil {
		t.Fatalf("%v: %s", err, &log)
	}
	measured := map[string]result{}
	for d := json.NewDecoder(&out); d.More(); {
		var r result
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		measured[r.Row+": "+r.Figure] = r
	}
	// What cannot be nothing, even in so short a run.
	for _, name := range []string{"fanout-1k: p50 ms", "fanout-1k: p99 ms", "window: deliveries a second", "resume: seconds", "restart: seconds"} {
		if r := measured[name]; r.Ours <= 0 || r.Floor != nil && *r.Floor <= 0 {
			t.Errorf("%s was not measured: %+v", name, r)
		}
	}
	if want := 20; len(measured) != want {
		t.Errorf("%d figures, not %d", len(measured), want)
	}
}

// TestStreamsMayBeCutAnywhere feeds a response in pieces of every length.
func TestStreamsMayBeCutAnywhere(t *testing.T) {
	stream := []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" +
		"14\r\ndata: ts=12;xx\n\ndata\r\n" + // the chunks cut a marker as well
		"7\r\n: tts=3\r\n" +
		"a\r\n4;tss\n\nts=\r\n" +
		"0\r\n\r\n")
	want := []int64{12, 34}
	for size := 1; size <= len(stream); size++ {
		var c conn
		var stamps []int64
		begun := false
		for b := range slices.Chunk(stream, size) {
			if !begun {
				if b, begun = c.head.scan(b); !begun {
					continue
				}
			}
			for len(b) > 0 {
				var piece []byte
				var err error
				if piece, b, err = c.body.next(b); err != nil {
					t.Fatalf("in pieces of %d: %v", size, err)
				}
				stamps = c.stamps.scan(piece, stamps)
			}
		}
		if !c.head.ok() || !slices.Equal(stamps, want) {
			t.Fatalf("in pieces of %d: head %q, stamps %v, not %v", size, c.head.status, stamps, want)
		}
	}
}

// TestFollowersTellWhatIsMissing breaks a stream in each way that resume counts.
func TestFollowersTellWhatIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		stamps                             []int64
		missing                            int
		duplicates, disordered, unexpected int64
	}{
		"lost":         {[]int64{2, 4}, missed - 2, 0, 0, 0},
		"twice":        {[]int64{2, 3, 3}, missed - 2, 1, 0, 0},
		"out of order": {[]int64{3, 2}, missed - 2, 0, 1, 0},
		"seen before":  {[]int64{1, 2}, missed - 1, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := follower{of: &resumption{cut: 1, second: true}, highest: 1}
			for _, stamp := range c.stamps {
				event := fmt.Sprintf("id: a-%d\ndata: ts=%d;xx\n\n", stamp, stamp)
				f.take([]byte(event[:len(event)/2]))
				f.take([]byte(event[len(event)/2:]))
			}
			if missing := missed - f.got; missing != c.missing || f.duplicates != c.duplicates || f.disordered != c.disordered || f.unexpected != c.unexpected {
				t.Errorf("missing %d, duplicates %d, disordered %d, unexpected %d; want %+v", missing, f.duplicates, f.disordered, f.unexpected, c)
			}
		})
	}
}

func TestQuantilesAreUpperBounds(t *testing.T) {
	var h histogram
	for i := range int64(1000) {
		h.add(i * 1e6)
	}
	for _, q := range []float64{.5, .99, 1} {
		exact := q*1000 - 1
		if got := h.quantile(q); got < exact || got > exact*1.02 {
			t.Errorf("quantile %g is %g ms, not %g", q, got, exact)
		}
	}
}
