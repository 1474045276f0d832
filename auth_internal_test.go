package eventsource

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/golang-jwt/jwt/v5"
)

var testSecret = []byte(strings.Repeat("secret", 10))

// jwtOf returns a JWT that ends after a while.
func jwtOf(t testing.TB, method jwt.SigningMethod, key any, lasts time.Duration) string {
	t.Helper()
	text, err := jwt.NewWithClaims(method, jwt.MapClaims{"sub": "joe", "exp": time.Now().Add(lasts).Unix(),
		"eventsource": map[string]any{"subscribe": []string{"news.*"}, "publish": []string{"news.*"}}}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// asks returns a request with a token.
func asks(token string) *http.Request {
	r, _ := http.NewRequest("GET", "/news", nil)
	r.Header.Set("Auth-Token", token)
	return r
}

func TestAVerifiedTokenIsCheckedAgainAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStats()
		a := newAccess(&Settings{Issuers: []Issuer{{Key: testSecret}}}, st)
		long, short := asks(jwtOf(t, jwt.SigningMethodHS256, testSecret, time.Hour)), asks(jwtOf(t, jwt.SigningMethodHS256, testSecret, time.Minute))
		check := func(r *http.Request, atOnce bool, ok bool, checks uint64) {
			t.Helper()
			v, p := a.identify(r, asking{atOnce: atOnce})
			if (p == nil) != ok || ok && v.subject != "joe" || st.verified.Load()+st.unverified.Load() != checks {
				t.Errorf("%v %v after %d checks", v.identity, p, st.verified.Load()+st.unverified.Load())
			}
		}
		check(long, true, false, 0) // who may not wait does not check
		check(long, false, true, 1)
		check(long, true, true, 1)
		check(short, false, true, 2)
		time.Sleep(time.Minute)
		check(short, true, false, 2)
		check(short, false, false, 2) // that it has ended is known without a check
		check(long, true, true, 2)
		time.Sleep(verifiedAge)
		check(long, true, false, 2)
		check(long, false, true, 3)
		time.Sleep(time.Hour)
		check(long, false, false, 4)
	})
}

func TestARecentForgetsWhatWasNotAskedForLongest(t *testing.T) {
	m := newRecent[int, int](100)
	for i := range 1000 {
		m.put(i, i)
		if v, ok := m.get(7); i >= 7 && (!ok || v != 7) {
			t.Fatalf("after %d, what is asked for again and again is forgotten", i)
		}
		if n := len(m.latest) + len(m.before); n > 200 {
			t.Fatalf("after %d, %d are remembered", i, n)
		}
		if i >= 100 {
			if _, ok := m.get(i - 40); !ok {
				t.Fatalf("after %d, %d is forgotten", i, i-40)
			}
		}
	}
	if _, ok := m.get(8); ok {
		t.Error("one that nobody asked for is remembered")
	}
	if got := m.orMake(8, func() int { return -8 }); got != -8 {
		t.Error(got)
	}
	if got := m.orMake(8, func() int { return 0 }); got != -8 {
		t.Error(got)
	}
}

// What it costs to know who sends a request.
func BenchmarkIdentify(b *testing.B) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	identify := func(b *testing.B, a *access, r *http.Request, forget bool) {
		for b.Loop() {
			if forget {
				a.verified = newRecent[hash, verified](1)
			}
			if _, p := a.identify(r, asking{}); p != nil {
				b.Fatal(p)
			}
		}
	}
	for _, keys := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("key of %d", keys), func(b *testing.B) {
			s := Settings{AuthToken: "boss"}
			for i := range keys {
				s.Keys = append(s.Keys, Key{Token: fmt.Sprint("key ", i)})
			}
			identify(b, newAccess(&s, newStats()), asks("key 0"), false)
		})
	}
	for _, tc := range []struct {
		method    jwt.SigningMethod
		key, half any
	}{{jwt.SigningMethodHS256, testSecret, testSecret}, {jwt.SigningMethodRS256, rsaKey, rsaKey.Public()},
		{jwt.SigningMethodES256, ecKey, ecKey.Public()}, {jwt.SigningMethodEdDSA, edKey, edPublic}} {
		a := newAccess(&Settings{Issuers: []Issuer{{Key: tc.half}}}, newStats())
		r := asks(jwtOf(b, tc.method, tc.key, time.Hour))
		b.Run(tc.method.Alg()+" checked", func(b *testing.B) { identify(b, a, r, true) })
		b.Run(tc.method.Alg()+" remembered", func(b *testing.B) { identify(b, a, r, false) })
	}
}

// A million consumers wait without a token: what few have is not in each.
func TestAConsumerIsLean(t *testing.T) {
	if got := unsafe.Sizeof(consumer{}); unsafe.Sizeof(uintptr(0)) == 8 && got > 80 {
		t.Errorf("a consumer has %d bytes, more than 80", got)
	}
}
