package eventsource

import "net/http"

// FrontRequest returns the request that the reactor takes itself, nil when it
// leaves it to net/http.
func FrontRequest(s *Server, request []byte) (*http.Request, []byte) {
	var q requestReader
	r, body := q.read(request)
	if r == nil || !s.isChannel(r, nil) {
		return nil, nil
	}
	return r, body
}
