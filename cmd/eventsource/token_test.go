package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"

	"github.com/railsmechanic/eventsource"
)

// A pair is a private key as files, in every form that key_file takes.
type pair struct {
	private string
	public  map[string]string // by form; what holds the private half, too, is in both
}

func pemOf(kind string, der []byte, err error) string {
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func newPair(t *testing.T, key crypto.Signer) pair {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	p := pair{private: pemOf("PRIVATE KEY", der, err), public: map[string]string{}}
	p.public["PKCS 8"] = p.private
	der, err = x509.MarshalPKIXPublicKey(key.Public())
	p.public["PKIX"] = pemOf("PUBLIC KEY", der, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	p.public["certificate"] = pemOf("CERTIFICATE", der, err)
	switch k := key.(type) {
	case *rsa.PrivateKey:
		p.public["PKCS 1"] = pemOf("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&k.PublicKey), nil)
		p.public["PKCS 1 private"] = pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k), nil)
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(k)
		p.public["SEC 1"] = pemOf("EC PARAMETERS", []byte{6, 0}, nil) + pemOf("EC PRIVATE KEY", der, err)
	}
	return p
}

func TestTokensOfEveryKindOfKeyAreAccepted(t *testing.T) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	p256, p384, p521 := ec(elliptic.P256()), ec(elliptic.P384()), ec(elliptic.P521())
	for _, test := range []struct {
		algorithm, in string // as configured, and in the token
		key           crypto.Signer
	}{
		{"", "RS256", r}, {"RS512", "RS512", r}, {"PS384", "PS384", r},
		{"", "ES256", p256}, {"ES256", "ES256", p256}, {"", "ES384", p384}, {"", "ES512", p521},
		{"", "EdDSA", ed}, {"EdDSA", "EdDSA", ed},
	} {
		p := newPair(t, test.key)
		for form, public := range p.public {
			t.Run(test.in+" "+form, func(t *testing.T) {
				file := write(t, "config.yml", fmt.Sprintf("jwt: {key_file: %s, algorithm: '%s'}\n", write(t, "key.pem", public), test.algorithm))
				args := []string{"token", "-c", file, "--subject", "joe"}
				if signs := strings.Contains(public, "PRIVATE"); !signs {
					run(t, nil, "", args...).wants(t, 2, "",
						"eventsource: the configuration has only a public key, which can't sign; give the private one as --key-file\n")
					args = append(args, "--key-file", write(t, "private.pem", p.private))
				}
				made := run(t, nil, "", args...)
				if made.status != 0 || made.stderr != "" {
					t.Fatalf("token: %+v", made)
				}
				r := run(t, nil, made.stdout, "token", "inspect", "-c", file)
				if r.status != 0 || !strings.HasSuffix(r.stdout, "Subject: \"joe\"\nAccepted\n") || !strings.Contains(r.stdout, `"alg": "`+test.in+`"`) {
					t.Errorf("inspect: %+v", r)
				}
			})
		}
	}
	for _, algorithm := range []string{"", "HS256", "HS384", "HS512"} {
		t.Run("secret "+algorithm, func(t *testing.T) {
			secret := run(t, nil, "", "keys", "secret", "--algorithm", max(algorithm, "HS256")).stdout
			env := []string{fmt.Sprintf("EVENTSOURCE_JWT={key: %s, algorithm: '%s'}", strings.TrimSpace(secret), algorithm)}
			made := run(t, env, "", "token")
			if algorithm != "" { // a file with white space has the same secret
				env = []string{fmt.Sprintf("EVENTSOURCE_JWT={key_file: %s, algorithm: '%s'}", write(t, "secret", "\n"+secret+"\n"), algorithm)}
			}
			if r := run(t, env, "", "token", "inspect", strings.TrimSpace(made.stdout)); r.status != 0 || !strings.HasSuffix(r.stdout, "\nAccepted\n") {
				t.Errorf("made: %+v, inspect: %+v", made, r)
			}
		})
	}
}

func TestWhatKeyFileCantBeIsTold(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private := newPair(t, ed).private
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]string{
		"":                                       `key.pem is no PEM file; if it is a secret, give algorithm: HS256`,
		"geheim":                                 `key.pem is no PEM file; if it is a secret, give algorithm: HS256`,
		private[:40]:                             `key.pem holds no key; give a PEM text with a public key, a certificate or a private key`,
		"-----BEGIN\n":                           `key.pem holds no key; give a PEM text with a public key, a certificate or a private key`,
		pemOf("X", nil, nil):                     `key.pem holds no key; give a PEM text with a public key, a certificate or a private key`,
		pemOf("CERTIFICATE", []byte{48, 0}, nil): `key.pem holds a broken CERTIFICATE: x509: `,
		pemOf("ENCRYPTED PRIVATE KEY", nil, nil): `key.pem holds a private key that is encrypted; give it as plain text, or its public half`,
		"-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n": `key.pem holds a private key that is encrypted; give it as plain text, or its public half`,
		newPair(t, weak).private: `the RSA key is shorter than 2048 bits (RFC 7518, 3.3)`,
	} {
		key := write(t, "key.pem", content)
		file := write(t, "config.yml", "jwt:\n  issuer: a\n  key_file: "+key+"\n")
		r := run(t, nil, "", "config", "--check", "-c", file)
		if r.status != 2 || !strings.HasPrefix(r.stderr, "eventsource: configuration: "+file+":3: jwt.key_file: "+strings.Replace(want, "key.pem", key, 1)) {
			t.Errorf("%q: %+v", content, r)
		}
	}
}

func TestATokenHoldsWhatWasAskedFor(t *testing.T) {
	file := write(t, "config.yml", `jwt:
  - {key: 01234567890123456789012345678901a, issuer: first, audience: [events, others], subject_claim: email}
  - {key: 01234567890123456789012345678901b, require_expiry: false}
`)
	token := func(args ...string) result { return run(t, nil, "", append([]string{"token", "-c", file}, args...)...) }
	claims := func(r result) jwt.MapClaims {
		t.Helper()
		c := jwt.MapClaims{}
		if _, _, err := jwt.NewParser().ParseUnverified(strings.TrimSpace(r.stdout), c); err != nil || r.status != 0 || strings.Count(r.stdout, "\n") != 1 {
			t.Fatalf("%v: %+v", err, r)
		}
		return c
	}
	c := claims(token("--issuer", "first", "--subject", "joe", "--subscribe", "news.*,a", "--subscribe", "b", "--publish", "all", "--admin"))
	now := float64(time.Now().Unix())
	if iat, exp := c["iat"].(float64), c["exp"].(float64); iat > now || iat < now-60 || exp != iat+3600 {
		t.Errorf("made at %v, expires at %v; it is %v", iat, exp, now)
	}
	delete(c, "iat")
	delete(c, "exp")
	if got, want := fmt.Sprint(c), "map[aud:events email:joe eventsource:map[admin:true publish:[all] subscribe:[news.* a b]] iss:first]"; got != want {
		t.Errorf("the claims are %s, not %s", got, want)
	}
	c = claims(token("--issuer", "2", "--expires", "none"))
	delete(c, "iat")
	if len(c) != 0 {
		t.Errorf("the claims are %v", c)
	}

	for _, test := range []struct {
		want string
		args []string
	}{
		{"there are several issuers; give one as --issuer: first, 2", nil},
		{`--issuer: there is no "third"; there is: first, 2`, []string{"--issuer", "third"}},
		{"--expires: the server wants tokens that expire; give a duration, or set jwt.require_expiry to false", []string{"--issuer", "1", "--expires", "none"}},
		{`--expires: "5" is no duration of a second or more; give one such as 1h or 30m`, []string{"--expires", "5"}},
		{`--publish: "a.*.b" holds '*': `, []string{"--publish", "b,a.*.b"}},
		{`--subscribe: "all" is `, []string{"--subscribe", "all"}},
		{"--key-file: open /nowhere/key: no such file or directory", []string{"--issuer", "2", "--key-file", "/nowhere/key"}},
	} {
		if r := token(test.args...); r.status != 2 || r.stdout != "" || !strings.HasPrefix(r.stderr, "eventsource: "+test.want) {
			t.Errorf("%q: %+v", test.args, r)
		}
	}
	if r := run(t, nil, "", "token"); r.status != 2 || !strings.HasPrefix(r.stderr, `eventsource: the configuration has no "jwt" to sign for; `) {
		t.Errorf("without jwt: %+v", r)
	}
	other := token("--issuer", "2", "--key-file", write(t, "other", "01234567890123456789012345678901c"))
	other.wants(t, 1, "", "eventsource: the server would not accept this token: the token's signature is not one of a key that this server was given\n")
}

// issuerServer serves the public half of a key as a JWK set, and counts who reads it.
func issuerServer(t *testing.T, key crypto.Signer) (url string, reads *atomic.Int32) {
	t.Helper()
	j, err := jwkset.NewJWKFromKey(key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: "first"}})
	if err != nil {
		t.Fatal(err)
	}
	set := jwkset.NewMemoryStorage()
	if err := set.KeyWrite(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	body, err := set.JSONPublic(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reads = &atomic.Int32{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reads.Add(1)
		w.Write(body)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, reads
}

func TestTokensOfAJWKSet(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	url, _ := issuerServer(t, key)
	env := []string{"EVENTSOURCE_JWT={jwks_url: '" + url + "'}"}
	if r := run(t, env, "", "token"); r.status != 2 || !strings.HasPrefix(r.stderr, "eventsource: the configuration has only a jwks_url, whose private keys are the issuer's: ") {
		t.Errorf("without a key: %+v", r)
	}
	file := write(t, "key.pem", newPair(t, key).private)
	public := write(t, "public.pem", newPair(t, key).public["PKIX"])
	run(t, env, "", "token", "--key-file", public).wants(t, 2, "",
		"eventsource: --key-file: "+public+" has no private key, and only such a one signs\n")
	made := run(t, env, "", "token", "--key-file", file, "--kid", "first")
	if r := run(t, env, made.stdout, "token", "inspect"); r.status != 0 || !strings.Contains(r.stdout, `"kid": "first"`) {
		t.Errorf("made: %+v, inspect: %+v", made, r)
	}
	other := run(t, env, "", "token", "--key-file", file, "--kid", "second")
	if r := run(t, env, other.stdout, "token", "inspect", "-"); r.status != 1 || !strings.Contains(r.stdout, "\nRefused: ") {
		t.Errorf("another kid: %+v", r)
	}
}

func TestInspectSaysWhyNot(t *testing.T) {
	env := []string{"EVENTSOURCE_JWT={key: 01234567890123456789012345678901}"}
	sign := func(claims jwt.MapClaims) string {
		s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte("01234567890123456789012345678901"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	now := time.Now()
	r := run(t, env, "", "token", "inspect", sign(jwt.MapClaims{
		"iat": now.Add(-3 * time.Hour).Unix(), "nbf": now.Add(-2*time.Hour - 30*time.Minute).Unix(), "exp": now.Add(-time.Hour).Unix(), "big": 1 << 60}))
	times := regexp.MustCompile(`20[0-9T:-]+Z`)
	want := `
Issued: TIME, 3 hours ago
Valid since: TIME, 2 hours ago
Expired: TIME, 1 hour ago
Refused: the token expired at TIME: send a fresh one
`
	if got := times.ReplaceAllString(r.stdout, "TIME"); r.status != 1 || r.stderr != "" || !strings.HasSuffix(got, want) {
		t.Errorf("an expired one: %+v", r)
	}
	r = run(t, env, "", "token", "inspect", sign(jwt.MapClaims{"nbf": now.Add(48 * time.Hour).Unix(), "exp": now.Add(100 * time.Hour).Unix()}))
	if r.status != 1 || !strings.Contains(r.stdout, "\nValid from: ") || !strings.Contains(r.stdout, ", in 2 days\n") || !strings.Contains(r.stdout, "\nExpires: ") || !strings.Contains(r.stdout, "Refused: the token is not valid yet") {
		t.Errorf("one for later: %+v", r)
	}
	r = run(t, env, "", "token", "inspect", sign(jwt.MapClaims{"exp": now.Add(time.Hour).Unix(), "eventsource": map[string]any{"subscribe": []string{"b", "a.*"}, "publish": []string{"all"}, "admin": true}}))
	if r.status != 0 || !strings.HasSuffix(r.stdout, "\nMay follow: a.*, b\nMay publish to: all\nMay administer\nAccepted\n") {
		t.Errorf("a good one: %+v", r)
	}
	run(t, env, "es_abc", "token", "inspect").wants(t, 1, "Refused: it is no JWT: that is three parts in base64url, joined by dots\n", "")
	if r := run(t, nil, sign(jwt.MapClaims{}), "token", "inspect"); r.status != 1 || !strings.HasSuffix(r.stdout, "Refused: the configuration has no \"jwt\"\n") {
		t.Errorf("without jwt: %+v", r)
	}
	run(t, env, " \n", "token", "inspect").wants(t, 2, "", "eventsource: standard input has no token\n")
}

func TestKeysAreMadeForTheConfiguration(t *testing.T) {
	r := run(t, nil, "", "keys", "--subscribe", "news.*", "--publish", "all,news.a", "--admin")
	parts := regexp.MustCompile(`(?s)^Token, .*\n  (es_[A-Za-z0-9_-]{43})\nIts hash:\n  (sha256:[0-9a-f]{64})\nFor the configuration:\n\n(.*)$`).FindStringSubmatch(r.stdout)
	if parts == nil || r.status != 0 || r.stderr != "" {
		t.Fatalf("%+v", r)
	}
	if parts[2] != eventsource.HashToken(parts[1]) || strings.Contains(parts[3], parts[1]) {
		t.Errorf("it made %q", parts)
	}
	again := run(t, nil, "", "keys", "--subscribe", "news.*", "--publish", "all,news.a", "--admin")
	if strings.Contains(again.stdout, parts[1]) {
		t.Error("two keys are the same")
	}
	run(t, nil, parts[1]+"\n", "keys", "hash").wants(t, 0, parts[2]+"\n", "")
	shown := run(t, nil, "", "config", "-c", write(t, "config.yml", parts[3]))
	if !strings.Contains(shown.stdout, "    subscribe:\n      - news.*\n    publish:\n      - all\n      - news.a\n    admin: true\n") {
		t.Errorf("read, it is %+v", shown)
	}
	if r := run(t, nil, "", "keys", "--subscribe", "a,b c"); r.status != 2 || !strings.HasPrefix(r.stderr, `eventsource: --subscribe: "b c" holds ' ': `) {
		t.Errorf("%+v", r)
	}
	run(t, nil, "", "keys", "secret", "--algorithm", "RS256").wants(t, 2, "", "eventsource: --algorithm: \"RS256\" is none of HS256, HS384, HS512\n")
	run(t, nil, "", "keys", "hash").wants(t, 2, "", "eventsource: standard input has no token\n")
	for algorithm, length := range map[string]int{"HS256": 43, "HS384": 64, "HS512": 86} {
		if r := run(t, nil, "", "keys", "secret", "--algorithm", algorithm); len(r.stdout) != length+1 {
			t.Errorf("a secret for %s is %q", algorithm, r.stdout)
		}
	}
}
