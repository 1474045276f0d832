package brokertest

import (
	"crypto/tls"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// A Proxy passes connections on to a broker, until they are cut.
type Proxy struct {
	// Set when made.
	to       string
	listener net.Listener
	passing  sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	shut   bool
	paused chan struct{} // closed when bytes from the broker pass again; nil: they pass
}

// Through returns a proxy to the broker of a URL, and the URL through it. It ends with
// the test.
func Through(t testing.TB, broker string) (*Proxy, string) {
	t.Helper()
	return through(t, broker, listen(t))
}

// ThroughTLS returns one that speaks TLS, by the files of a certificate and its key, for
// a broker that does not. The URL has the broker's scheme.
func ThroughTLS(t testing.TB, broker, cert, key string) (*Proxy, string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return through(t, broker, tls.NewListener(listen(t), &tls.Config{Certificates: []tls.Certificate{pair}}))
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func through(t testing.TB, broker string, l net.Listener) (*Proxy, string) {
	t.Helper()
	u, err := url.Parse(broker)
	if err != nil {
		l.Close()
		t.Fatal(err)
	}
	p := &Proxy{to: u.Host, listener: l, conns: map[net.Conn]struct{}{}}
	p.passing.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.Resume()
		p.Shut()
		p.passing.Wait()
	})
	u.Host = l.Addr().String()
	return p, u.String()
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.passing.Go(func() { p.pass(c) })
	}
}

// pass passes one connection on.
func (p *Proxy) pass(c net.Conn) {
	defer c.Close()
	if !p.keep(c) {
		return
	}
	defer p.drop(c)
	to, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer to.Close()
	if !p.keep(to) {
		return
	}
	defer p.drop(to)
	var both sync.WaitGroup
	both.Go(func() {
		io.Copy(to, c)
		to.Close()
		c.Close()
	})
	both.Go(func() {
		p.back(c, to)
		to.Close()
		c.Close()
	})
	both.Wait()
}

// back passes on what the broker says, while that is not paused.
func (p *Proxy) back(c, from net.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		paused := p.paused
		p.mu.Unlock()
		if paused != nil {
			<-paused
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// keep notes a connection that can be cut; it reports false when the proxy is shut.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.shut {
		p.conns[c] = struct{}{}
	}
	return !p.shut
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// Cut cuts the connections that there are. New ones pass.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// Shut cuts the connections, and passes no new ones until Open.
func (p *Proxy) Shut() {
	p.mu.Lock()
	p.shut = true
	p.mu.Unlock()
	p.Cut()
}

// Open has connections pass again.
func (p *Proxy) Open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = false
}

// Pause holds back what the broker says, as if it hung, until Resume.
func (p *Proxy) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused == nil {
		p.paused = make(chan struct{})
	}
}

// Resume passes on what was held back.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused != nil {
		close(p.paused)
		p.paused = nil
	}
}
