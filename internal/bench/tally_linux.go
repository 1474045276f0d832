package main

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// A tally is what all consumers have got since it began.
type tally struct {
	since     int64 // stamps before that belong to an earlier tally
	delivered atomic.Int64
	last      atomic.Int64 // when the newest delivery came
	latency   histogram
}

// now is the time in nanoseconds since 1970. It does not jump.
func now() int64 { return stampOf(time.Now()) }

func stampOf(t time.Time) int64 { return began.UnixNano() + int64(t.Sub(began)) }

var began = time.Now()

// A histogram has 64 buckets for each power of two, so that a quantile is right
// to one in 64.
type histogram [64 * 59]atomic.Int64

func (h *histogram) add(v int64) {
	v = max(v, 0)
	shift := max(bits.Len64(uint64(v))-7, 0)
	h[shift*64+int(v>>shift)].Add(1)
}

// quantile is an upper bound for that part of the values, in milliseconds.
func (h *histogram) quantile(q float64) float64 {
	total := int64(0)
	for i := range h {
		total += h[i].Load()
	}
	seen := int64(0)
	for i := range h {
		if seen += h[i].Load(); seen > 0 && float64(seen) >= q*float64(total) {
			shift := max(i/64-1, 0)
			return float64(int64(i-shift*64+1)<<shift) / 1e6
		}
	}
	return 0
}

// await waits until a count has reached want, or has stood still for so long.
func await(count func() int64, want int64, quiet time.Duration) bool {
	last, moved := int64(-1), time.Now()
	for {
		n := count()
		if n >= want {
			return true
		}
		if n != last {
			last, moved = n, time.Now()
		} else if time.Since(moved) > quiet {
			return false
		}
		time.Sleep(200 * time.Microsecond)
	}
}
