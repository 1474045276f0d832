package eventsource

import (
	"bufio"
	"bytes"
	"net/http"
	"strconv"
)

// A requestReader reads requests that have come whole.
type requestReader struct {
	bytes bytes.Reader
	buf   *bufio.Reader
}

func newRequestReader() requestReader {
	return requestReader{buf: bufio.NewReaderSize(nil, requestBytes)}
}

// read returns the request that b is, and its body, if it leaves nothing to
// decide (plainRequest). Everything else is nil and net/http's to judge.
func (q *requestReader) read(b []byte) (*http.Request, []byte) {
	head, ok := plainRequest(b)
	if !ok {
		return nil, nil
	}
	q.bytes.Reset(b[:head])
	q.buf.Reset(&q.bytes)
	r, err := http.ReadRequest(q.buf)
	if err != nil || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Host == "" || r.ContentLength != int64(len(b)-head) {
		return nil, nil
	}
	r.Body = http.NoBody
	return r, b[head:]
}

// plainRequest returns how long the head of a request is, if b is the whole of
// one (RFC 9112) that can be read in one way only: a GET without a body or a
// POST with its length, of visible ASCII, with one Host, and nothing about the
// connection itself.
func plainRequest(b []byte) (head int, ok bool) {
	post := bytes.HasPrefix(b, []byte("POST /"))
	if !post && !bytes.HasPrefix(b, []byte("GET /")) {
		return 0, false
	}
	hosts, length := 0, -1
	for first := true; ; first = false {
		i := bytes.IndexByte(b[head:], '\n')
		if i < 1 || b[head+i-1] != '\r' {
			return 0, false
		}
		line := b[head : head+i-1]
		head += i + 1
		if len(line) == 0 {
			break
		}
		for _, c := range line {
			if c < ' ' || c > '~' {
				return 0, false
			}
		}
		if first {
			continue
		}
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 {
			return 0, false
		}
		for _, c := range line[:colon] {
			if !nameByte[c] || c == '@' || c == ':' {
				return 0, false
			}
		}
		switch name, value := line[:colon], bytes.TrimSpace(line[colon+1:]); {
		case bytes.EqualFold(name, []byte("Host")):
			if hosts++; hosts > 1 || !plainHost(value) {
				return 0, false
			}
		case bytes.EqualFold(name, []byte("Connection")):
			if !bytes.EqualFold(value, []byte("keep-alive")) {
				return 0, false
			}
		case post && bytes.EqualFold(name, []byte("Content-Length")):
			n, err := strconv.ParseUint(string(value), 10, 16)
			if length >= 0 || err != nil {
				return 0, false
			}
			length = int(n)
		case len(name) > 1 && name[0]|0x20 == 't' && bytes.EqualFold(name, []byte("Transfer-Encoding")),
			bytes.EqualFold(name, []byte("Content-Length")),
			bytes.EqualFold(name, []byte("Expect")),
			bytes.EqualFold(name, []byte("Upgrade")):
			return 0, false
		}
	}
	if post && length < 0 {
		return 0, false
	}
	return head, hosts == 1 && len(b)-head == max(length, 0)
}

// plainHost reports whether host is a name or an address, with a port or not.
func plainHost(host []byte) bool {
	for _, c := range host {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || bytes.IndexByte([]byte(".-_:[]"), c) >= 0) {
			return false
		}
	}
	return len(host) > 0
}
