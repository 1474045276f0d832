package nats

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// patience is how long the server may take to answer.
	patience = 5 * time.Second
	// A connection on which nothing comes for two of these is lost.
	silence = 20 * time.Second
)

// A dial is how the library connects.
type dial func(network, address string) (net.Conn, error)

// Dial connects to an address.
func (d dial) Dial(network, address string) (net.Conn, error) { return d(network, address) }

// connect returns a connection, which calls fail when it is lost, and slow when too much
// waits. The library's own reconnecting is off: the server runs the source again.
func (s *Source) connect(ctx context.Context, fail context.CancelCauseFunc, slow func(*nats.Subscription)) (*nats.Conn, error) {
	var mu sync.Mutex
	var refused error
	connected := false
	dialer := func(network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, network, address)
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			refused = err
			return nil, err
		}
		// The handshake takes no context.
		context.AfterFunc(ctx, func() {
			mu.Lock()
			defer mu.Unlock()
			if !connected {
				conn.Close()
			}
		})
		return conn, nil
	}
	options := []nats.Option{
		nats.Name("eventsource"),
		nats.NoReconnect(),
		nats.SetCustomDialer(dial(dialer)),
		nats.SkipHostLookup(), // the dialer's, which ends with ctx
		nats.Timeout(patience),
		nats.PingInterval(silence),
		nats.MaxPingsOutstanding(1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { fail(lostError(err)) }),
		nats.ClosedHandler(func(nc *nats.Conn) { fail(lostError(nc.LastError())) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			switch {
			case errors.Is(err, nats.ErrSlowConsumer) && sub != nil && slow != nil:
				slow(sub)
			case errors.Is(err, nats.ErrPermissionViolation), errors.Is(err, nats.ErrMaxSubscriptionsExceeded):
				fail(err)
			}
		}),
	}
	files, err := s.fileOptions()
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(strings.Join(s.config.URLs, ","), append(options, files...)...)
	mu.Lock()
	defer mu.Unlock()
	connected = true
	if err != nil {
		if errors.Is(err, nats.ErrNoServers) && refused != nil {
			err = refused
		}
		return nil, fmt.Errorf("connect to %s: %w", addresses(s.config.URLs), err)
	}
	return nc, nil
}

// lostError is why a connection was lost.
func lostError(err error) error {
	if err == nil {
		return errors.New("the connection is lost: the server closed it")
	}
	return fmt.Errorf("the connection is lost: %w", err)
}

// fileOptions are what the files of the configuration say.
func (s *Source) fileOptions() ([]nats.Option, error) {
	var options []nats.Option
	c := &s.config
	if c.Credentials != "" {
		options = append(options, nats.UserCredentials(c.Credentials))
	}
	if c.NKey != "" {
		o, err := nats.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			return nil, fmt.Errorf("nkey: %w", err)
		}
		options = append(options, o)
	}
	if c.CA != "" {
		options = append(options, nats.RootCAs(c.CA))
	}
	if c.Cert != "" {
		options = append(options, nats.ClientCert(c.Cert, c.Key))
	}
	return options, nil
}

// checkFiles reports which of the files can't be used.
func checkFiles(c *Config) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Credentials != "" && c.NKey != "" {
		fail("nkey: there are credentials, too; give one of them")
	}
	if c.Credentials != "" {
		content, err := os.ReadFile(c.Credentials)
		switch {
		case err != nil:
			fail("credentials: %w", err)
		case !strings.Contains(string(content), "USER JWT") || !strings.Contains(string(content), "SEED"):
			fail("credentials: %s has not both a user's JWT and a seed", c.Credentials)
		}
	}
	if c.NKey != "" {
		if _, err := os.ReadFile(c.NKey); err != nil {
			fail("nkey: %w", err)
		} else if _, err := nats.NkeyOptionFromSeed(c.NKey); err != nil {
			fail("nkey: %s holds no seed of a user, which begins with SU", c.NKey)
		}
	}
	if c.CA != "" {
		content, err := os.ReadFile(c.CA)
		switch {
		case err != nil:
			fail("ca: %w", err)
		case !x509.NewCertPool().AppendCertsFromPEM(content):
			fail("ca: %s holds no certificate in PEM", c.CA)
		}
	}
	switch {
	case c.Cert != "" && c.Key == "":
		fail("cert: there is no key beside it; give the file of its private key")
	case c.Key != "" && c.Cert == "":
		fail("key: there is no cert beside it; give the file of its certificate")
	case c.Cert != "":
		if _, err := tls.LoadX509KeyPair(c.Cert, c.Key); err != nil {
			fail("cert: %w", err)
		}
	}
	return errors.Join(errs...)
}

// checkURLs reports why a URL, or one of several, is none of NATS. It repeats nothing of
// it, which may be a password.
func checkURLs(given []string) error {
	for _, one := range given {
		u, err := url.Parse(one)
		if err != nil || u.Scheme != "nats" && u.Scheme != "tls" || u.Hostname() == "" || strings.Contains(one, ",") {
			return errors.New("url: is no URL that begins with nats:// or tls://; give one such as nats://localhost:4222 (a comma in a password is %2C)")
		}
	}
	return nil
}

// addresses are the hosts of the URLs, without what may be secret of them.
func addresses(given []string) string {
	var hosts []string
	for _, one := range given {
		if u, err := url.Parse(one); err == nil {
			hosts = append(hosts, u.Host)
		}
	}
	return strings.Join(hosts, ", ")
}

// atLeast reports whether a server's version is this one, or a later one.
func atLeast(version string, least ...int) bool {
	version, _, _ = strings.Cut(version, "-")
	for i, part := range strings.Split(version, ".") {
		if i == len(least) {
			break
		}
		n, err := strconv.Atoi(part)
		if err != nil || n < least[i] {
			return false
		}
		if n > least[i] {
			return true
		}
	}
	return true
}
