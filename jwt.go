package eventsource

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// mostVerified is how many JWTs are remembered, at least, so that a crowd that
	// comes back costs no signature checks.
	mostVerified = 50_000
	// verifiedAge is after how long a remembered JWT is checked again all the same:
	// its key may have been withdrawn.
	verifiedAge = 5 * time.Minute
	// grantsClaim is the claim of a JWT that holds its grants.
	grantsClaim = "eventsource"
	// minRSA is the shortest RSA key in bits (RFC 7518, 3.3).
	minRSA = 2048
)

// A verified is a JWT that was checked.
type verified struct {
	id    *identity
	until time.Time // it is checked again
}

// An algorithm is one that JWTs may be signed with, and what its key must be.
type algorithm struct {
	name string
	fits func(key any) bool
}

// algorithms are all of them (RFC 7518, 3.1; RFC 8037, 3.1).
var algorithms = []algorithm{
	{"HS256", isSecret(sha256.Size)}, {"HS384", isSecret(sha512.Size384)}, {"HS512", isSecret(sha512.Size)},
	{"RS256", isRSA}, {"RS384", isRSA}, {"RS512", isRSA},
	{"PS256", isRSA}, {"PS384", isRSA}, {"PS512", isRSA},
	{"ES256", isCurve(256)}, {"ES384", isCurve(384)}, {"ES512", isCurve(521)},
	{"EdDSA", isEd25519},
}

func isSecret(bytes int) func(any) bool {
	return func(key any) bool { b, ok := key.([]byte); return ok && len(b) >= bytes }
}

func isRSA(key any) bool {
	k, ok := key.(*rsa.PublicKey)
	return ok && k != nil && k.N != nil && k.N.BitLen() >= minRSA
}

func isCurve(bits int) func(any) bool {
	return func(key any) bool {
		k, ok := key.(*ecdsa.PublicKey)
		return ok && k != nil && k.Curve != nil && k.Curve.Params().BitSize == bits
	}
}

func isEd25519(key any) bool {
	k, ok := key.(ed25519.PublicKey)
	return ok && len(k) == ed25519.PublicKeySize
}

// fits reports whether a key is one for an algorithm.
func fits(algorithm string, key any) bool {
	for _, a := range algorithms {
		if a.name == algorithm {
			return a.fits(key)
		}
	}
	return false
}

// usualAlgorithm returns the one that a key of this kind is mostly for, "" where
// there is none.
func usualAlgorithm(key any) string {
	for _, a := range algorithms {
		if a.fits(key) {
			return a.name
		}
	}
	return ""
}

// GetAlgorithm returns the algorithm in force, "" where it is what each of Keys is
// for.
func (is *Issuer) GetAlgorithm() string {
	if is.Algorithm == "" && is.Keys == nil {
		return usualAlgorithm(is.Key)
	}
	return is.Algorithm
}

// validate tells what is wrong with an issuer, by its members.
func (is *Issuer) validate(bad func(member, what string)) {
	known := slices.ContainsFunc(algorithms, func(a algorithm) bool { return a.name == is.Algorithm })
	switch {
	case is.Algorithm != "" && !known:
		var names []string
		for _, a := range algorithms {
			names = append(names, a.name)
		}
		bad(".algorithm", fmt.Sprintf("%q is none of %s", clip(is.Algorithm), strings.Join(names, ", ")))
	case is.Keys != nil && is.Key != nil:
		bad(".key", "there are Keys, too: give one of them")
	case is.Keys != nil:
		if strings.HasPrefix(is.Algorithm, "HS") {
			bad(".algorithm", is.Algorithm+" has a secret and no public keys: give one such as RS256")
		}
	case is.Key == nil:
		bad("", "has no key to check signatures with")
	default:
		if what := wrongKey(is.Algorithm, is.Key); what != "" {
			bad(".key", what)
		}
	}
	if is.Leeway < 0 {
		bad(".leeway", fmt.Sprintf("%v is negative; give a duration such as 10s", is.Leeway))
	}
}

// wrongKey says why a key is none for an algorithm, "" being the usual one.
func wrongKey(algorithm string, key any) string {
	switch k := key.(type) {
	case []byte:
		m, isHMAC := jwt.GetSigningMethod(cmp.Or(algorithm, "HS256")).(*jwt.SigningMethodHMAC)
		if !isHMAC {
			break
		}
		if n := m.Hash.Size(); len(k) < n {
			return fmt.Sprintf("the secret has %d bytes; give one of at least %d (RFC 7518, 3.2)", len(k), n)
		}
	case *rsa.PublicKey:
		if k == nil || k.N == nil || k.N.BitLen() < minRSA {
			return fmt.Sprintf("the RSA key is shorter than %d bits (RFC 7518, 3.3)", minRSA)
		}
	case *rsa.PrivateKey, *ecdsa.PrivateKey, ed25519.PrivateKey:
		return "it is a private key; give its public half"
	case *ecdsa.PublicKey:
		if usualAlgorithm(k) != "" && !soundEC(k) {
			return "it is no point on one of the curves P-256, P-384 and P-521"
		}
	case ed25519.PublicKey:
	default:
		return fmt.Sprintf("%T is no key; give []byte, *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey", key)
	}
	if algorithm == "" {
		if usualAlgorithm(key) == "" {
			return "it is of a kind that no algorithm takes"
		}
	} else if !fits(algorithm, key) {
		return fmt.Sprintf("it is no key for %s: %s", algorithm, keyKind(key))
	}
	return ""
}

// soundEC reports whether a key is a point on a curve that is known.
func soundEC(k *ecdsa.PublicKey) bool {
	//lint:ignore SA1019 what is asked of a key without them panics
	if k.X == nil || k.Y == nil {
		return false
	}
	_, err := k.ECDH()
	return err == nil
}

// keyKind describes a key.
func keyKind(key any) string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return "an RSA key is for RS256, RS384, RS512, PS256, PS384 and PS512"
	case *ecdsa.PublicKey:
		return "this EC key is for " + cmp.Or(usualAlgorithm(k), "none")
	case ed25519.PublicKey:
		return "an Ed25519 key is for EdDSA"
	}
	return "a secret is for HS256, HS384 and HS512"
}

// An issuer checks the tokens of one Issuer.
type issuer struct {
	settings Issuer // with the defaults spelled out
	proof    hash   // of everything that a token's acceptance rests on
}

func newIssuer(from *Issuer) *issuer {
	is := &issuer{settings: *from}
	is.settings.Audience = slices.Clone(from.Audience)
	is.settings.Algorithm = from.GetAlgorithm()
	if is.settings.SubjectClaim == "" {
		is.settings.SubjectClaim = "sub"
	}
	var key []byte
	switch k := is.settings.Key.(type) {
	case nil:
	case []byte:
		is.settings.Key = slices.Clone(k)
		key = is.settings.Key.([]byte)
	default:
		var err error
		if key, err = x509.MarshalPKIXPublicKey(k); err != nil {
			panic("eventsource: a key that was validated: " + err.Error())
		}
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q %q %d %t %d:", is.settings.Algorithm, is.settings.Name, is.settings.Issuer, is.settings.Audience, is.settings.SubjectClaim, is.settings.Leeway, is.settings.NoExpiry, len(key))
	h.Write(key)
	is.proof = hash(h.Sum(nil))
	return is
}

// A jsonToken is a JWT whose signature was not checked.
type jsonToken struct {
	text   string
	issuer string
}

// readToken splits a JWT. Nothing that it says may be trusted.
func readToken(text string) (jsonToken, *Problem) {
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(text, claims); err != nil {
		if errors.Is(err, jwt.ErrTokenUnverifiable) {
			return jsonToken{}, unknownToken("the token is signed by an algorithm that is not possible here")
		}
		return jsonToken{}, unknownToken(tokenRule)
	}
	issuer, _ := claims["iss"].(string)
	return jsonToken{text, issuer}, nil
}

// verify checks a token's signature and what it claims.
func (is *issuer) verify(ctx context.Context, t jsonToken, now time.Time) (*identity, *Problem) {
	options := []jwt.ParserOption{jwt.WithLeeway(is.settings.Leeway), jwt.WithStrictDecoding(), jwt.WithTimeFunc(func() time.Time { return now })}
	if !is.settings.NoExpiry {
		options = append(options, jwt.WithExpirationRequired())
	}
	if is.settings.Issuer != "" {
		options = append(options, jwt.WithIssuer(is.settings.Issuer))
	}
	if len(is.settings.Audience) > 0 {
		options = append(options, jwt.WithAudience(is.settings.Audience...))
	}
	claims := jwt.MapClaims{}
	_, err := jwt.NewParser(options...).ParseWithClaims(t.text, claims, func(t *jwt.Token) (any, error) { return is.keys(ctx, t) })
	if err != nil {
		return nil, is.refusal(err, claims)
	}
	if at, ok := claims["exp"].(float64); ok && at == 0 { // which the library takes for none
		return nil, expiredToken(time.Unix(0, 0))
	}
	if at, ok := claims["nbf"].(float64); ok && at >= 1<<62 { // which overflows into the past
		return nil, unknownToken("the token is not valid yet: look at the clocks")
	}
	return is.identity(claims)
}

// errAlgorithm is a token that is not signed as its key says.
var errAlgorithm = errors.New("the algorithm is not the key's")

// keys returns what may have signed a token: only keys for the algorithm that it
// bears, which is one of the issuer's.
func (is *issuer) keys(ctx context.Context, t *jwt.Token) (any, error) {
	algorithm := t.Method.Alg()
	if is.settings.Algorithm != "" && is.settings.Algorithm != algorithm {
		return nil, errAlgorithm
	}
	if _, ok := t.Header["crit"]; ok {
		return nil, errors.New("the header has critical members, and none is understood") // RFC 7515, 4.1.11
	}
	if is.settings.Keys == nil {
		return is.settings.Key, nil
	}
	kid, _ := t.Header["kid"].(string)
	found, err := is.settings.Keys(ctx, kid, algorithm)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("no key has signed it")
	}
	var set jwt.VerificationKeySet
	for _, key := range found {
		if _, secret := any(key).([]byte); !secret && fits(algorithm, key) {
			set.Keys = append(set.Keys, key)
		}
	}
	if len(set.Keys) == 0 {
		return nil, errAlgorithm
	}
	return set, nil
}

// refusal says what is wrong with a token, and nothing of what it holds beyond
// times.
func (is *issuer) refusal(err error, claims jwt.MapClaims) *Problem {
	switch {
	case errors.Is(err, ErrUnavailable):
		return newProblem(http.StatusServiceUnavailable, "the keys that the token could be checked with can't be had at present: come back later").
			after(time.Second)
	case errors.Is(err, errAlgorithm):
		return unknownToken("the token is not signed by the algorithm of its key")
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
		return unknownToken("the token's signature is not one of a key that this server was given")
	case errors.Is(err, jwt.ErrTokenExpired):
		if at, _ := claims.GetExpirationTime(); at != nil {
			return expiredToken(at.Add(is.settings.Leeway))
		}
	case claims["exp"] == 0.0:
		return expiredToken(time.Unix(0, 0))
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing) && claims["exp"] == nil && !is.settings.NoExpiry:
		return unknownToken(`the token has no "exp": send one that expires`)
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return unknownToken("the token is not valid yet: look at the clocks")
	case errors.Is(err, jwt.ErrTokenInvalidAudience), claims["aud"] == nil && len(is.settings.Audience) > 0:
		return unknownToken("the token is for another audience")
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return unknownToken("the token's issuer is none that this server was given")
	}
	return unknownToken("the token's claims can't be read: look at their types")
}

// identity returns what a verified token says.
func (is *issuer) identity(claims jwt.MapClaims) (*identity, *Problem) {
	id := &identity{proof: is.proof}
	switch subject := claims[is.settings.SubjectClaim].(type) {
	case nil:
	case string:
		id.subject = subject
	default:
		return nil, unknownToken("the token's claim " + quote(is.settings.SubjectClaim) + " is no text")
	}
	id.who = "subject " + is.settings.Issuer + "\x00" + id.subject
	if at, _ := claims.GetExpirationTime(); at != nil {
		id.expires = at.Add(is.settings.Leeway)
	}
	g, err := readGrants(claims[grantsClaim])
	if err != nil {
		return nil, unknownToken("the token's claim " + grantsClaim + clip(err.Error()))
	}
	id.grant = g
	return id, nil
}

// readGrants reads the claim that holds the grants. Its error goes on where the
// claim's name ends.
func readGrants(claim any) (grant, error) {
	var g grant
	members, ok := claim.(map[string]any)
	switch {
	case claim == nil:
		return g, nil
	case !ok:
		return g, errors.New(` is no object such as {"subscribe": ["news.*"]}`)
	}
	names := func(member string, to *[]string, global bool) error {
		list, ok := members[member].([]any)
		if !ok && members[member] != nil {
			return fmt.Errorf(`.%s is no list such as ["news.*"]`, member)
		}
		for _, m := range list {
			p, ok := m.(string)
			if !ok {
				return fmt.Errorf(`.%s holds what is no text`, member)
			}
			if err := validPattern(p); err != nil && !(global && p == globalName) {
				return fmt.Errorf(".%s: %w", member, err)
			}
			*to = append(*to, p)
		}
		return nil
	}
	if err := errors.Join(names("subscribe", &g.subscribe, false), names("publish", &g.publish, true)); err != nil {
		return grant{}, err
	}
	if g.admin, ok = members["admin"].(bool); !ok && members["admin"] != nil {
		return grant{}, errors.New(".admin is neither true nor false")
	}
	return g, nil
}

// A Token is what a JWT says, as this server understands it.
type Token struct {
	Header  map[string]any
	Claims  map[string]any // numbers are json.Number
	Subject string
	// Subscribe, Publish and Admin are its grants.
	Subscribe []string
	Publish   []string
	Admin     bool
	// Expires is when it ends, with the leeway; zero: never.
	Expires time.Time
}

// Inspect reads a JWT and says whether the issuers would accept it now. Its error
// is nil, or a *Problem that says why not; what the token holds is returned in
// either case, as far as it can be read.
func Inspect(ctx context.Context, token string, issuers []Issuer) (*Token, error) {
	var t Token
	claims := jwt.MapClaims{}
	parsed, _, _ := jwt.NewParser(jwt.WithJSONNumber()).ParseUnverified(token, claims)
	if parsed != nil {
		t.Header, t.Claims = parsed.Header, claims
	}
	s := Settings{Issuers: issuers}
	if err := s.Validate(); err != nil {
		return &t, err
	}
	id, p := newAccess(&s, newStats()).verify(ctx, token, time.Now())
	if p != nil {
		return &t, p
	}
	t.Subject, t.Expires = id.subject, id.expires
	t.Subscribe, t.Publish, t.Admin = id.subscribe, id.publish, id.admin
	return &t, nil
}
