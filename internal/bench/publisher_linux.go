package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"strconv"
	"time"
)

// A publisher posts events over one connection.
type publisher struct {
	conn    net.Conn
	answers *bufio.Reader
	request []byte
	data    []byte
}

func newPublisher(addr string) (*publisher, error) {
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		return nil, err
	}
	return &publisher{conn: conn, answers: bufio.NewReader(conn)}, nil
}

func (p *publisher) close() { p.conn.Close() }

// publish posts an event with a stamp, and waits for the answer.
func (p *publisher) publish(channel string, stamp int64, size int) error {
	p.data = appendData(p.data[:0], stamp, size)
	p.request = append(p.request[:0], "POST /"...)
	p.request = append(p.request, channel...)
	p.request = append(p.request, " HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: "...)
	p.request = strconv.AppendInt(p.request, int64(len(p.data)), 10)
	p.request = append(p.request, "\r\n\r\n"...)
	p.request = append(p.request, p.data...)
	p.conn.SetDeadline(time.Now().Add(2 * patience))
	if _, err := p.conn.Write(p.request); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if err := p.answer(); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// answer reads one response, which has a Content-Length.
func (p *publisher) answer() error {
	line, err := p.answers.ReadSlice('\n')
	if err != nil {
		return err
	}
	status := string(bytes.TrimSpace(line))
	length := -1
	for {
		if line, err = p.answers.ReadSlice('\n'); err != nil {
			return err
		}
		name, value, found := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		if !found {
			break
		}
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return fmt.Errorf("%q without a Content-Length", status)
	}
	if _, err := p.answers.Discard(length); err != nil {
		return err
	}
	if len(status) < 10 || status[9] != '2' {
		return fmt.Errorf("answered with %q", status)
	}
	return nil
}

// appendData appends the data of an event: a stamp, filled up to size bytes.
func appendData(b []byte, stamp int64, size int) []byte {
	from := len(b)
	b = append(strconv.AppendInt(append(b, stampPrefix...), stamp, 10), ';')
	for len(b)-from < size {
		b = append(b, 'x')
	}
	return b
}
