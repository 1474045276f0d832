package main

import (
	"errors"
	"time"
)

// The loads of consumers to whom nothing is published.

// runIdle connects consumers to one server, then more to a fresh one. What a
// consumer takes is the slope between the two.
func runIdle(b *bed) (sample, error) {
	most := min(b.scale.of(19000), b.scale.capacity)
	few := most * 10 / 19
	var cpu time.Duration
	var private [2]int64
	for i, n := range [2]int{few, most} {
		connect, memory, err := idle(b, n)
		if err != nil {
			return nil, err
		}
		cpu += connect
		private[i] = memory
	}
	return sample{
		"bytes":         float64(private[1]-private[0]) / float64(most-few),
		"cpu a connect": float64(cpu.Microseconds()) / float64(few+most),
	}, nil
}

// idle returns what it cost a server to connect n consumers, and the memory that
// it has then.
func idle(b *bed, n int) (connect time.Duration, private int64, err error) {
	server, err := b.start()
	if err != nil {
		return 0, 0, err
	}
	defer server.stop()
	before, err := server.usage()
	if err != nil {
		return 0, 0, err
	}
	r := &reader{requests: subscribeRequests(b.scale.of(1000)), window: 64}
	if err := r.follow(server.addr, n); err != nil {
		return 0, 0, err
	}
	defer r.close()
	connected, err := server.usage()
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(b.scale.settle)
	settled, err := server.usage()
	return connected.cpu - before.cpu, settled.private, errors.Join(err, r.err())
}

// runChurn connects, reads the head, closes and begins again.
func runChurn(b *bed) (sample, error) {
	server, err := b.start()
	if err != nil {
		return nil, err
	}
	defer server.stop()
	const atATime = 64
	r := &reader{requests: subscribeRequests(b.scale.of(1000)), window: atATime, churn: true}
	if err := r.open(server.addr, atATime); err != nil {
		return nil, err
	}
	defer r.close()
	time.Sleep(b.scale.warmup)
	var at [3]usage // at the beginning, in the middle and at the end
	var ready [3]int64
	for i := range at {
		if i > 0 {
			time.Sleep(b.scale.load / 2)
		}
		ready[i] = r.ready.Load()
		if at[i], err = server.usage(); err != nil {
			return nil, err
		}
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	connects := ready[2] - ready[0]
	if connects == 0 {
		return nil, errors.New("nobody was answered")
	}
	return sample{
		"cpu a connect": float64((at[2].cpu - at[0].cpu).Microseconds()) / float64(connects),
		"growth":        megabytes(at[2].rss - at[1].rss),
	}, nil
}
