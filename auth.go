package eventsource

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	// tokenCookie is the cookie that may carry a token.
	tokenCookie = "eventsource_token"
	// maxToken is the longest token in bytes.
	maxToken = 8 << 10
	// hashPrefix begins the hash of a token in Key.Token.
	hashPrefix = "sha256:"
)

// A hash is the SHA-256 of a token. Tokens are long and random, so nothing slower
// is needed to keep them from being guessed.
type hash = [sha256.Size]byte

// HashToken returns what may stand in Key.Token for a token: "sha256:" and its
// SHA-256 in hexadecimal digits.
func HashToken(token string) string {
	h := sha256.Sum256([]byte(token))
	return hashPrefix + hex.EncodeToString(h[:])
}

// hash returns the hash of a key's token.
func (k *Key) hash() (hash, error) {
	if digits, ok := strings.CutPrefix(k.Token, hashPrefix); ok {
		b, err := hex.DecodeString(digits)
		if err != nil || len(b) != sha256.Size {
			return hash{}, fmt.Errorf(`after "%s" belong 64 hexadecimal digits`, hashPrefix)
		}
		return hash(b), nil
	}
	switch {
	case strings.TrimSpace(k.Token) == "":
		return hash{}, errors.New("none is given")
	case k.Token != strings.TrimSpace(k.Token) || strings.ContainsFunc(k.Token, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return hash{}, errors.New("it has control characters, or a space at an end, and could not come in a header")
	case len(k.Token) > maxToken:
		return hash{}, fmt.Errorf("it is longer than %d bytes", maxToken)
	}
	return sha256.Sum256([]byte(k.Token)), nil
}

// validate tells what is wrong with a key, by its members.
func (k *Key) validate(bad func(member, what string)) {
	if _, err := k.hash(); err != nil {
		bad(".token", err.Error())
	}
	for i, p := range k.Subscribe {
		if err := validPattern(p); err != nil {
			bad(fmt.Sprintf(".subscribe[%d]", i), err.Error())
		}
	}
	for i, p := range k.Publish {
		if err := validPattern(p); err != nil && p != globalName {
			bad(fmt.Sprintf(".publish[%d]", i), err.Error())
		}
	}
}

// A grant is what a token allows.
type grant struct {
	subscribe  []string // names and wildcards
	publish    []string
	admin      bool
	everything bool // AuthToken
}

// An identity is what is known of who has a token. It never changes.
type identity struct {
	grant
	who     string    // tells it apart from others: a key, or an issuer's subject
	subject string    // of a JWT
	proof   hash      // what it rests on: the key's hash, or the issuer's
	expires time.Time // of a JWT, with the leeway; zero: never
}

// expired reports whether a token's time is over.
func (id *identity) expired(now time.Time) bool {
	return !id.expires.IsZero() && !now.Before(id.expires)
}

// personal returns the channel of the subject, "" where it has none.
func (id *identity) personal() string {
	if name := personalPrefix + id.subject; id.subject != "" && validName(name) == nil {
		return name
	}
	return ""
}

// A visitor is who sends a request: the identity that its token says, nil without
// one, and how it said so.
type visitor struct {
	*identity
	cookie bool // in a cookie, which a page of another site can send too
}

// everybody is who sends a request where no token is asked for.
var everybody = &identity{grant: grant{everything: true}}

// known reports whether a visitor came with a token that is known.
func (v visitor) known() bool { return v.identity != nil && v.identity != everybody }

// An access decides who may do what. It never changes, but for what it remembers.
type access struct {
	// Set when made.
	asks    bool               // a token is configured
	public  []string           // what needs none to follow
	salt    hash               // of this process: nobody can aim at a place in keys or verified
	keys    map[hash]*identity // by salted
	proofs  map[hash]*identity // by the hash of a key; nil is an issuer's
	issuers []*issuer

	// verified are the JWTs whose signature was checked, by salted.
	verified *recent[hash, verified]
	stats    *stats
}

func newAccess(s *Settings, st *stats) *access {
	a := &access{
		asks:     s.AuthToken != "" || len(s.Keys) > 0 || len(s.Issuers) > 0,
		public:   s.Public,
		keys:     map[hash]*identity{},
		proofs:   map[hash]*identity{},
		verified: newRecent[hash, verified](mostVerified),
		stats:    st,
	}
	rand.Read(a.salt[:])
	for _, k := range s.Keys {
		h, err := k.hash()
		if err != nil {
			panic("eventsource: a key that was validated: " + err.Error())
		}
		a.add(h, grant{subscribe: slices.Clone(k.Subscribe), publish: slices.Clone(k.Publish), admin: k.Admin})
	}
	if s.AuthToken != "" {
		a.add(sha256.Sum256([]byte(s.AuthToken)), grant{everything: true})
	}
	for i := range s.Issuers {
		is := newIssuer(&s.Issuers[i])
		a.issuers = append(a.issuers, is)
		a.proofs[is.proof] = nil
	}
	return a
}

// add has a key count.
func (a *access) add(h hash, g grant) {
	id := &identity{grant: g, who: "key " + hex.EncodeToString(h[:8]), proof: h}
	a.keys[a.salted(h)] = id
	a.proofs[h] = id
}

// salted returns a hash that only this process can tell from h, so that how long it
// takes to find it says nothing of those that are kept.
func (a *access) salted(h hash) hash {
	var both [2 * sha256.Size]byte
	copy(both[:], a.salt[:])
	copy(both[sha256.Size:], h[:])
	return sha256.Sum256(both[:])
}

// current returns what is known now of an identity that was known before a reload;
// false when what it rests on is gone.
func (a *access) current(id *identity) (*identity, bool) {
	if !a.asks || id == nil || id == everybody {
		return id, true
	}
	now, ok := a.proofs[id.proof]
	if now == nil { // an issuer's
		now = id
	}
	return now, ok
}

// An asking is how a request may say who sends it.
type asking struct {
	subscribing bool // a token in the query counts
	cookies     bool // one in a cookie counts
	atOnce      bool // nothing may be waited for: who is not known yet is refused
}

// identify returns who sends a request.
func (a *access) identify(r *http.Request, by asking) (visitor, *Problem) {
	if !a.asks {
		return visitor{identity: everybody}, nil
	}
	token, cookie, p := requestToken(r, by)
	if p != nil || token == "" {
		return visitor{}, p
	}
	if len(token) > maxToken {
		return visitor{}, unknownToken(fmt.Sprintf("the token is longer than %d bytes", maxToken))
	}
	key := a.salted(sha256.Sum256([]byte(token)))
	if id := a.keys[key]; id != nil {
		return visitor{id, cookie}, nil
	}
	if len(a.issuers) == 0 {
		return visitor{}, unknownToken(tokenRule)
	}
	now := time.Now()
	if v, ok := a.verified.get(key); ok && now.Before(v.until) {
		if v.id.expired(now) {
			return visitor{}, expiredToken(v.id.expires)
		}
		return visitor{v.id, cookie}, nil
	}
	if by.atOnce {
		return visitor{}, unknownToken("the token has to be looked at")
	}
	id, p := a.verify(r.Context(), token, now)
	a.stats.verify(p == nil)
	if p != nil {
		return visitor{}, p
	}
	a.verified.put(key, verified{id, now.Add(verifiedAge)})
	return visitor{id, cookie}, nil
}

const tokenRule = "the token is not known: send one that this server was given"

// unknownToken refuses a token (RFC 6750, 3.1).
func unknownToken(detail string) *Problem {
	return newProblem(http.StatusUnauthorized, detail).
		with("WWW-Authenticate", `Bearer realm="eventsource", error="invalid_token"`)
}

func revokedToken() *Problem {
	return unknownToken("the token was revoked: send one that this server was given")
}

func expiredToken(at time.Time) *Problem {
	p := newProblem(http.StatusUnauthorized, "the token expired at "+at.UTC().Format(time.RFC3339)+": send a fresh one")
	return p.with("WWW-Authenticate", `Bearer realm="eventsource", error="invalid_token", error_description="the token expired"`)
}

// requestToken returns the token of a request: from a header, which is never
// sent by accident; else from the query; else from the cookie, which a browser
// adds by itself. Who sends two that differ may mean either (RFC 6750, 2).
func requestToken(r *http.Request, by asking) (token string, cookie bool, p *Problem) {
	several := false
	found := func(t string) {
		if t = strings.TrimSpace(t); t == "" {
			return
		}
		several = several || token != "" && t != token
		token = t
	}
	for _, t := range r.Header["Auth-Token"] {
		found(t)
	}
	for _, v := range r.Header["Authorization"] {
		if scheme, t, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "Bearer") {
			found(t)
		}
	}
	if by.subscribing && strings.Contains(r.URL.RawQuery, "access_token=") {
		for _, t := range r.URL.Query()["access_token"] {
			found(t)
		}
	}
	if several {
		return "", false, newProblem(http.StatusUnauthorized, "the request has several tokens: send one").
			with("WWW-Authenticate", `Bearer realm="eventsource", error="invalid_request"`)
	}
	if token != "" || !by.cookies || r.Header["Cookie"] == nil {
		return token, false, nil
	}
	for _, c := range r.CookiesNamed(tokenCookie) {
		found(c.Value)
	}
	if several {
		return "", false, newProblem(http.StatusUnauthorized, "the request has several cookies "+tokenCookie+": send one").
			with("WWW-Authenticate", `Bearer realm="eventsource", error="invalid_request"`)
	}
	return token, token != "", nil
}

// mayFollow refuses a visitor a name or wildcard that it may not follow.
func (a *access) mayFollow(v visitor, name string) *Problem {
	if a.follows(v, name) {
		return nil
	}
	return v.refused("follow "+name, "one that is granted to follow it")
}

func (a *access) follows(v visitor, name string) bool {
	known := v.identity != nil
	switch {
	case known && v.everything:
		return true
	case name == "*":
		return known && v.admin
	case private(name):
		return known && (name == v.personal() || v.sees(name))
	}
	return known && (v.admin || allows(v.subscribe, name)) || allows(a.public, name)
}

// sees reports whether an identity is granted to follow what is private.
func (id *identity) sees(name string) bool {
	return id.everything || slices.ContainsFunc(id.subscribe, func(p string) bool { return private(p) && covers(p, name) })
}

// hides reports whether a stream of "*" leaves out what is private.
func (v visitor) hides() bool { return v.identity != nil && !v.sees(personalPrefix+"*") }

// mayPublish refuses a visitor a channel that it may not publish to. "all" must
// be granted by its name.
func (a *access) mayPublish(v visitor, name string) *Problem {
	if v.identity != nil && (v.everything || slices.Contains(v.publish, name) || name != globalName && allows(v.publish, name)) {
		return nil
	}
	return v.refused("publish to "+name, "one that is granted to publish to it")
}

// mayAdminister refuses who is no administrator.
func (a *access) mayAdminister(v visitor) *Problem {
	if v.identity != nil && (v.everything || v.admin) {
		return nil
	}
	return v.refused("do this", "an administrator's")
}

func allows(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return covers(p, name) })
}

// refused is 401 for who sent no token and 403 for who sent one that is not for
// this.
func (v visitor) refused(what, right string) *Problem {
	if v.known() {
		return newProblem(http.StatusForbidden, "this token may not "+clip(what)+": send "+right).
			with("WWW-Authenticate", `Bearer realm="eventsource", error="insufficient_scope"`)
	}
	return newProblem(http.StatusUnauthorized, "to "+clip(what)+
		" a token is needed: send it as Auth-Token: T or Authorization: Bearer T").
		with("WWW-Authenticate", `Bearer realm="eventsource"`)
}

// expandPersonal replaces @me by the channel of the visitor's subject.
func (a *access) expandPersonal(v visitor, names []string) ([]string, *Problem) {
	i := slices.Index(names, personalName)
	if i < 0 {
		return names, nil
	}
	if !v.known() {
		return nil, newProblem(http.StatusUnauthorized, "@me is the channel of a token's subject, and there is no token: send one").
			with("WWW-Authenticate", `Bearer realm="eventsource"`)
	}
	name := v.personal()
	switch {
	case v.subject == "":
		return nil, newProblem(http.StatusForbidden, "@me is the channel of a token's subject, and this token has none: name the channel").
			with("WWW-Authenticate", `Bearer realm="eventsource", error="insufficient_scope"`)
	case name == "":
		return nil, newProblem(http.StatusForbidden, "@me is the channel of a token's subject, and this token's makes no name of a channel: "+nameRule).
			with("WWW-Authenticate", `Bearer realm="eventsource", error="insufficient_scope"`)
	case slices.Contains(names, name):
		return slices.Delete(names, i, i+1), nil
	}
	names[i] = name
	return names, nil
}

// verify checks a JWT and returns whose it is.
func (a *access) verify(ctx context.Context, token string, now time.Time) (*identity, *Problem) {
	t, p := readToken(token)
	if p != nil {
		return nil, p
	}
	p = unknownToken("the token's issuer is none that this server was given")
	for _, is := range a.issuers {
		if is.settings.Issuer != "" && is.settings.Issuer != t.issuer {
			continue
		}
		id, refused := is.verify(ctx, t, now)
		if refused == nil {
			return id, nil
		}
		if !p.passing() { // one whose keys are away may accept it later
			p = refused
		}
	}
	return nil, p
}
