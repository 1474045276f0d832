//go:build !linux

package eventsource

import "net"

// stalled is what a reactor would keep of a consumer whose socket is full; there
// is none here.
type stalled struct{}

type reactorWriter struct{}

// react reports that the connection can't be held by a reactor.
func (s *Server) react(*net.TCPConn, subscription) (bool, *Problem) { return false, nil }

// front returns what net/http is to accept from.
func (s *Server) front(l net.Listener) net.Listener { return l }

// limitSilence leaves it to the kernel when a silent peer is given up.
func (s *Server) limitSilence(*net.TCPConn) {}

const hasReactor = false
