package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A bed is what a load runs on: how large it is to be, and how to get a server.
type bed struct {
	scale scale
	start func() (*child, error)
}

// A scale is how large and how long loads are.
type scale struct {
	part     int           // one in part of the consumers and channels
	load     time.Duration // of what is measured
	warmup   time.Duration // the same load before that
	settle   time.Duration // before memory is read
	capacity int           // of connections, by the limit of descriptors
}

// of is that part of n, which is at least two if n is.
func (s scale) of(n int) int { return min(n, max(n/s.part, 2)) }

// A sample is what one run of a load has measured, by the keys of figures. Under
// lostKey it has the events that were lost, or came twice or out of order.
type sample map[string]float64

const lostKey = "lost"

// channelName is the name of the i-th channel.
func channelName(i int) string { return "ch" + strconv.Itoa(i) }

// subscribeRequests follow so many channels in turn.
func subscribeRequests(channels int) [][]byte {
	requests := make([][]byte, channels)
	for i := range requests {
		requests[i] = subscribeRequest(channelName(i), "")
	}
	return requests
}

// A fanout is a load of consumers and publishers. It measures everything that
// can be said of deliveries.
type fanout struct {
	channels   int
	consumers  int // of each channel
	publishers int
	rate       float64 // events a second; 0 is as fast as they are answered
	window     int     // so many events may be under way when the next is published; 0 is any number
	size       int     // bytes of data
	everyone   bool    // publish to all, not to random channels
	stalled    int     // further consumers that never read
	stretch    int     // so many times as long as other loads; 0 is 1
}

// runDeliveries measures what a delivery costs without what its publish does: the
// difference between many consumers and one.
func (f fanout) runDeliveries(b *bed) (sample, error) {
	many, err := f.run(b)
	if err != nil {
		return nil, err
	}
	n := float64(b.scale.of(f.consumers))
	f.consumers = 1
	one, err := f.run(b)
	if err != nil {
		return nil, err
	}
	const key = "cpu a delivery"
	return sample{key: (many[key]*n - one[key]) / (n - 1), lostKey: many[lostKey] + one[lostKey]}, nil
}

func (f fanout) run(b *bed) (sample, error) {
	f.channels, f.stalled = b.scale.of(f.channels), b.scale.of(f.stalled)
	if f.channels == 1 {
		f.consumers = min(b.scale.of(f.consumers), b.scale.capacity-f.stalled)
	}
	f.channels = min(f.channels, b.scale.capacity/f.consumers)
	server, err := b.start()
	if err != nil {
		return nil, err
	}
	defer server.stop()
	if f.stalled > 0 {
		r := &reader{requests: subscribeRequests(1), window: 64, stalled: true}
		if err := r.follow(server.addr, f.stalled); err != nil {
			return nil, err
		}
		defer r.close()
	}
	r := &reader{requests: subscribeRequests(f.channels), window: 64, ordered: f.publishers == 1}
	if err := r.follow(server.addr, f.channels*f.consumers); err != nil {
		return nil, err
	}
	defer r.close()
	time.Sleep(b.scale.settle / 4)
	idle, err := server.usage()
	if err != nil {
		return nil, err
	}

	duration := b.scale.load * time.Duration(max(f.stretch, 1))
	warm, err := f.publish(server.addr, r, b.scale.warmup)
	if err != nil {
		return nil, err
	}
	server.forgetPeak()
	before, err := server.usage()
	if err != nil {
		return nil, err
	}
	p, err := f.publish(server.addr, r, duration)
	if err != nil {
		return nil, err
	}
	after, err := server.usage()
	if err != nil {
		return nil, err
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	delivered := float64(p.delivered.Load())
	cpu := float64((after.cpu - before.cpu).Microseconds())
	return sample{
		"cpu a delivery": cpu / delivered,
		"cpu a publish":  cpu / float64(p.published.Load()),
		"deliveries":     delivered / time.Duration(max(p.last.Load()-p.since, 1)).Seconds(),
		"publishes":      float64(p.published.Load()) / p.took.Seconds(),
		"p50":            p.latency.quantile(.5),
		"p99":            p.latency.quantile(.99),
		"peak":           megabytes(after.peak - idle.rss),
		lostKey:          float64(warm.lost() + p.lost()),
	}, nil
}

// A publishing is one stretch of publishing and what came of it.
type publishing struct {
	tally
	published atomic.Int64
	expected  atomic.Int64 // deliveries
	took      time.Duration
}

func (p *publishing) lost() int64 { return p.expected.Load() - p.delivered.Load() }

// publish publishes for d and waits for the deliveries.
func (f fanout) publish(addr string, r *reader, d time.Duration) (*publishing, error) {
	p := &publishing{}
	p.since = now()
	r.tally.Store(&p.tally)
	start := time.Now()
	errs := make([]error, f.publishers)
	var events atomic.Int64 // begun
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { errs[i] = f.publishFrom(addr, p, &events, start, start.Add(d)) })
	}
	all.Wait()
	p.took = time.Since(start)
	await(p.delivered.Load, p.expected.Load(), patience)
	r.tally.Store(nil)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if p.delivered.Load() == 0 {
		return nil, errors.Join(errors.New("nothing was delivered"), r.err())
	}
	return p, nil
}

// publishFrom publishes over one connection until end.
func (f fanout) publishFrom(addr string, p *publishing, events *atomic.Int64, start, end time.Time) error {
	pub, err := newPublisher(addr)
	if err != nil {
		return err
	}
	defer pub.close()
	receivers := int64(f.consumers)
	if f.everyone {
		receivers *= int64(f.channels)
	}
	stamp := int64(0)
	for {
		due := time.Now()
		if f.rate > 0 {
			due = start.Add(time.Duration(float64(events.Add(1)-1) / f.rate * 1e9))
			if wait := time.Until(due); wait > 0 && due.Before(end) {
				time.Sleep(wait)
				due = time.Now() // that it slept too long is not the server's fault
			}
		}
		if f.window > 0 {
			room := p.expected.Load() - int64(f.window)*receivers
			if !await(p.delivered.Load, room, patience) {
				return fmt.Errorf("%d deliveries did not come", p.lost())
			}
			due = time.Now()
		}
		if !due.Before(end) {
			return nil
		}
		channel := "all"
		if !f.everyone {
			channel = channelName(rand.IntN(f.channels))
		}
		stamp = max(stamp+1, stampOf(due))
		if err := pub.publish(channel, stamp, f.size); err != nil {
			return err
		}
		p.published.Add(1)
		p.expected.Add(receivers)
	}
}

func megabytes(n int64) float64 { return float64(n) / (1 << 20) }
