package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
)

// missed is how many events are published while nobody is connected.
const missed = 100

// A resumption is what the followers of one channel share. The stamps of its
// events count up: cut is seen by all, those after it are missed.
type resumption struct {
	second    bool         // the followers have come back
	cut       int64        // the stamp of the event before that
	named     atomic.Int64 // followers that have an id to come back with
	complete  atomic.Int64 // followers that have all they had missed
	delivered atomic.Int64
	last      atomic.Int64 // when the newest follower became complete
}

// A follower parses the stream of one consumer.
type follower struct {
	of   *resumption
	line []byte // begun, not ended

	// Of the event that has begun.
	id    string
	stamp int64

	lastID                             string
	highest                            int64
	seen                               [missed/64 + 1]uint64 // what it had missed, by stamp
	got                                int
	duplicates, disordered, unexpected int64
}

// take parses a piece of the stream, line by line.
func (f *follower) take(b []byte) {
	for len(b) > 0 {
		line, rest, ended := bytes.Cut(b, []byte("\n"))
		if !ended {
			f.line = append(f.line, b...)
			return
		}
		if len(f.line) > 0 {
			f.line = append(f.line, line...)
			line = f.line
		}
		f.field(line)
		f.line, b = f.line[:0], rest
	}
}

func (f *follower) field(line []byte) {
	if len(line) == 0 {
		f.event()
		return
	}
	name, value, _ := bytes.Cut(line, []byte(": "))
	switch string(name) {
	case "id":
		f.id = string(value)
	case "data":
		digits, _, _ := bytes.Cut(bytes.TrimPrefix(value, []byte(stampPrefix)), []byte(";"))
		f.stamp, _ = strconv.ParseInt(string(digits), 10, 64)
	}
}

// event is the blank line that ends an event, or an id alone.
func (f *follower) event() {
	if f.id != "" {
		f.lastID = f.id
	}
	stamp := f.stamp
	f.id, f.stamp = "", 0
	if stamp == 0 {
		return
	}
	if !f.of.second {
		if f.highest = max(f.highest, stamp); stamp == f.of.cut && f.lastID != "" {
			f.of.named.Add(1)
		}
		return
	}
	f.of.delivered.Add(1)
	place := stamp - f.of.cut - 1
	switch {
	case place < 0 || place >= missed:
		f.unexpected++
	case f.seen[place/64]&(1<<(place%64)) != 0:
		f.duplicates++
	default:
		if stamp < f.highest {
			f.disordered++
		}
		f.highest = max(f.highest, stamp)
		f.seen[place/64] |= 1 << (place % 64)
		if f.got++; f.got == missed {
			f.of.last.Store(now())
			f.of.complete.Add(1)
		}
	}
}

// runResume cuts all consumers of a channel off, publishes, and has them come
// back at once.
func runResume(b *bed) (sample, error) { return runReturn(b, 10000, false) }

// runRestart is runResume with a server that is killed before they come back.
func runRestart(b *bed) (sample, error) { return runReturn(b, 5000, true) }

func runReturn(b *bed, consumers int, restart bool) (sample, error) {
	n := min(b.scale.of(consumers), b.scale.capacity)
	server, err := b.start()
	if err != nil {
		return nil, err
	}
	defer server.stop()
	pub, err := newPublisher(server.addr)
	if err != nil {
		return nil, err
	}
	defer pub.close()

	of := &resumption{cut: 1}
	followers := make([]follower, n)
	for i := range followers {
		followers[i].of = of
	}
	r := &reader{requests: subscribeRequests(1), window: 64, abort: true, followers: followers}
	if err := r.follow(server.addr, n); err != nil {
		return nil, err
	}
	err = pub.publish(channelName(0), of.cut, 100)
	if err == nil && !await(of.named.Load, int64(n), patience) {
		err = fmt.Errorf("%d of %d consumers got no event with an id", int64(n)-of.named.Load(), n)
	}
	time.Sleep(b.scale.settle / 4)
	idle, usageErr := server.usage()
	r.close()
	if err = errors.Join(err, usageErr); err != nil {
		return nil, err
	}

	for i := range int64(missed) {
		if err := pub.publish(channelName(0), of.cut+1+i, 100); err != nil {
			return nil, err
		}
	}
	if restart {
		server.kill()
		if server, err = b.start(); err != nil {
			return nil, err
		}
		defer server.stop()
		if idle, err = server.usage(); err != nil {
			return nil, err
		}
	}
	time.Sleep(b.scale.settle / 4)
	of.second = true
	requests := make([][]byte, n)
	for i := range followers {
		requests[i] = subscribeRequest(channelName(0), followers[i].lastID)
		followers[i] = follower{of: of, highest: of.cut}
	}
	server.forgetPeak()
	start := now()
	r = &reader{requests: requests, window: n, abort: true, followers: followers}
	if err := r.follow(server.addr, n); err != nil {
		return nil, err
	}
	await(of.delivered.Load, int64(n)*missed, patience)
	await(of.complete.Load, int64(n), patience)
	time.Sleep(100 * time.Millisecond) // for what should not come
	after, err := server.usage()
	r.close()
	if err = errors.Join(err, r.err()); err != nil {
		return nil, err
	}
	s := sample{
		"seconds": time.Duration(of.last.Load() - start).Seconds(),
		"peak":    megabytes(after.peak - idle.rss),
	}
	for i := range followers {
		f := &followers[i]
		s["missing"] += float64(missed - f.got)
		s["duplicates"] += float64(f.duplicates + f.unexpected)
		s["disordered"] += float64(f.disordered)
	}
	s[lostKey] = s["missing"] + s["duplicates"] + s["disordered"]
	return s, nil
}
