// Package reactor holds many connections in one epoll set each (Linux): a
// descriptor that costs no goroutine, no buffer and no timer while nothing
// happens on it.
//
// A Loop belongs to one goroutine. Only Wake may be called from others.
package reactor
