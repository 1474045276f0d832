package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// A Problem is a refusal: the server's problem document (RFC 9457), or what there is to
// say where it sent none.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`  // the status in words
	Status int    `json:"status"` // the HTTP status
	Detail string `json:"detail"` // what was wrong, and what would be right
	// Outcome is "unknown" where a publish may have happened all the same.
	Outcome string `json:"outcome,omitempty"`

	// RetryAfter is when a repeat may succeed; 0 where the server says nothing of it.
	RetryAfter time.Duration `json:"-"`
	// Document tells that the server sent the problem, and not something before it.
	Document bool `json:"-"`
}

// Error returns the detail.
func (p *Problem) Error() string { return p.Detail }

// passing reports whether a repeat may succeed.
func (p *Problem) passing() bool {
	switch p.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// ReadProblem reads why an answer is a refusal, for who sends requests without a
// Client, such as for a stream.
func ReadProblem(res *http.Response) *Problem {
	body, err := io.ReadAll(io.LimitReader(res.Body, mostProblem))
	p := &Problem{}
	if err != nil || json.Unmarshal(body, p) != nil || p.Detail == "" {
		return noDocument(res, body)
	}
	p.Status, p.Document = res.StatusCode, true
	if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && seconds > 0 {
		p.RetryAfter = time.Duration(min(seconds, 1<<31)) * time.Second
	}
	return p
}

// noDocument is a refusal without a problem document.
func noDocument(res *http.Response, body []byte) *Problem {
	p := &Problem{Type: "about:blank", Title: http.StatusText(res.StatusCode), Status: res.StatusCode}
	switch {
	case p.Status == http.StatusBadRequest && bytes.HasPrefix(body, []byte("Client sent an HTTP request to an HTTPS server")):
		p.Detail = "the server speaks TLS: give a URL that begins with https://"
	case p.Status >= 300 && p.Status < 400:
		p.Detail = fmt.Sprintf("the server answered %s: give the URL that it redirects to, %s", res.Status, res.Header.Get("Location"))
	default:
		return noServer(res)
	}
	return p
}

// noServer is an answer that no EventSource server gives.
func noServer(res *http.Response) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(res.StatusCode), Status: res.StatusCode,
		Detail: fmt.Sprintf("the server answered %s: is an EventSource server at this URL?", res.Status)}
}
