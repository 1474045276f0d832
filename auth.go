package eventsource

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"slices"
	"strings"
)

// tokenCookie is the cookie that may carry a token.
const tokenCookie = "eventsource_token"

// A grant is what a token allows.
type grant struct {
	subscribe  []string // names and wildcards
	publish    []string
	admin      bool
	everything bool // AuthToken
}

// A visitor is who sends a request: what is granted to it, and how it said who
// it is.
type visitor struct {
	grant
	known  bool // it came with a token that is known
	cookie bool // in a cookie, which a page of another site can send too
}

// An access decides who may do what.
type access struct {
	// Set when made.
	token  [sha256.Size]byte // AuthToken's hash
	asks   bool              // a token is configured
	public []string          // what needs none to follow
}

func newAccess(s *Settings) *access {
	return &access{token: sha256.Sum256([]byte(s.AuthToken)), asks: s.AuthToken != "", public: s.Public}
}

// everyone is who came without a token where none is asked for.
var everyone = visitor{grant: grant{everything: true}}

// identify returns who sends a request. subscribing says that the token may
// come in the query, cookies that one in a cookie counts.
func (a *access) identify(r *http.Request, subscribing, cookies bool) (visitor, *Problem) {
	if !a.asks {
		return everyone, nil
	}
	token, cookie := requestToken(r, subscribing, cookies)
	if token == "" {
		return visitor{}, nil
	}
	hash := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(hash[:], a.token[:]) != 1 {
		return visitor{}, newProblem(http.StatusUnauthorized, "the token is not known: send one that this server was given").
			with("WWW-Authenticate", `Bearer realm="eventsource", error="invalid_token"`)
	}
	return visitor{grant: grant{everything: true}, known: true, cookie: cookie}, nil
}

// requestToken returns the token of a request: from a header, which is never
// sent by accident; else from the query; else from the cookie.
func requestToken(r *http.Request, subscribing, cookies bool) (token string, cookie bool) {
	if t := strings.TrimSpace(r.Header.Get("Auth-Token")); t != "" {
		return t, false
	}
	if scheme, t, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		if t = strings.TrimSpace(t); t != "" {
			return t, false
		}
	}
	if subscribing {
		if t := r.URL.Query().Get("access_token"); t != "" {
			return t, false
		}
	}
	if c, err := r.Cookie(tokenCookie); cookies && err == nil && c.Value != "" {
		return c.Value, true
	}
	return "", false
}

// mayFollow refuses a visitor a name or wildcard that it may not follow.
func (a *access) mayFollow(v visitor, name string) *Problem {
	if v.everything || allows(v.subscribe, name) {
		return nil
	}
	private := name == "*" || name == "users" || strings.HasPrefix(name, "users.")
	if !private && allows(a.public, name) {
		return nil
	}
	return v.refused("follow "+name, "one that is granted to follow it")
}

// mayPublish refuses a visitor a channel that it may not publish to. "all" must
// be granted by its name.
func (a *access) mayPublish(v visitor, name string) *Problem {
	if v.everything || slices.Contains(v.publish, name) || name != globalName && allows(v.publish, name) {
		return nil
	}
	return v.refused("publish to "+name, "one that is granted to publish to it")
}

// mayAdminister refuses who is no administrator.
func (a *access) mayAdminister(v visitor) *Problem {
	if v.everything || v.admin {
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
	if v.known {
		return newProblem(http.StatusForbidden, "this token may not "+clip(what)+": send "+right).
			with("WWW-Authenticate", `Bearer realm="eventsource", error="insufficient_scope"`)
	}
	return newProblem(http.StatusUnauthorized, "to "+clip(what)+
		" a token is needed: send it as Auth-Token: T or Authorization: Bearer T").
		with("WWW-Authenticate", `Bearer realm="eventsource"`)
}

// expandPersonal replaces @me by the channel of the visitor's subject.
func (a *access) expandPersonal(v visitor, names []string) *Problem {
	if !slices.Contains(names, personalName) {
		return nil
	}
	if !v.known {
		return newProblem(http.StatusUnauthorized, "@me is the channel of a token's subject, and there is no token: send one").
			with("WWW-Authenticate", `Bearer realm="eventsource"`)
	}
	return newProblem(http.StatusForbidden, "@me is the channel of a token's subject, and this token has none: name the channel")
}
