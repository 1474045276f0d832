package jwks_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/MicahParks/jwkset"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/jwks"
)

// An issuer answers to reads of its set, as a test wants it.
type issuer struct {
	reads atomic.Int32

	mu     sync.Mutex
	answer func(*http.Request) (*http.Response, error)
}

// RoundTrip answers.
func (is *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	is.reads.Add(1)
	is.mu.Lock()
	answer := is.answer
	is.mu.Unlock()
	return answer(r)
}

// answers has the issuer answer so from now on.
func (is *issuer) answers(status int, body string) {
	is.does(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Body: io.NopCloser(strings.NewReader(body))}, nil
	})
}

func (is *issuer) does(answer func(*http.Request) (*http.Response, error)) {
	is.mu.Lock()
	is.answer = answer
	is.mu.Unlock()
}

func away(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }

func silent(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// set returns a set of keys as JSON.
func set(t *testing.T, keys ...any) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// jwk returns a key as a set holds it, with the private parts if it has them.
func jwk(t *testing.T, of any, kid, algorithm, use string) jwkset.JWKMarshal {
	t.Helper()
	j, err := jwkset.NewJWKFromKey(of, jwkset.JWKOptions{
		Marshal:  jwkset.JWKMarshalOptions{Private: true},
		Metadata: jwkset.JWKMetadataOptions{KID: kid, ALG: jwkset.ALG(algorithm), USE: jwkset.USE(use)},
		Validate: jwkset.JWKValidateOptions{SkipAll: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := j.Marshal()
	m.ALG = jwkset.ALG(algorithm) // which jwkset gives to every Ed25519 key
	return m
}

func edKey(t *testing.T) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

// open opens a set that the issuer answers for, until the test ends.
func open(t *testing.T, is *issuer, log io.Writer) *jwks.Set {
	t.Helper()
	c := jwks.Config{URL: "https://joe:geheim@login.example.org/keys?secret=geheim", Client: &http.Client{Transport: is}}
	if log != nil {
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
	}
	s, err := jwks.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// wants fails the test unless these are the keys for a token.
func wants(t *testing.T, s *jwks.Set, kid, algorithm string, want ...crypto.PublicKey) {
	t.Helper()
	got, err := s.Keys(t.Context(), kid, algorithm)
	if err != nil {
		t.Fatalf("keys for %q by %s: %v", kid, algorithm, err)
	}
	if !slices.EqualFunc(got, want, func(a, b crypto.PublicKey) bool { return a.(interface{ Equal(crypto.PublicKey) bool }).Equal(b) }) {
		t.Fatalf("%d keys for %q by %s, not the wanted %d: %v", len(got), kid, algorithm, len(want), got)
	}
}

// unavailable fails the test unless the keys for a token can't be had.
func unavailable(t *testing.T, s *jwks.Set, kid string) error {
	t.Helper()
	got, err := s.Keys(t.Context(), kid, "EdDSA")
	if !errors.Is(err, eventsource.ErrUnavailable) || got != nil {
		t.Fatalf("got %v, %v; want ErrUnavailable", got, err)
	}
	if strings.Contains(err.Error(), "geheim") || !strings.Contains(err.Error(), "https://login.example.org/keys") {
		t.Fatalf("the error is: %v", err)
	}
	return err
}

func TestOnlyKeysThatCheckSignaturesOfTheAlgorithmAreReturned(t *testing.T) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, private := edKey(t)
	signs := jwk(t, public, "ops", "", "")
	signs.KEYOPS = []jwkset.KEYOPS{"verify"}
	encrypts := jwk(t, public, "ops-enc", "", "")
	encrypts.KEYOPS = []jwkset.KEYOPS{"encrypt"}
	body := set(t,
		jwk(t, r, "rsa", "", "sig"), jwk(t, &r.PublicKey, "rs256", "RS256", "sig"), jwk(t, e, "ec", "ES256", ""),
		jwk(t, private, "ed", "", ""), signs,
		encrypts, jwk(t, public, "enc", "", "enc"), jwk(t, []byte("geheim, geheim"), "secret", "HS256", "sig"),
		map[string]any{"kty": "new", "kid": "new"}, map[string]any{"kty": "EC", "kid": "half", "crv": "P-256"}, 5, nil,
	)
	synctest.Test(t, func(t *testing.T) {
		is := &issuer{}
		is.answers(200, body)
		s := open(t, is, nil)
		wants(t, s, "rsa", "RS256", &r.PublicKey)
		wants(t, s, "rsa", "PS512", &r.PublicKey)
		wants(t, s, "rs256", "RS256", &r.PublicKey)
		wants(t, s, "rs256", "PS256")
		wants(t, s, "ec", "ES256", &e.PublicKey)
		wants(t, s, "ed", "EdDSA", public)
		wants(t, s, "ops", "EdDSA", public)
		for _, kid := range []string{"enc", "ops-enc", "secret", "new", "half", "other"} {
			wants(t, s, kid, "EdDSA")
			wants(t, s, kid, "HS256")
		}
		got, err := s.Keys(t.Context(), "", "RS256") // no kid: all that may have signed
		if err != nil || len(got) != 4 {
			t.Errorf("without kid: %v, %v", got, err)
		}
		if n := is.reads.Load(); n != 1 {
			t.Errorf("the set was read %d times", n)
		}
	})
}

func TestAStartWithTheURLAwayComesRight(t *testing.T) {
	public, _ := edKey(t)
	body := set(t, jwk(t, public, "a", "EdDSA", "sig"))
	synctest.Test(t, func(t *testing.T) {
		is, log := &issuer{}, &bytes.Buffer{}
		is.does(away)
		s := open(t, is, log)
		if err := unavailable(t, s, "a"); !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("the error is: %v", err)
		}
		time.Sleep(10 * time.Minute)
		unavailable(t, s, "")
		synctest.Wait()
		if n := is.reads.Load(); n < 14 || n > 20 { // after 1, 3, 7, 15, 31 s, then each minute
			t.Errorf("it was tried %d times in 10 minutes", n)
		}
		if n := strings.Count(log.String(), "can't be read"); n < 5 || n > 11 {
			t.Errorf("%d log lines in 10 minutes: %s", n, log)
		}
		is.answers(200, body)
		time.Sleep(time.Minute)
		synctest.Wait()
		wants(t, s, "a", "EdDSA", public)
		if !strings.Contains(log.String(), "can be read again") || strings.Contains(log.String(), "geheim") {
			t.Errorf("it logged: %s", log)
		}
	})
}

func TestTheLastGoodSetIsKeptWhateverComes(t *testing.T) {
	public, _ := edKey(t)
	other, _ := edKey(t)
	good := set(t, jwk(t, public, "a", "EdDSA", "sig"))
	for name, fault := range map[string]func(*issuer){
		"away":       func(is *issuer) { is.does(away) },
		"silent":     func(is *issuer) { is.does(silent) },
		"500":        func(is *issuer) { is.answers(500, set(t, jwk(t, other, "b", "", ""))) },
		"404":        func(is *issuer) { is.answers(404, "") },
		"garbage":    func(is *issuer) { is.answers(200, "<html>geheim") },
		"{}":         func(is *issuer) { is.answers(200, "{}") },
		"empty":      func(is *issuer) { is.answers(200, set(t)) },
		"null":       func(is *issuer) { is.answers(200, "null") },
		"no use":     func(is *issuer) { is.answers(200, set(t, jwk(t, other, "b", "", "enc"))) },
		"too long":   func(is *issuer) { is.answers(200, set(t, jwk(t, other, "b", "", ""))+strings.Repeat(" ", 1<<20)) },
		"broken off": func(is *issuer) { is.answers(200, good[:len(good)-1]) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				is, log := &issuer{}, &bytes.Buffer{}
				is.answers(200, good)
				s := open(t, is, log)
				wants(t, s, "a", "EdDSA", public)
				fault(is)
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if is.reads.Load() < 2 || !strings.Contains(log.String(), "can't be read") || strings.Contains(log.String(), "geheim") {
					t.Errorf("after %d reads it logged: %s", is.reads.Load(), log)
				}
				wants(t, s, "a", "EdDSA", public)
				unavailable(t, s, "b") // it may have come since
				is.answers(200, good)
				time.Sleep(2 * time.Hour)
				wants(t, s, "b", "EdDSA")
			})
		})
	}
}

func TestAnUnknownKeyHasTheSetReadAgain(t *testing.T) {
	first, _ := edKey(t)
	second, _ := edKey(t)
	before, after := set(t, jwk(t, first, "a", "", "")), set(t, jwk(t, second, "b", "", ""))
	synctest.Test(t, func(t *testing.T) {
		is := &issuer{}
		is.answers(200, before)
		s := open(t, is, nil)
		wants(t, s, "a", "EdDSA", first)
		is.answers(200, after)
		wants(t, s, "b", "EdDSA") // it is too soon
		time.Sleep(10 * time.Second)
		wants(t, s, "b", "EdDSA", second)
		wants(t, s, "a", "EdDSA") // it was withdrawn
		if n := is.reads.Load(); n != 2 {
			t.Errorf("the set was read %d times", n)
		}
	})
}

func TestTheSetIsReadHourly(t *testing.T) {
	first, _ := edKey(t)
	second, _ := edKey(t)
	before, after := set(t, jwk(t, first, "a", "", "")), set(t, jwk(t, second, "a", "", ""))
	synctest.Test(t, func(t *testing.T) {
		is := &issuer{}
		is.answers(200, before)
		s := open(t, is, nil)
		wants(t, s, "a", "EdDSA", first)
		is.answers(200, after)
		time.Sleep(50 * time.Minute)
		wants(t, s, "a", "EdDSA", first)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		wants(t, s, "a", "EdDSA", second)
	})
}

func TestUnknownKeysNeitherWaitLongNorPileUp(t *testing.T) {
	public, _ := edKey(t)
	body := set(t, jwk(t, public, "a", "", ""))
	synctest.Test(t, func(t *testing.T) {
		is := &issuer{}
		is.answers(200, body)
		s := open(t, is, nil)
		wants(t, s, "a", "EdDSA", public)
		is.does(silent)
		time.Sleep(time.Minute)
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				began := time.Now()
				unavailable(t, s, rand.Text())
				if waited := time.Since(began); waited > 2*time.Second {
					t.Errorf("waited %v", waited)
				}
			})
		}
		all.Wait()
		began := time.Now()
		for range 1000 {
			unavailable(t, s, rand.Text())
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("those after them waited %v", waited)
		}
		wants(t, s, "a", "EdDSA", public)
		if n := is.reads.Load(); n != 2 {
			t.Errorf("the set was read %d times", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		time.Sleep(time.Minute)
		if _, err := s.Keys(ctx, "b", "EdDSA"); !errors.Is(err, eventsource.ErrUnavailable) || time.Since(began) != time.Minute {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

func TestCloseEndsAReadAndKeepsTheKeys(t *testing.T) {
	public, _ := edKey(t)
	body := set(t, jwk(t, public, "a", "", ""))
	synctest.Test(t, func(t *testing.T) {
		is := &issuer{}
		is.answers(200, body)
		s := open(t, is, nil)
		wants(t, s, "a", "EdDSA", public)
		is.does(silent)
		time.Sleep(time.Hour) // it is being read
		var waits sync.WaitGroup
		waits.Go(func() { unavailable(t, s, "b") })
		synctest.Wait()
		began := time.Now()
		s.Close()
		waits.Wait()
		wants(t, s, "a", "EdDSA", public)
		unavailable(t, s, "b")
		time.Sleep(time.Minute) // after which it would be read for an unknown key
		unavailable(t, s, "b")
		if waited := time.Since(began); waited != time.Minute {
			t.Errorf("it took %v", waited)
		}
		s.Close() // once more
	})
}

func TestWhatIsNoURLIsRefusedWithoutTellingIt(t *testing.T) {
	for _, u := range []string{"", "keys", "ftp://geheim@a/b", "http://", "file:///geheim", "http://a:geheim@b c/"} {
		if s, err := jwks.Open(jwks.Config{URL: u}); err == nil || s != nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", u, err)
		}
	}
}

func TestARealServerIsReadAndLeftWithoutATrace(t *testing.T) {
	before := runtime.NumGoroutine()
	public, _ := edKey(t)
	body := set(t, jwk(t, public, "a", "", ""))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/keys", http.StatusFound)
			return
		}
		user, password, _ := r.BasicAuth()
		if user != "joe" || password != "geheim" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		io.WriteString(w, body)
	}))
	s, err := jwks.Open(jwks.Config{URL: strings.Replace(srv.URL, "http://", "http://joe:geheim@", 1) + "/moved"})
	if err != nil {
		t.Fatal(err)
	}
	wants(t, s, "a", "EdDSA", public)
	s.Close()
	srv.Close()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		<-tick.C
	}
	t.Errorf("%d goroutines are left over", runtime.NumGoroutine()-before)
}

func TestARedirectFromHTTPSToHTTPIsNotFollowed(t *testing.T) {
	var plain atomic.Int32
	open := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { plain.Add(1) }))
	defer open.Close()
	srv := httptest.NewTLSServer(http.RedirectHandler(open.URL, http.StatusFound))
	defer srv.Close()
	client := srv.Client()
	s, err := jwks.Open(jwks.Config{URL: srv.URL, Client: client})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Keys(t.Context(), "a", "EdDSA")
	if plain.Load() != 0 || err == nil || !strings.Contains(err.Error(), "redirects from https to http") {
		t.Errorf("%d reads in the clear: %v", plain.Load(), err)
	}
}
