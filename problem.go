package eventsource

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"time"
)

// A Problem is a refusal: a problem document (RFC 9457) over HTTP, an error in
// Go. It says what was wrong and what would be right.
type Problem struct {
	Type   string `json:"type"`   // always "about:blank": Title is the status's
	Title  string `json:"title"`  // the status in words
	Status int    `json:"status"` // the HTTP status
	Detail string `json:"detail"` // what was wrong, and what would be right
	// Outcome is "unknown" where a publish may have happened all the same.
	Outcome string `json:"outcome,omitempty"`

	// RetryAfter is when a repeat may succeed; 0 when it won't.
	RetryAfter time.Duration `json:"-"`

	header http.Header // besides Retry-After
	cause  error
	limit  string // that was exceeded, as the metrics say it
}

// newProblem returns the refusal with a status and its reason.
func newProblem(status int, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

// with adds a header of the answer and returns p.
func (p *Problem) with(key, value string) *Problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(key, value)
	return p
}

// after says when a repeat may succeed and returns p.
func (p *Problem) after(d time.Duration) *Problem {
	p.RetryAfter = d
	return p
}

// limitedBy says which limit refuses and returns p.
func (p *Problem) limitedBy(limit string) *Problem {
	p.limit = limit
	return p
}

// Error returns the detail.
func (p *Problem) Error() string { return p.Detail }

// Unwrap returns what caused the refusal, such as ErrUnavailable.
func (p *Problem) Unwrap() error { return p.cause }

// passing reports whether the refusal will pass by itself.
func (p *Problem) passing() bool {
	return p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable
}

// ServeHTTP answers with the problem document.
func (p *Problem) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := json.Marshal(p)
	if err != nil {
		panic("eventsource: a problem of strings can't fail to encode: " + err.Error())
	}
	h := w.Header()
	maps.Copy(h, p.header)
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.RetryAfter+time.Second-1)/time.Second)))
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		w.Write(append(body, '\n'))
	}
}
