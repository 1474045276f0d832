package eventsource

import (
	"bufio"
	"net/http"
)

// FrontRequest returns the request that a front takes itself, nil when it leaves
// it to net/http.
func FrontRequest(s *Server, head []byte) *http.Request {
	f := &front{s: s, request: bufio.NewReader(nil)}
	return f.stream(head)
}
