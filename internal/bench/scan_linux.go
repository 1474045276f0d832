package main

import (
	"bytes"
	"errors"
)

// A response begins with a head, then comes its body in chunks. What is here
// takes it apart and may be cut anywhere by reads.

// A headScanner looks for the end of a response's head.
type headScanner struct {
	status [12]byte // "HTTP/1.1 200"
	n      uint8    // bytes of it that have come
	ends   uint8    // line ends in a row
}

// scan returns what follows the head, and whether that has begun.
func (h *headScanner) scan(b []byte) (rest []byte, done bool) {
	for i, c := range b {
		if int(h.n) < len(h.status) {
			h.status[h.n] = c
			h.n++
		}
		switch c {
		case '\n':
			if h.ends++; h.ends == 2 {
				return b[i+1:], true
			}
		case '\r':
		default:
			h.ends = 0
		}
	}
	return nil, false
}

func (h *headScanner) ok() bool { return string(h.status[9:]) == "200" }

// A chunkReader takes the chunked transfer coding off a body (RFC 9112, 7.1).
type chunkReader struct {
	state uint8
	left  int // bytes of the chunk to come, or its size as far as read
}

const (
	inSize = iota
	inChunk
	afterChunk
	afterBody
)

var errChunk = errors.New("a malformed chunk")

// next returns the first piece of content in b, and the bytes after it.
func (r *chunkReader) next(b []byte) (piece, rest []byte, err error) {
	for len(b) > 0 {
		c := b[0]
		switch {
		case r.state == inChunk:
			n := min(r.left, len(b))
			if r.left -= n; r.left == 0 {
				r.state = afterChunk
			}
			return b[:n], b[n:], nil
		case r.state == afterBody:
			return nil, nil, nil
		case c == '\r':
		case c == '\n' && r.state == afterChunk:
			r.state = inSize
		case c == '\n':
			r.state = inChunk
			if r.left == 0 {
				r.state = afterBody
			}
		case r.state == inSize && r.left < 1<<27:
			digit := bytes.IndexByte([]byte("0123456789abcdef"), c|0x20)
			if digit < 0 {
				return nil, nil, errChunk
			}
			r.left = r.left<<4 | digit
		default:
			return nil, nil, errChunk
		}
		b = b[1:]
	}
	return nil, nil, nil
}

// A stampScanner finds the stamps of events, "ts=<digits>;", in a body's content.
type stampScanner struct {
	matched uint8 // bytes of "ts=" that have come
	value   int64
}

const stampPrefix = "ts="

// scan appends the stamps that end in b to stamps.
func (s *stampScanner) scan(b []byte, stamps []int64) []int64 {
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case s.matched == 0:
			j := bytes.IndexByte(b[i:], stampPrefix[0])
			if j < 0 {
				return stamps
			}
			i += j
			s.matched, s.value = 1, 0
		case int(s.matched) < len(stampPrefix) && c == stampPrefix[s.matched]:
			s.matched++
		case int(s.matched) == len(stampPrefix) && '0' <= c && c <= '9':
			s.value = s.value*10 + int64(c-'0')
		case int(s.matched) == len(stampPrefix) && c == ';':
			stamps = append(stamps, s.value)
			s.matched = 0
		case c == stampPrefix[0]:
			s.matched, s.value = 1, 0
		default:
			s.matched = 0
		}
	}
	return stamps
}
