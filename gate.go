package eventsource

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

const (
	// gatePlaces is how many connections may be between accept and their first
	// handler: each costs net/http's buffers and a goroutine.
	gatePlaces = 512
	// gateWait is how long a silent one keeps its place, so that few of them
	// can't keep everybody out.
	gateWait = 250 * time.Millisecond
)

// A gate is a listener that accepts no more connections than there are places;
// one gives its place back when its first request has reached its handler.
type gate struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newGate(l net.Listener) *gate {
	return &gate{Listener: l, places: make(chan struct{}, gatePlaces), closed: make(chan struct{})}
}

// Accept waits for a place, then for a connection. What is not exactly a TCP
// connection takes none: net/http has to see its type.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case g.places <- struct{}{}:
	case <-g.closed:
		return nil, net.ErrClosed
	}
	c, err := g.Listener.Accept()
	if err != nil {
		<-g.places
		return nil, err
	}
	gated := &gatedConn{gate: g}
	switch c := c.(type) {
	case *net.TCPConn:
		gated.TCPConn = c
	case *readConn:
		gated.TCPConn, gated.head = c.TCPConn, c.head
	default:
		<-g.places
		return c, nil
	}
	gated.timer = time.AfterFunc(gateWait, gated.release)
	return gated, nil
}

// Close closes the listener.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Listener.Close()
}

// A gatedConn holds a place until it is through or closed, or has been silent
// for gateWait.
type gatedConn struct {
	*net.TCPConn
	gate  *gate
	timer *time.Timer
	once  sync.Once
	head  []byte // what was read already
}

// A readConn is a connection of which something was read already.
type readConn struct {
	*net.TCPConn
	head []byte
}

// Read reads what was read already, then the connection.
func (c *gatedConn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		if c.head = c.head[n:]; len(c.head) == 0 {
			c.head = nil
		}
		return n, nil
	}
	return c.TCPConn.Read(b)
}

func (c *gatedConn) release() { c.once.Do(func() { <-c.gate.places }) }

func (c *gatedConn) through() {
	c.timer.Stop()
	c.release()
}

// Close closes the connection.
func (c *gatedConn) Close() error {
	c.through()
	return c.TCPConn.Close()
}

type gateKey struct{}

// gateContext lets a handler find its connection.
func gateContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if g, ok := c.(*gatedConn); ok {
		return context.WithValue(ctx, gateKey{}, g)
	}
	return ctx
}

// passGate gives the place of a request's connection back.
func passGate(ctx context.Context) {
	if c, ok := ctx.Value(gateKey{}).(*gatedConn); ok {
		c.through()
	}
}
