package eventsource_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/railsmechanic/eventsource"
)

// secret is the key of most tests' issuer.
var secret = []byte("a secret of thirty-two bytes, or a few more, which is enough")

// signers are keys to sign with, by the algorithms that they are for.
var signers = sync.OnceValue(func() map[string]any {
	must := func(key any, err error) any {
		if err != nil {
			panic(err)
		}
		return key
	}
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	return map[string]any{
		"HS256": secret, "HS384": secret, "HS512": append(secret, secret...),
		"RS256": rsaKey, "RS384": rsaKey, "RS512": rsaKey, "PS256": rsaKey, "PS384": rsaKey, "PS512": rsaKey,
		"ES256": must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"ES384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"ES512": must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
		"EdDSA": must(ed, err),
	}
})

// public returns the half of a key that checks.
func public(key any) any {
	if k, ok := key.(crypto.Signer); ok {
		return k.Public()
	}
	return key
}

type claims = map[string]any

// sign returns a JWT that is valid for an hour, unless the claims say otherwise.
func sign(t testing.TB, algorithm string, key any, header claims, more claims) string {
	t.Helper()
	c := jwt.MapClaims{"sub": "joe", "exp": time.Now().Add(time.Hour).Unix()}
	for name, v := range more {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	token := jwt.NewWithClaims(jwt.GetSigningMethod(algorithm), c)
	maps.Copy(token.Header, header)
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// granted returns a JWT of the secret that grants something.
func granted(t testing.TB, more claims) string { return sign(t, "HS256", secret, nil, more) }

func TestAJWTOfEveryAlgorithmIsAccepted(t *testing.T) {
	for algorithm, key := range signers() {
		n := newNode(t, &eventsource.Settings{Public: []string{},
			Issuers: []eventsource.Issuer{{Algorithm: algorithm, Key: public(key)}}})
		token := sign(t, algorithm, key, nil, claims{"eventsource": claims{"subscribe": []string{"news.*"}, "publish": []string{"news.*"}}})
		if status, _ := n.status(t, "GET", "/news.sport", "Authorization", "Bearer "+token); status != 200 {
			t.Errorf("%s: GET is answered %d", algorithm, status)
		}
		if a := n.post(t, "/news.sport", asText, "x", "Auth-Token", token); a.status != 201 {
			t.Errorf("%s: POST is answered %d %s", algorithm, a.status, a.body)
		}
		if a := n.post(t, "/sport", asText, "x", "Auth-Token", token); a.status != 403 {
			t.Errorf("%s: POST elsewhere is answered %d %s", algorithm, a.status, a.body)
		}
		n.post(t, "/news.sport", asText, "x", "Auth-Token", token[:len(token)-8]+"AAAAAAAA").refused(t, 401, "signature")
	}
}

// segment is a part of a JWT.
func segment(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func TestAJWTThatIsWrongIsRefused(t *testing.T) {
	rsaKey := signers()["RS256"].(*rsa.PrivateKey)
	der, _ := x509.MarshalPKIXPublicKey(rsaKey.Public())
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	ours := claims{"iss": "us", "aud": "events", "eventsource": claims{"subscribe": []string{"news"}, "publish": []string{"news"}}}
	with := func(more claims) claims {
		c := maps.Clone(ours)
		maps.Copy(c, more)
		return c
	}
	valid := sign(t, "RS256", rsaKey, nil, ours)
	parts := strings.Split(valid, ".")
	grants := func(g any) string { return sign(t, "RS256", rsaKey, nil, with(claims{"eventsource": g})) }
	hour := time.Now().Add(time.Hour).Unix()
	for name, tc := range map[string]struct {
		token string
		says  string
	}{
		"alg none":                 {segment(`{"alg":"none","typ":"JWT"}`) + "." + parts[1] + ".", "algorithm"},
		"alg NonE":                 {segment(`{"alg":"NonE"}`) + "." + parts[1] + "." + parts[2], "algorithm"},
		"no alg":                   {segment(`{}`) + "." + parts[1] + "." + parts[2], "algorithm"},
		"the RSA key as a secret":  {sign(t, "HS256", asPEM, nil, ours), "algorithm"},
		"its DER as a secret":      {sign(t, "HS256", der, nil, ours), "algorithm"},
		"another of RSA":           {sign(t, "PS256", rsaKey, nil, ours), "algorithm"},
		"another hash":             {sign(t, "RS512", rsaKey, nil, ours), "algorithm"},
		"an EC key":                {sign(t, "ES256", signers()["ES256"], nil, ours), "algorithm"},
		"a key in its header":      {sign(t, "RS256", newRSA(), claims{"jwk": claims{"kty": "RSA"}, "jku": "http://127.0.0.1:1/"}, ours), "signature"},
		"a critical header":        {sign(t, "RS256", rsaKey, claims{"crit": []string{"x"}, "x": 1}, ours), "signature"},
		"another audience":         {sign(t, "RS256", rsaKey, nil, with(claims{"aud": "others"})), "audience"},
		"no audience":              {sign(t, "RS256", rsaKey, nil, with(claims{"aud": nil})), "audience"},
		"an audience of numbers":   {sign(t, "RS256", rsaKey, nil, with(claims{"aud": []int{1}})), ""},
		"another issuer":           {sign(t, "RS256", rsaKey, nil, with(claims{"iss": "them"})), "issuer"},
		"no issuer":                {sign(t, "RS256", rsaKey, nil, with(claims{"iss": nil})), "issuer"},
		"expired":                  {sign(t, "RS256", rsaKey, nil, with(claims{"exp": time.Now().Add(-time.Minute).Unix()})), "expired at"},
		"expired long ago":         {sign(t, "RS256", rsaKey, nil, with(claims{"exp": 0})), "expired"},
		"without an end":           {sign(t, "RS256", rsaKey, nil, with(claims{"exp": nil})), "exp"},
		"an end that is a text":    {sign(t, "RS256", rsaKey, nil, with(claims{"exp": "2099"})), ""},
		"not yet":                  {sign(t, "RS256", rsaKey, nil, with(claims{"nbf": hour})), "not valid yet"},
		"not ever":                 {sign(t, "RS256", rsaKey, nil, with(claims{"nbf": 1e300})), "not valid yet"},
		"a subject that is none":   {sign(t, "RS256", rsaKey, nil, with(claims{"sub": 5})), "sub"},
		"grants that are a list":   {grants([]string{"news"}), "object"},
		"grants that are a text":   {grants("news"), "object"},
		"subscribe is a text":      {grants(claims{"subscribe": "news"}), "subscribe"},
		"publish is a number":      {grants(claims{"publish": 1}), "publish"},
		"publish holds a number":   {grants(claims{"publish": []any{"news", 1}}), "publish"},
		"a name that is none":      {grants(claims{"subscribe": []string{"a..b"}}), "subscribe"},
		"a wildcard in the middle": {grants(claims{"subscribe": []string{"a.*.b"}}), "subscribe"},
		"all to follow":            {grants(claims{"subscribe": []string{"all"}}), "subscribe"},
		"admin is a text":          {grants(claims{"admin": "true"}), "admin"},
		"a changed claim":          {parts[0] + "." + segment(fmt.Sprintf(`{"iss":"us","aud":"events","exp":%d,"eventsource":{"admin":true}}`, hour)) + "." + parts[2], "signature"},
		"no signature":             {parts[0] + "." + parts[1] + ".", "signature"},
		"two parts":                {parts[0] + "." + parts[1], "not known"},
		"four parts":               {valid + ".x", "not known"},
		"padding":                  {valid + "=", ""},
		"no JSON":                  {segment(`{"alg":"RS256"`) + "." + parts[1] + "." + parts[2], "not known"},
		"claims that are a list":   {parts[0] + "." + segment(`[]`) + "." + parts[2], "not known"},
		"deep claims":              {parts[0] + "." + segment(strings.Repeat("[", 4000)) + "." + parts[2], "not known"},
		"dots":                     {"..", "not known"},
		"a word":                   {"token", "not known"},
		"too long":                 {strings.Repeat("a", 9<<10), "longer"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, &eventsource.Settings{Issuers: []eventsource.Issuer{
				{Key: rsaKey.Public(), Issuer: "us", Audience: []string{"events", "other"}}}})
			for _, way := range [][]string{{"Authorization", "Bearer " + tc.token}, {"Auth-Token", tc.token}, {"Cookie", "eventsource_token=" + tc.token}} {
				for _, verb := range []string{"GET", "POST", "DELETE"} {
					a := n.do(t, verb, "/news", strings.NewReader("x"), append(way, "Content-Type", asText)...)
					if a.refused(t, 401, tc.says); !strings.Contains(a.header.Get("WWW-Authenticate"), `Bearer realm="eventsource", error="invalid_token"`) {
						t.Errorf("%s: WWW-Authenticate is %q", verb, a.header.Get("WWW-Authenticate"))
					}
					if len(tc.token) > 20 && strings.Contains(a.body, tc.token[:20]) {
						t.Errorf("the refusal tells the token: %s", a.body)
					}
				}
			}
			n.publishedNothing(t, name, 0)
			if a := n.post(t, "/news", asText, "x", "Auth-Token", valid); a.status != 201 {
				t.Errorf("the right one is answered %d %s", a.status, a.body)
			}
		})
	}
}

func newRSA() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
}

func TestATokenOfAHundredKiBIsRefused(t *testing.T) {
	long := strings.Repeat("a", 100<<10)
	n := newNode(t, &eventsource.Settings{Issuers: []eventsource.Issuer{{Key: secret}}, Limits: eventsource.Limits{Head: 1 << 20}})
	n.post(t, "/news", asText, "x", "Auth-Token", long).refused(t, 401, "longer")
	n.do(t, "GET", "/news?access_token="+long, nil).refused(t, 401, "longer")
	if n.Stats().Unverified != 0 {
		t.Error("a token that is too long was looked at")
	}
}

func TestSeveralTokensAreRefused(t *testing.T) {
	a, b := granted(t, nil), granted(t, claims{"sub": "ann"})
	n := newNode(t, &eventsource.Settings{Issuers: []eventsource.Issuer{{Key: secret}}})
	for name, header := range map[string][]string{
		"two headers":      {"Auth-Token", a, "Authorization", "Bearer " + b},
		"one header twice": {"Auth-Token", a, "Auth-Token", b},
		"ten":              {"Auth-Token", "1", "Auth-Token", "2", "Auth-Token", "3", "Auth-Token", "4", "Auth-Token", "5", "Auth-Token", "6", "Auth-Token", "7", "Auth-Token", "8", "Auth-Token", "9", "Auth-Token", a},
		"two cookies":      {"Cookie", "eventsource_token=" + a + "; eventsource_token=" + b},
	} {
		got := n.do(t, "GET", "/news", nil, header...)
		got.refused(t, 401, "several")
		if !strings.Contains(got.header.Get("WWW-Authenticate"), `error="invalid_request"`) {
			t.Errorf("%s: WWW-Authenticate is %q", name, got.header.Get("WWW-Authenticate"))
		}
	}
	n.do(t, "GET", "/news?access_token="+b, nil, "Auth-Token", a).refused(t, 401, "several")
	// The same one twice is one; and a header wins over the cookie that a browser adds.
	if status, _ := n.status(t, "GET", "/users.joe?access_token="+a, "Auth-Token", a, "Cookie", "eventsource_token="+b); status != 200 {
		t.Errorf("a header beside a cookie is answered %d", status)
	}
	n.do(t, "GET", "/users.ann", nil, "Auth-Token", a, "Cookie", "eventsource_token="+b).refused(t, 403)
	n.do(t, "GET", "/users.joe", nil, "Auth-Token", "wrong", "Cookie", "eventsource_token="+a).refused(t, 401)
}

func TestSeveralIssuersHaveTheirOwnKeys(t *testing.T) {
	other := []byte(strings.Repeat("other", 10))
	keys := signers()
	n := newNode(t, &eventsource.Settings{Public: []string{}, AuthToken: "s3cret", Issuers: []eventsource.Issuer{
		{Key: secret, Issuer: "a"},
		{Key: public(keys["ES256"]), Issuer: "b", SubjectClaim: "email"},
		{Key: other},
		{Key: public(keys["EdDSA"])},
	}})
	news := claims{"subscribe": []string{"news"}}
	for name, tc := range map[string]struct {
		token  string
		status int
	}{
		"the first":              {granted(t, claims{"iss": "a", "eventsource": news}), 200},
		"the second":             {sign(t, "ES256", keys["ES256"], nil, claims{"iss": "b", "eventsource": news}), 200},
		"one of no name":         {sign(t, "HS256", other, nil, claims{"iss": "c", "eventsource": news}), 200},
		"another of no name":     {sign(t, "EdDSA", keys["EdDSA"], nil, claims{"eventsource": news}), 200},
		"the first as second":    {granted(t, claims{"iss": "b", "eventsource": news}), 401},
		"the first as none":      {granted(t, claims{"eventsource": news}), 401},
		"the one that does all":  {"s3cret", 200},
		"a key of nobody":        {sign(t, "ES384", keys["ES384"], nil, claims{"eventsource": news}), 401},
		"another subject's name": {sign(t, "ES256", keys["ES256"], nil, claims{"iss": "b", "email": 1, "eventsource": news}), 401},
	} {
		if status, _ := n.status(t, "GET", "/news", "Auth-Token", tc.token); status != tc.status {
			t.Errorf("%s: %d, not %d", name, status, tc.status)
		}
	}
	mail := sign(t, "ES256", keys["ES256"], nil, claims{"iss": "b", "email": "ann@example.org"})
	if status, _ := n.status(t, "GET", "/users.ann@example.org", "Auth-Token", mail); status != 200 {
		t.Errorf("the channel of a subject in another claim: %d", status)
	}
}

func TestKeysFromElsewhere(t *testing.T) {
	keys := signers()
	var mu sync.Mutex
	var asked []string
	var err error
	n := newNode(t, &eventsource.Settings{Public: []string{}, Issuers: []eventsource.Issuer{{
		Keys: func(_ context.Context, kid, algorithm string) ([]crypto.PublicKey, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, kid+" "+algorithm)
			// What is not for the algorithm must not count.
			return []crypto.PublicKey{secret, public(keys["RS256"]), public(keys["ES256"])}, err
		},
	}}})
	news := claims{"eventsource": claims{"subscribe": []string{"news"}}}
	for _, algorithm := range []string{"RS256", "PS512", "ES256"} {
		if status, _ := n.status(t, "GET", "/news", "Auth-Token", sign(t, algorithm, keys[algorithm], claims{"kid": "k1"}, news)); status != 200 {
			t.Errorf("%s: %d", algorithm, status)
		}
	}
	n.post(t, "/news", asText, "x", "Auth-Token", sign(t, "HS256", secret, nil, news)).refused(t, 401, "algorithm")
	n.post(t, "/news", asText, "x", "Auth-Token", sign(t, "ES384", keys["ES384"], nil, news)).refused(t, 401, "algorithm")
	if want := "k1 RS256"; asked[0] != want {
		t.Errorf("it asked for %q, not %q", asked[0], want)
	}
	mu.Lock()
	err = fmt.Errorf("the keys' server is away: %w", eventsource.ErrUnavailable)
	mu.Unlock()
	token := sign(t, "ES256", keys["ES256"], nil, claims{"sub": "ann", "eventsource": claims{"subscribe": []string{"news"}}})
	away := n.do(t, "GET", "/news", nil, "Auth-Token", token)
	if away.refused(t, 503, "keys"); away.header.Get("Retry-After") == "" {
		t.Error("no Retry-After while the keys are away")
	}
	mu.Lock()
	err = errors.New("no such key")
	mu.Unlock()
	n.do(t, "GET", "/news", nil, "Auth-Token", token).refused(t, 401)
}

func TestAnIssuerWhoseKeysAreAwayHindersNoOther(t *testing.T) {
	away := eventsource.Issuer{Keys: func(context.Context, string, string) ([]crypto.PublicKey, error) {
		return nil, fmt.Errorf("away: %w", eventsource.ErrUnavailable)
	}}
	n := newNode(t, &eventsource.Settings{Issuers: []eventsource.Issuer{away, {Key: secret}}})
	token := granted(t, claims{"eventsource": claims{"publish": []string{"news"}}})
	n.post(t, "/news", asText, "x", "Auth-Token", token).receipt(t)
	// The other's may be of the one that is away.
	n.post(t, "/news", asText, "x", "Auth-Token", sign(t, "ES256", signers()["ES256"], nil, nil)).refused(t, 503, "keys")
}

func TestAVerifiedTokenIsNotCheckedAgain(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{Public: []string{}, Issuers: []eventsource.Issuer{{Key: secret}}})
		token := granted(t, claims{"eventsource": claims{"subscribe": []string{"news"}, "publish": []string{"news"}}})
		for range 20 {
			if status, _ := n.status(t, "GET", "/news", "Auth-Token", token); status != 200 {
				t.Fatal(status)
			}
			n.post(t, "/news", asText, "x", "Auth-Token", token).receipt(t)
		}
		n.post(t, "/news", asText, "x", "Auth-Token", token+"x").refused(t, 401)
		if s := n.Stats(); s.Verified != 1 || s.Unverified != 1 {
			t.Errorf("%d checks were passed and %d failed, not one each", s.Verified, s.Unverified)
		}
	})
}

func TestAStreamEndsWithItsToken(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{AuthToken: "s3cret", Public: []string{}, Issuers: []eventsource.Issuer{{Key: secret, Leeway: time.Second}}})
		news := claims{"subscribe": []string{"news"}}
		exp := time.Now().Unix() + 2
		short := granted(t, claims{"exp": exp, "eventsource": news})
		ends := time.Unix(exp, 0).Add(time.Second) // the leeway
		s := n.stream(t, "/news", "Auth-Token", short)
		s.next()
		other := n.follow(t, "/news", "Auth-Token", granted(t, claims{"eventsource": news}))
		n.post(t, "/news", asText, "1", "Auth-Token", "s3cret").receipt(t)
		s.expect("1")
		if data, _ := s.ended(); data != `{"reason":"expired"}` {
			t.Errorf("the stream ends with %q", data)
		}
		if late := time.Since(ends); late < 0 || late > 8*time.Second {
			t.Errorf("it ended %v after its token", late)
		}
		n.client.CloseIdleConnections() // the stream's may be among them, and about to be closed
		n.post(t, "/news", asText, "2", "Auth-Token", "s3cret").receipt(t)
		n.do(t, "GET", "/news", nil, "Auth-Token", short).refused(t, 401, "expired")
		// With a fresh token and its last id it misses nothing.
		again := n.follow(t, "/news", "Auth-Token", granted(t, claims{"jti": "2", "eventsource": news}), "Last-Event-ID", s.lastID)
		n.post(t, "/news", asText, "3", "Auth-Token", "s3cret").receipt(t)
		again.expect("2", "3")
		other.expect("1", "2", "3")
		eventually(t, "one to be counted as expired", func() bool { return n.Stats().Disconnects["expired"] == 1 })
	})
}

func TestAThousandTokensThatEndTogether(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Public: []string{}, Issuers: []eventsource.Issuer{{Key: secret}}})
	ends := time.Now().Add(4 * time.Second).Unix()
	token := granted(t, claims{"exp": ends, "eventsource": claims{"subscribe": []string{"*"}}})
	var streams []*stream
	for i := range 500 {
		streams = append(streams, n.follow(t, fmt.Sprintf("/a%d,b,c", i%10), "Auth-Token", token))
	}
	for i := 0; i < len(streams); i += 2 {
		streams[i].close() // they leave the queue from its middle
	}
	eventually(t, "all streams to end", func() bool { return n.ConsumerCountAll() == 0 })
	if now := time.Now(); now.Before(time.Unix(ends, 0)) {
		t.Error("they ended before their token")
	}
	if got := n.Stats().Disconnects["expired"]; got != 250 {
		t.Errorf("%d consumers expired, not 250", got)
	}
}

func TestATokenWithoutAnEndIsAcceptedWhereThatIsSet(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Public: []string{}, Issuers: []eventsource.Issuer{{Key: secret, NoExpiry: true}}})
	news := claims{"subscribe": []string{"news"}}
	n.follow(t, "/news", "Auth-Token", granted(t, claims{"exp": nil, "eventsource": news}))
	n.do(t, "GET", "/news", nil, "Auth-Token", granted(t, claims{"exp": 0, "eventsource": news})).refused(t, 401, "expired")
	n.do(t, "GET", "/news", nil, "Auth-Token", granted(t, claims{"exp": 1, "eventsource": news})).refused(t, 401, "expired")
	if status, _ := n.status(t, "GET", "/news", "Auth-Token", granted(t, claims{"exp": 1e18, "eventsource": news})); status != 200 {
		t.Errorf("a token that ends late: %d", status)
	}
}

func TestALineAfterTheTokensEndIsRefused(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Issuers: []eventsource.Issuer{{Key: secret}}})
	token := granted(t, claims{"exp": time.Now().Add(time.Second).Unix() + 1, "eventsource": claims{"publish": []string{"news"}}})
	l := n.lines(t, "", "Auth-Token", token)
	l.send(`{"data":1}` + "\n")
	if got := l.answer(); !strings.Contains(got, `"id"`) {
		t.Fatal(got)
	}
	time.Sleep(2100 * time.Millisecond)
	l.send(`{"data":2}` + "\n")
	if got := l.answer(); !strings.Contains(got, `"status":401`) {
		t.Errorf("answered %s", got)
	}
	if n.Stats().Published != 1 {
		t.Error("it was published")
	}
}

func TestAnIssuerThatCantBeUsedIsRefused(t *testing.T) {
	weak, _ := rsa.GenerateKey(rand.Reader, 1024)
	on := func(curve elliptic.Curve) *ecdsa.PublicKey { // where the key's point is not
		k := *public(signers()["ES256"]).(*ecdsa.PublicKey)
		k.Curve = curve
		return &k
	}
	for name, tc := range map[string]struct {
		issuer eventsource.Issuer
		says   string
	}{
		"no key":                  {eventsource.Issuer{}, "jwt[0]: has no key"},
		"a short secret":          {eventsource.Issuer{Key: []byte("short")}, "jwt[0].key: the secret has 5 bytes; give one of at least 32"},
		"short for its hash":      {eventsource.Issuer{Algorithm: "HS512", Key: secret[:40]}, "at least 64"},
		"a short RSA key":         {eventsource.Issuer{Key: weak.Public()}, "shorter than 2048"},
		"another algorithm":       {eventsource.Issuer{Algorithm: "ES256", Key: public(signers()["RS256"])}, "no key for ES256"},
		"another curve":           {eventsource.Issuer{Algorithm: "ES256", Key: public(signers()["ES384"])}, "no key for ES256"},
		"a secret for RSA":        {eventsource.Issuer{Algorithm: "RS256", Key: secret}, "no key for RS256"},
		"none":                    {eventsource.Issuer{Algorithm: "none", Key: secret}, `jwt[0].algorithm: "none" is none of HS256`},
		"an unknown one":          {eventsource.Issuer{Algorithm: "hs256", Key: secret}, "is none of"},
		"a private key":           {eventsource.Issuer{Key: signers()["RS256"]}, "private"},
		"a text":                  {eventsource.Issuer{Key: "secret"}, "string is no key"},
		"a negative leeway":       {eventsource.Issuer{Key: secret, Leeway: -1}, "leeway"},
		"two kinds of keys":       {eventsource.Issuer{Key: secret, Keys: func(context.Context, string, string) ([]crypto.PublicKey, error) { return nil, nil }}, "one of them"},
		"a secret from a set":     {eventsource.Issuer{Algorithm: "HS256", Keys: func(context.Context, string, string) ([]crypto.PublicKey, error) { return nil, nil }}, "secret"},
		"an empty Ed25519 key":    {eventsource.Issuer{Key: ed25519.PublicKey{}}, "no algorithm"},
		"an RSA key of nothing":   {eventsource.Issuer{Key: &rsa.PublicKey{}}, "shorter"},
		"an EC key of no curve":   {eventsource.Issuer{Key: &ecdsa.PublicKey{}}, "no algorithm"},
		"an RSA key that is nil":  {eventsource.Issuer{Key: (*rsa.PublicKey)(nil)}, "shorter"},
		"an EC key that is nil":   {eventsource.Issuer{Key: (*ecdsa.PublicKey)(nil)}, "no algorithm"},
		"an EC key of no point":   {eventsource.Issuer{Key: &ecdsa.PublicKey{Curve: elliptic.P256()}}, "no point"},
		"an EC key off its curve": {eventsource.Issuer{Key: on(elliptic.P521())}, "no point"},
		"a curve that is unknown": {eventsource.Issuer{Key: on(elliptic.P256().Params())}, "no point"},
		"an Ed25519 key for RSA":  {eventsource.Issuer{Algorithm: "RS256", Key: public(signers()["EdDSA"])}, "EdDSA"},
	} {
		err := (&eventsource.Settings{Issuers: []eventsource.Issuer{tc.issuer}}).Validate()
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInspectSaysWhatATokenIs(t *testing.T) {
	issuers := []eventsource.Issuer{{Key: secret, Issuer: "us"}}
	token := granted(t, claims{"iss": "us", "eventsource": claims{"subscribe": []string{"a"}, "publish": []string{"b", "all"}, "admin": true}})
	got, err := eventsource.Inspect(t.Context(), token, issuers)
	if err != nil || got.Subject != "joe" || fmt.Sprint(got.Subscribe, got.Publish, got.Admin) != "[a] [b all] true" || got.Expires.IsZero() {
		t.Errorf("%+v %v", got, err)
	}
	got, err = eventsource.Inspect(t.Context(), granted(t, claims{"iss": "them"}), issuers)
	if p, ok := errors.AsType[*eventsource.Problem](err); !ok || p.Status != 401 || got.Claims["iss"] != "them" || got.Header["alg"] != "HS256" {
		t.Errorf("%+v %v", got, err)
	}
	if got, err = eventsource.Inspect(t.Context(), "x", issuers); err == nil || got == nil {
		t.Errorf("%+v %v", got, err)
	}
}
