package eventsource

import (
	"bytes"
	"net/http"
	"time"
)

// A plainHead is the head of an answer that the reactor gives itself. While CORS
// adds nothing to it, it is kept for as long as its Date holds.
type plainHead struct {
	s      *Server
	header http.Header
	encode func(http.Header) []byte
	second int64 // of the Date in bytes
	bytes  []byte
}

// newStreamHead returns the head of a stream.
func (s *Server) newStreamHead() *plainHead {
	h := http.Header{"X-Content-Type-Options": {"nosniff"}}
	s.streamHead(h)
	return &plainHead{s: s, header: h, encode: func(h http.Header) []byte { return responseHead(h, false) }}
}

// newReceiptHead returns the head of the answer to a publish, without its length.
func (s *Server) newReceiptHead() *plainHead {
	h := http.Header{"X-Content-Type-Options": {"nosniff"}}
	answerHead(h)
	return &plainHead{s: s, header: h, encode: func(h http.Header) []byte {
		var b bytes.Buffer
		b.WriteString("HTTP/1.1 201 Created\r\nDate: " + time.Now().UTC().Format(http.TimeFormat) + "\r\n")
		h.Write(&b)
		return b.Bytes()
	}}
}

// of returns the head of the answer to a request.
func (p *plainHead) of(r *http.Request) []byte {
	cors := p.s.policy.Load().cross.cors
	if cors == nil {
		return p.at(time.Now().Unix())
	}
	h := headerOnly(p.header.Clone())
	cors.HandlerFunc(h, r)
	return p.encode(http.Header(h))
}

// at returns the head for a moment in Unix seconds, where CORS is off.
func (p *plainHead) at(second int64) []byte {
	if second != p.second {
		p.second, p.bytes = second, p.encode(p.header)
	}
	return p.bytes
}

// headerOnly is a response of which only the header is wanted.
type headerOnly http.Header

// Header returns it.
func (h headerOnly) Header() http.Header { return http.Header(h) }

// Write drops what is no header.
func (h headerOnly) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader does nothing.
func (h headerOnly) WriteHeader(int) {}
