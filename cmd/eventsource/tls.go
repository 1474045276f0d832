package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// A tlsConfig says where certificates come from: files, or a server that speaks ACME
// (RFC 8555).
type tlsConfig struct {
	cert, key string // files

	domains   []string
	email     string
	cache     string // a folder; empty: cacheFolder
	directory string // the URL of an ACME server; empty: Let's Encrypt
}

// on reports whether the server speaks TLS.
func (t *tlsConfig) on() bool { return t.cert != "" || len(t.domains) > 0 }

// scheme returns how URLs of the server begin.
func (t *tlsConfig) scheme() string {
	if t.on() {
		return "https"
	}
	return "http"
}

// validate returns what is wrong, and the key that it is about.
func (t *tlsConfig) validate() (key string, err error) {
	switch {
	case t.cert != "" && t.key == "":
		return "tls.cert", errors.New("there is no tls.key beside it; give the file of its private key")
	case t.cert == "" && t.key != "":
		return "tls.key", errors.New("there is no tls.cert beside it; give the file of its certificate")
	case t.cert != "" && len(t.domains) > 0:
		return "tls.acme.domains", errors.New("there are tls.cert and tls.key, too; give files or domains")
	}
	for i, d := range t.domains {
		t.domains[i] = strings.ToLower(d)
		switch {
		case strings.Contains(d, "*"):
			return "tls.acme.domains", fmt.Errorf("%q is a wildcard, for which this program gets no certificate (TLS-ALPN-01); name each host", d)
		case strings.ContainsAny(d, ":/@ ") || !strings.Contains(strings.Trim(d, "."), "."):
			return "tls.acme.domains", fmt.Errorf("%q is no name of a host such as events.example.org", d)
		case strings.ContainsFunc(d, func(r rune) bool { return r > unicode.MaxASCII }):
			return "tls.acme.domains", fmt.Errorf("%q is not ASCII; give the name in Punycode, xn--…", d)
		}
	}
	for _, k := range []struct{ name, v string }{{"email", t.email}, {"cache", t.cache}, {"directory", t.directory}} {
		if k.v != "" && len(t.domains) == 0 {
			return "tls.acme." + k.name, errors.New("there are no tls.acme.domains; name the hosts that certificates are for")
		}
	}
	if t.directory != "" && !strings.HasPrefix(t.directory, "https://") {
		return "tls.acme.directory", fmt.Errorf("%q is no URL such as https://acme-staging-v02.api.letsencrypt.org/directory", maskedURL(t.directory))
	}
	return "", nil
}

// loadTLS reads the certificate's files. It returns what is wrong, and the key that
// it is about.
func (c *config) loadTLS() (key string, err error) {
	if key, err := c.tls.validate(); err != nil {
		return key, err
	}
	if c.tls.cert == "" {
		return "", nil
	}
	loaded := &certificate{files: [2]string{c.tls.cert, c.tls.key}}
	if err := loaded.load(); err != nil {
		key = "tls.cert"
		if k, ok := errors.AsType[*keyError](err); ok {
			key, err = "tls.key", k.error
		}
		return key, err
	}
	c.certificate = loaded
	return "", nil
}

// A certificate is one of files, which is read again when they change.
type certificate struct {
	// Set when made.
	files [2]string    // of the certificate and its key
	log   *slog.Logger // set before it serves

	mu     sync.Mutex
	pair   *tls.Certificate // the last that could be used
	seen   [2]fileState     // of the last that was read
	looked time.Time
}

// A fileState tells a file from what it was before.
type fileState struct {
	changed time.Time
	size    int64
}

// A keyError is about the file of the key.
type keyError struct{ error }

// get returns the certificate for a handshake. It looks at the files at most once a
// second.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.looked) >= time.Second {
		c.looked = now
		if c.states() != c.seen {
			c.reloadLocked()
		}
	}
	return c.pair, nil
}

// reload reads the files, whether they have changed or not.
func (c *certificate) reload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reloadLocked()
}

func (c *certificate) reloadLocked() {
	if err := c.load(); err != nil {
		c.log.Warn("the certificate can't be used; the one before is served on", "cert", c.files[0], "key", c.files[1], "error", err)
		return
	}
	c.tell()
}

// tell logs which certificate is served.
func (c *certificate) tell() {
	leaf := c.pair.Leaf
	c.log.Info("certificate", "cert", c.files[0], "names", leaf.DNSNames, "until", leaf.NotAfter.UTC().Format(time.RFC3339))
	if time.Now().After(leaf.NotAfter) {
		c.log.Warn("the certificate has expired", "cert", c.files[0])
	}
}

// states returns how the files are now.
func (c *certificate) states() (states [2]fileState) {
	for i, name := range c.files {
		if info, err := os.Stat(name); err == nil {
			states[i] = fileState{info.ModTime(), info.Size()}
		}
	}
	return states
}

// load reads the files. What can't be used changes nothing.
func (c *certificate) load() error {
	c.seen = c.states()
	cert, err := os.ReadFile(c.files[0])
	if err != nil {
		return err
	}
	if err := holdsCertificate(cert); err != nil {
		return fmt.Errorf("%s %w", c.files[0], err)
	}
	key, err := os.ReadFile(c.files[1])
	if err != nil {
		return &keyError{err}
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return &keyError{fmt.Errorf("%s is not the key of %s: %w", c.files[1], c.files[0], err)}
	}
	c.pair = &pair
	return nil
}

// holdsCertificate says why a PEM text has no certificate to begin with. Its error
// goes on where the name of the text ends.
func holdsCertificate(content []byte) error {
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			return errors.New("holds no certificate; give a PEM file that does")
		}
		if block.Type == "CERTIFICATE" {
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return fmt.Errorf("holds a broken certificate: %w", err)
			}
			return nil
		}
	}
}

// An authority gets certificates by ACME.
type authority struct {
	manager *autocert.Manager
	domains []string
	log     *slog.Logger

	mu     sync.Mutex
	failed time.Time // when that was logged last
}

// quietACME is the least time between two log lines of certificates that could not
// be had.
const quietACME = time.Minute

// errOtherName is a handshake for a name that no certificate is wanted for.
var errOtherName = errors.New("it is none of tls.acme.domains")

// openAuthority prepares to get certificates. Its error is about the cache.
func (t *tlsConfig) openAuthority(log *slog.Logger) (*authority, error) {
	folder := t.cache
	if folder == "" {
		var err error
		if folder, err = cacheFolder(); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("%w; give a folder that this user may write to", err)
	}
	probe, err := os.CreateTemp(folder, ".probe")
	if err != nil {
		return nil, fmt.Errorf("%w; give a folder that this user may write to", err)
	}
	probe.Close()
	os.Remove(probe.Name())
	a := &authority{domains: t.domains, log: log}
	a.manager = &autocert.Manager{
		Prompt: autocert.AcceptTOS,
		Cache:  autocert.DirCache(folder),
		Email:  t.email,
		Client: &acme.Client{DirectoryURL: t.directory, UserAgent: "eventsource/" + readBuild().Version},
		HostPolicy: func(_ context.Context, host string) error {
			if slices.Contains(t.domains, host) {
				return nil
			}
			return errOtherName
		},
	}
	if t.directory == "" {
		a.manager.Client.DirectoryURL = autocert.DefaultACMEDirectory
	}
	return a, nil
}

// cacheFolder returns where certificates are kept unless it is configured: in the
// folder that systemd gives to the service, or else in the user's cache.
func cacheFolder() (string, error) {
	if folder, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); folder != "" {
		return filepath.Join(folder, "acme"), nil
	}
	folder, err := os.UserCacheDir()
	if err != nil {
		return "", errors.New("there is no folder to keep certificates in; give one that outlives the process")
	}
	return filepath.Join(folder, "eventsource", "acme"), nil
}

// get returns the certificate for a handshake, which waits until there is one.
func (a *authority) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := a.manager.GetCertificate(hello)
	if err != nil && slices.Contains(a.domains, strings.ToLower(hello.ServerName)) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if now := time.Now(); a.failed.IsZero() || now.Sub(a.failed) >= quietACME {
			a.failed = now
			a.log.Warn("a certificate can't be had", "name", hello.ServerName, "error", err)
		}
	}
	return pair, err
}

// prepare gets the certificates, so that who comes first does not wait for them.
func (a *authority) prepare() {
	for _, name := range a.domains {
		a.get(&tls.ClientHelloInfo{ServerName: name, // what a browser of today says of itself
			CipherSuites:    []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
			SupportedCurves: []tls.CurveID{tls.CurveP256}, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}})
	}
}

// speakTLS has the settings speak TLS as it is configured. prepare is to be called
// once the server listens.
func (c *config) speakTLS(log *slog.Logger) (prepare func(), err error) {
	switch {
	case c.certificate != nil:
		c.certificate.log = log
		c.certificate.tell()
		c.settings.TLS = &tls.Config{GetCertificate: c.certificate.get}
	case len(c.tls.domains) > 0:
		a, err := c.tls.openAuthority(log)
		if err != nil {
			return nil, &configError{[]string{c.message("tls.acme.cache", err)}}
		}
		c.settings.TLS = &tls.Config{GetCertificate: a.get, NextProtos: []string{acme.ALPNProto}}
		return a.prepare, nil
	}
	return func() {}, nil
}
