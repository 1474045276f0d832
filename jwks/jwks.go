// Package jwks has the public keys of an issuer of JWTs at hand: those of a JWK set
// (RFC 7517) at a URL, which is read again and again.
//
//	set, err := jwks.Open(jwks.Config{URL: "https://login.example.org/jwks.json"})
//	…
//	defer set.Close()
//	settings.Issuers = []eventsource.Issuer{{Keys: set.Keys, Name: set.URL()}}
package jwks

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"

	"github.com/railsmechanic/eventsource"
)

const (
	defaultRefresh = time.Hour
	// apart is the least time between two reads that tokens with an unknown key
	// ask for.
	apart = 10 * time.Second
	// patience is how long such a token waits for the read, from its beginning.
	patience = 2 * time.Second
	// readTime is how long a read may take.
	readTime = 10 * time.Second
	// A read that failed is tried again after leastPause, then twice that, up to
	// mostPause.
	leastPause = time.Second
	mostPause  = time.Minute
	// quiet is the least time between two log lines of failed reads.
	quiet = time.Minute
	// mostBytes is the longest set.
	mostBytes = 1 << 20
)

// A Config says where a set is.
type Config struct {
	// URL is where the set is, by http or https.
	URL string
	// Client reads it; nil is one as http.DefaultClient. A read takes no more than
	// 10 s, and follows no redirect from https to http unless the client says so
	// itself.
	Client *http.Client
	// Refresh is how often the set is read, less up to a tenth. 0 is an hour.
	Refresh time.Duration
	// Logger is told, at most once a minute, that the set can't be read, and when
	// it can again; nil logs nothing.
	Logger *slog.Logger
}

// A Set is the keys at a URL. It is safe for concurrent use.
type Set struct {
	// Set when made.
	url     string
	shown   string // of the URL, what anybody may see
	client  http.Client
	own     bool // its connections
	refresh time.Duration
	log     *slog.Logger
	cancel  context.CancelFunc
	asked   chan struct{} // a read is wanted now
	ended   chan struct{} // closed when run has ended

	// Owned by run.
	logged time.Time // when a failure was

	mu     sync.Mutex
	keys   []key // the last good set; nil: there was none yet
	last   *read // the last that began, or is about to
	closed bool
}

// A key is one that checks signatures.
type key struct {
	kid, algorithm string // "": none is given
	public         crypto.PublicKey
}

// A read is one try to read the set.
type read struct {
	began time.Time
	done  chan struct{} // closed when err is set
	err   error
}

func newRead() *read { return &read{began: time.Now(), done: make(chan struct{})} }

// under reports whether a read goes on.
func (r *read) under() bool {
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// Open begins to read the set at a URL, and goes on until Close. Its error is that
// the URL is none; that nobody answers there now is none.
func Open(c Config) (*Set, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		// What was given may hold a password.
		return nil, errors.New("it is no URL such as https://login.example.org/jwks.json")
	}
	shown := *u
	shown.User, shown.RawQuery, shown.Fragment = nil, "", ""
	ctx, cancel := context.WithCancel(context.Background())
	s := &Set{url: c.URL, shown: shown.String(), refresh: c.Refresh, log: c.Logger, cancel: cancel,
		asked: make(chan struct{}, 1), ended: make(chan struct{}), last: newRead()}
	if c.Client != nil {
		s.client = *c.Client
	} else {
		s.own = true
		s.client.Transport = http.DefaultTransport.(*http.Transport).Clone()
	}
	if s.client.CheckRedirect == nil {
		s.client.CheckRedirect = downhill
	}
	if s.refresh <= 0 {
		s.refresh = defaultRefresh
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	go s.run(ctx)
	return s, nil
}

// downhill refuses redirects that leave https, and more than ten.
func downhill(r *http.Request, via []*http.Request) error {
	switch {
	case len(via) >= 10:
		return errors.New("it redirects more than ten times")
	case via[len(via)-1].URL.Scheme == "https" && r.URL.Scheme != "https":
		return errors.New("it redirects from https to " + r.URL.Scheme)
	}
	return nil
}

// URL returns where the set is, as Config had it. It may hold a password.
func (s *Set) URL() string { return s.url }

// Close ends reading. What was read last is still answered with.
func (s *Set) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	<-s.ended
	if s.own {
		s.client.CloseIdleConnections()
	}
	return nil
}

// Keys returns the keys that may have signed a token with this "kid" ("": it has
// none) by this algorithm. An unknown kid has the set read again, at most every
// 10 s, and waits for it for up to 2 s. Its error wraps eventsource.ErrUnavailable:
// the set was not read yet, or, for an unknown kid, can't be read now.
func (s *Set) Keys(ctx context.Context, kid, algorithm string) ([]crypto.PublicKey, error) {
	found, known, r := s.find(kid, algorithm)
	if known || r == nil {
		return found, nil
	}
	wait, cancel := context.WithDeadline(ctx, r.began.Add(patience))
	defer cancel()
	select {
	case <-r.done:
	case <-wait.Done():
	}
	if found, known, r = s.find(kid, algorithm); known || r == nil {
		return found, nil
	}
	why := errors.New("it takes long to answer")
	if !r.under() {
		why = r.err
	}
	return nil, unavailable{fmt.Errorf("the keys at %s can't be had: %w", s.shown, why)}
}

// An unavailable is an eventsource.ErrUnavailable in words of its own, as that one
// speaks of the backend.
type unavailable struct{ error }

// Is reports whether that is asked for.
func (unavailable) Is(target error) bool { return target == eventsource.ErrUnavailable }

// Unwrap returns why.
func (u unavailable) Unwrap() error { return u.error }

// find returns the keys for a token, and whether the set knows of its kid. If not,
// it returns a read that goes on, which it begins if it is time for one, or the last
// if that failed.
func (s *Set) find(kid, algorithm string) (found []crypto.PublicKey, known bool, r *read) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if kid != "" && k.kid != kid {
			continue
		}
		known = known || kid != ""
		if k.algorithm == "" || k.algorithm == algorithm {
			found = append(found, k.public)
		}
	}
	if known || len(found) > 0 {
		return found, true, nil
	}
	if !s.last.under() && !s.closed && time.Since(s.last.began) >= apart {
		s.last = newRead()
		select {
		case s.asked <- struct{}{}:
		default:
		}
	}
	if s.last.under() || s.last.err != nil {
		return nil, false, s.last
	}
	return nil, false, nil
}

// run reads the set until ctx ends.
func (s *Set) run(ctx context.Context) {
	defer close(s.ended)
	pause := leastPause
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			s.settle(s.begin(), nil, context.Cause(ctx))
			return
		case <-next.C:
		case <-s.asked:
		}
		r := s.begin()
		keys, err := s.read(ctx)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else {
			s.tell(len(keys), err)
		}
		s.settle(r, keys, err)
		wait := s.refresh
		if err == nil {
			pause = leastPause
		} else {
			wait = min(pause, s.refresh)
			pause = min(2*pause, mostPause)
		}
		next.Reset(wait - rand.N(wait/10+1)) // many servers that were started together part
	}
}

// begin returns the read that was asked for, or another.
func (s *Set) begin() *read {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.asked:
	default:
	}
	if !s.last.under() {
		s.last = newRead()
	}
	return s.last
}

// settle ends a read with what it brought.
func (s *Set) settle(r *read, keys []key, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.keys = keys
	}
	r.err = err
	close(r.done)
}

// tell logs how a read ended, unless that is no news.
func (s *Set) tell(keys int, err error) {
	now := time.Now()
	switch {
	case err != nil && (s.logged.IsZero() || now.Sub(s.logged) >= quiet):
		s.mu.Lock()
		kept := len(s.keys)
		s.mu.Unlock()
		s.log.Warn("the keys of JWTs can't be read", "url", s.shown, "kept", kept, "error", err)
		s.logged = now
	case err == nil && !s.logged.IsZero():
		s.log.Info("the keys of JWTs can be read again", "url", s.shown, "keys", keys)
		s.logged = time.Time{}
	case err == nil:
		s.log.Debug("the keys of JWTs were read", "url", s.shown, "keys", keys)
	}
}

// read asks the URL for the set. Its error holds nothing of the URL.
func (s *Set) read(ctx context.Context) ([]key, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readTime, fmt.Errorf("no answer in %v", readTime))
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, errors.New("the URL can't be asked for")
	}
	r.Header.Set("Accept", "application/jwk-set+json, application/json")
	res, err := s.client.Do(r)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answered %s", res.Status)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, mostBytes+1))
	switch {
	case err != nil && context.Cause(ctx) != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, err
	case len(body) > mostBytes:
		return nil, fmt.Errorf("it answered more than %d bytes", mostBytes)
	}
	return parse(body)
}

// parse returns the keys of a set that check signatures. It passes over others, as
// RFC 7517, 5 has it.
func parse(body []byte) ([]key, error) {
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, errors.New("it answered no JWK set")
	}
	var keys []key
	for _, raw := range set.Keys {
		var m jwkset.JWKMarshal
		if json.Unmarshal(raw, &m) != nil || m.USE != "" && m.USE != jwkset.UseSig || !verifies(m.KEYOPS) {
			continue
		}
		// The URL is what is trusted, not a certificate.
		m.X5C, m.X5U, m.X5T, m.X5TS256 = nil, "", "", ""
		// Not asked for private parts, jwkset leaves them and secrets out.
		j, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{SkipKeyOps: true})
		if err != nil {
			continue
		}
		switch public := j.Key().(type) {
		case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey:
			keys = append(keys, key{m.KID, string(m.ALG), public})
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("none of its %d keys checks signatures", len(set.Keys))
	}
	return keys, nil
}

// verifies reports whether a key with these key_ops (RFC 7517, 4.3) checks
// signatures; that of a private one is about its private half.
func verifies(ops []jwkset.KEYOPS) bool {
	return len(ops) == 0 || slices.Contains(ops, jwkset.KeyOpsVerify) || slices.Contains(ops, jwkset.KeyOpsSign)
}
