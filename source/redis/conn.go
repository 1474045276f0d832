package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	dialTimeout = 5 * time.Second
	readTimeout = 30 * time.Second

	// closing is how long what is left to acknowledge may take at the end.
	closing = 2 * time.Second

	// keepAlive finds that the other side of a connection has gone without a word.
	keepAlive = 15 * time.Second
)

// parseURL reads where the server is. Its error repeats nothing of what may be a password.
func parseURL(url string) (*redis.Options, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("url: it is no URL of Redis; give one such as redis://localhost:6379/0, rediss://user:password@localhost or unix:///run/redis/redis.sock?db=0")
	}
	return o, nil
}

// A line is one connection to Redis, and the client that speaks over it. The client dials
// none itself: it would dial again and again, and log that where nobody has asked for it.
type line struct {
	*redis.Client
	conn *watchedConn
}

// connect opens a line.
func (s *Source) connect(ctx context.Context) (*line, error) {
	dialer := net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}
	conn, err := dialer.DialContext(ctx, s.options.Network, s.options.Addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if s.options.TLSConfig != nil {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		secured := tls.Client(conn, s.options.TLSConfig)
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, fmt.Errorf("connect: %w", err)
		}
		conn = secured
	}
	watched := &watchedConn{Conn: conn}
	o := *s.options
	o.Dialer = func(context.Context, string, string) (net.Conn, error) { return watched, nil } // a second time it is closed
	o.MaxRetries, o.DialerRetries = -1, 1
	o.PoolSize, o.MinIdleConns, o.PipelinePoolSize = 1, 0, -1
	o.ConnMaxIdleTime, o.ConnMaxLifetime = -1, 0
	o.DisableIdentity = true // a name that is set belongs to who set it
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if o.ReadTimeout == 0 {
		o.ReadTimeout = readTimeout
	}
	return &line{redis.NewClient(&o), watched}, nil
}

// close ends the line, whatever is under way on it.
func (l *line) close() {
	l.conn.Close()
	l.Client.Close()
}

// A watchedConn knows for how long a read has been waiting.
type watchedConn struct {
	net.Conn
	waiting atomic.Int64 // since when, in nanoseconds of the clock; 0: nobody reads
}

// Read reads from the connection.
func (c *watchedConn) Read(b []byte) (int, error) {
	c.waiting.Store(time.Now().UnixNano())
	defer c.waiting.Store(0)
	return c.Conn.Read(b)
}

// silence is for how long who reads has got nothing.
func (c *watchedConn) silence() time.Duration {
	since := c.waiting.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}
