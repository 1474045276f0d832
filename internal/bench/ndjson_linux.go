package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Lines is a load of one POST whose body is lines, each an event.
type lines struct {
	consumers int
	rate      float64 // lines a second; 0 is as fast as it goes
}

const (
	linesUnderWay = 256
	lineSize      = 100 // bytes of data
)

func (l lines) run(b *bed) (sample, error) {
	server, err := b.start()
	if err != nil {
		return nil, err
	}
	defer server.stop()
	r := &reader{requests: subscribeRequests(1), window: 64, ordered: true}
	if err := r.follow(server.addr, l.consumers); err != nil {
		return nil, err
	}
	defer r.close()
	post, err := openPost(server.addr, channelName(0))
	if err != nil {
		return nil, err
	}
	defer post.close()

	warm, err := l.publish(post, r, b.scale.warmup)
	if err != nil {
		return nil, err
	}
	before, err := server.usage()
	if err != nil {
		return nil, err
	}
	p, err := l.publish(post, r, b.scale.load)
	if err != nil {
		return nil, err
	}
	after, err := server.usage()
	if err != nil {
		return nil, err
	}
	cpu := float64((after.cpu - before.cpu).Microseconds())
	return sample{
		"cpu a delivery": cpu / float64(p.delivered.Load()),
		"publishes":      float64(p.published.Load()) / p.took.Seconds(),
		"loss":           float64(p.lost()),
		lostKey:          float64(warm.lost() + p.lost()),
	}, r.err()
}

// publish sends lines for d, and waits for the deliveries.
func (l lines) publish(post *post, r *reader, d time.Duration) (*publishing, error) {
	p := &publishing{}
	p.since = now()
	r.tally.Store(&p.tally)
	consumers := int64(l.consumers)
	start := time.Now()
	moved, through := start, int64(-1)
	for time.Since(start) < d {
		sent, done := p.published.Load(), p.delivered.Load()/consumers
		if done != through {
			moved, through = time.Now(), done
		} else if sent > done && time.Since(moved) > patience {
			break // the rest is lost
		}
		room := linesUnderWay - (sent - done)
		if room < linesUnderWay/4 {
			room = 0 // a write of a few lines costs as much as one of many
		}
		if l.rate > 0 {
			room = min(room, int64(time.Since(start).Seconds()*l.rate)-sent)
		}
		if room <= 0 {
			nap(20 * time.Microsecond)
			continue
		}
		p.published.Add(room)
		p.expected.Add(room * consumers)
		if err := post.send(int(room)); err != nil {
			return nil, err
		}
	}
	p.took = time.Since(start)
	await(p.delivered.Load, p.expected.Load(), patience)
	r.tally.Store(nil)
	if p.delivered.Load() == 0 {
		return nil, errors.Join(errors.New("nothing was delivered"), r.err())
	}
	return p, nil
}

// A post is a request without an end.
type post struct {
	conn           net.Conn
	stamp          int64
	content, chunk []byte
	answered       chan struct{} // closed when no more answers come
}

func openPost(addr, channel string) (*post, error) {
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		return nil, err
	}
	p := &post{conn: conn, answered: make(chan struct{})}
	_, err = fmt.Fprintf(conn, "POST /%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n", channel)
	if err != nil {
		conn.Close()
		return nil, err
	}
	// What a line is answered does not matter: who gets it is counted.
	go func() {
		defer close(p.answered)
		io.Copy(io.Discard, struct{ io.Reader }{conn})
	}()
	return p, nil
}

// send writes n lines as one chunk.
func (p *post) send(n int) error {
	p.content = p.content[:0]
	at := now()
	for range n {
		p.stamp = max(p.stamp+1, at)
		p.content = append(p.content, `{"data":"`...)
		p.content = appendData(p.content, p.stamp, lineSize)
		p.content = append(p.content, "\"}\n"...)
	}
	p.chunk = append(strconv.AppendInt(p.chunk[:0], int64(len(p.content)), 16), "\r\n"...)
	p.chunk = append(append(p.chunk, p.content...), "\r\n"...)
	p.conn.SetWriteDeadline(time.Now().Add(2 * patience))
	_, err := p.conn.Write(p.chunk)
	return err
}

// close ends the request and waits for the end of the answers.
func (p *post) close() {
	io.Copy(p.conn, strings.NewReader("0\r\n\r\n"))
	p.conn.SetReadDeadline(time.Now().Add(time.Second))
	p.conn.(*net.TCPConn).CloseWrite()
	<-p.answered
	p.conn.Close()
}
