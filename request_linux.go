package eventsource

import (
	"bytes"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
)

// A requestReader reads requests that have come whole. It uses the same memory
// for each.
type requestReader struct {
	request http.Request
	header  http.Header
	values  []string
	lines   []headerLine
}

// A headerLine is where the name and the value of a header stand in a head.
type headerLine struct{ name, nameEnd, value, valueEnd int }

// read returns the request that b is, as net/http's server would give it to a
// handler, and its body, if it leaves nothing to decide (plainRequest). Everything
// else is nil and net/http's to judge. The request holds until the next read.
func (q *requestReader) read(b []byte) (*http.Request, []byte) {
	head, ok := q.plainRequest(b)
	if !ok {
		return nil, nil
	}
	// Of the target a channel's name may be kept, so it is a string of its own.
	line, _, _ := bytes.Cut(b[:head], []byte("\r\n"))
	method, rest, _ := strings.Cut(string(line), " ")
	target, proto, _ := strings.Cut(rest, " ")
	if proto != "HTTP/1.1" {
		return nil, nil
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, nil
	}
	if q.header == nil {
		q.header = http.Header{}
	}
	clear(q.header)
	q.values = q.values[:0]
	text := string(b[len(line):head])
	host := ""
	for _, l := range q.lines {
		name := textproto.CanonicalMIMEHeaderKey(text[l.name-len(line) : l.nameEnd-len(line)])
		value := text[l.value-len(line) : l.valueEnd-len(line)]
		if name == "Host" {
			host = value
			continue
		}
		if earlier, ok := q.header[name]; ok {
			q.header[name] = append(earlier, value)
			continue
		}
		q.values = append(q.values, value)
		n := len(q.values)
		q.header[name] = q.values[n-1 : n : n]
	}
	if _, ok := q.header["Cache-Control"]; !ok && q.header.Get("Pragma") == "no-cache" {
		q.header["Cache-Control"] = []string{"no-cache"} // RFC 9111, 5.4
	}
	q.request = http.Request{
		Method: method, URL: u, Proto: proto, ProtoMajor: 1, ProtoMinor: 1,
		Header: q.header, Host: host, RequestURI: target,
		ContentLength: int64(len(b) - head), Body: http.NoBody,
	}
	return &q.request, b[head:]
}

// plainRequest returns how long the head of a request is, if b is the whole of
// one (RFC 9112) that can be read in one way only: a GET without a body or a
// POST with its length, of visible ASCII, with one Host, and nothing about the
// connection itself.
func (q *requestReader) plainRequest(b []byte) (head int, ok bool) {
	q.lines = q.lines[:0]
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
		begin := head
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
		value := bytes.TrimSpace(line[colon+1:])
		valueBegin := begin + colon + 1
		for valueBegin < begin+len(line) && b[valueBegin] == ' ' {
			valueBegin++
		}
		q.lines = append(q.lines, headerLine{begin, begin + colon, valueBegin, valueBegin + len(value)})
		switch name := line[:colon]; {
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
