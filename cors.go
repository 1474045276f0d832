package eventsource

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/rs/cors"
)

// corsHeaders may always be sent by pages of an allowed origin.
var corsHeaders = []string{"Authorization", "Auth-Token", "Content-Type", "Last-Event-ID", "Cache-Control", "Idempotency-Key"}

// corsExposed are the headers of answers that such pages may read.
var corsExposed = []string{"X-Consumer-Count", "X-Channel-Exists", "X-Channel-Count", "X-Available-Channels",
	"X-Available-Channels-Truncated", "X-Unread-Count", "ETag", "Link", "Retry-After", "WWW-Authenticate"}

// A crossSite decides what pages of other origins may do.
type crossSite struct {
	origins     []string
	methods     []string
	credentials bool
	cors        *cors.Cors // nil when CORS is off
	protection  *http.CrossOriginProtection
}

func newCrossSite(s *Settings) *crossSite {
	x := &crossSite{
		origins:     corsOrigins(s.CorsAllowOrigin),
		methods:     s.CorsAllowMethod,
		credentials: s.CorsAllowCredentials,
		protection:  http.NewCrossOriginProtection(),
	}
	if len(x.origins) > 0 {
		x.cors = cors.New(cors.Options{
			AllowedOrigins:   x.origins,
			AllowedMethods:   x.methods,
			AllowedHeaders:   slices.Concat(corsHeaders, s.CorsAllowHeaders),
			ExposedHeaders:   corsExposed,
			AllowCredentials: x.credentials,
			MaxAge:           600,
		})
	}
	return x
}

// serve adds the CORS headers to what h answers and answers preflights.
func (x *crossSite) serve(w http.ResponseWriter, r *http.Request, h http.Handler) {
	if x.cors == nil {
		h.ServeHTTP(w, r)
		return
	}
	x.cors.ServeHTTP(w, r, h.ServeHTTP)
}

// sameOrigin reports whether a request comes from a page of this server, or
// from no page at all.
func sameOrigin(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "same-origin", "none":
		return true
	case "":
		origin := r.Header.Get("Origin")
		if origin == "" {
			return true
		}
		u, err := url.Parse(origin)
		return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
	}
	return false
}

// cookieCounts reports whether a cookie may say who sends a request: only from
// the same origin, or from one that is listed by name with credentials.
func (x *crossSite) cookieCounts(r *http.Request) bool {
	return sameOrigin(r) || x.credentials && x.listed(r.Header.Get("Origin"))
}

// withoutCookies returns a request as it is, or without its cookies where they don't count.
func (x *crossSite) withoutCookies(r *http.Request) *http.Request {
	if r.Header["Cookie"] == nil || x.cookieCounts(r) {
		return r
	}
	bare := r.WithContext(r.Context())
	bare.Header = r.Header.Clone()
	bare.Header.Del("Cookie")
	return bare
}

func (x *crossSite) listed(origin string) bool {
	return origin != "" && slices.ContainsFunc(x.origins, func(o string) bool { return strings.EqualFold(o, origin) })
}

// mayWrite refuses a write that a page of another site has its browser send. It
// passes when CORS allows the origin and the method, and no cookie is what it
// is trusted for; or from an origin that is listed by name with credentials.
func (x *crossSite) mayWrite(r *http.Request, v visitor) *Problem {
	origin := r.Header.Get("Origin")
	allowed := origin != "" && (x.listed(origin) || slices.Contains(x.origins, "*")) && slices.Contains(x.methods, r.Method)
	if allowed && (!v.cookie || x.credentials && x.listed(origin)) {
		return nil
	}
	if err := x.protection.Check(r); err != nil {
		return newProblem(http.StatusForbidden, "a page of another origin may not do this: allow it in cors.allow_origin and "+
			r.Method+" in cors.allow_method, and send the token in a header")
	}
	return nil
}
