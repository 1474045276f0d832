package eventsource

import (
	"fmt"
	"iter"
	"net/http"
	"net/netip"
	"slices"
)

// A policy is what Reload can change: who may do what, and how much. It never
// changes itself.
type policy struct {
	number    uint64 // a later one's is higher
	access    *access
	cross     *crossSite
	limits    Limits
	proxies   []netip.Prefix
	publishes *rates // nil: no limit
	connects  *rates
}

// newPolicy returns what effective settings say. What can be carried over from the
// policy before, if there is one, is.
func newPolicy(s *Settings, st *stats, before *policy) *policy {
	p := &policy{
		access:    newAccess(s, st),
		cross:     newCrossSite(s),
		limits:    s.Limits,
		proxies:   slices.Clone(s.TrustedProxies),
		publishes: newRates(s.Limits.PublishesPerSecond, limitPublishes),
		connects:  newRates(s.Limits.ConnectsPerSecond, limitConnects),
	}
	if before != nil {
		p.number = before.number + 1
		p.publishes = p.publishes.or(before.publishes)
		p.connects = p.connects.or(before.connects)
	}
	return p
}

// visit returns who sends a request, and whether a page of another site makes it
// write. A token that is refused counts for its address.
func (p *policy) visit(r *http.Request, by asking) (visitor, *Problem) {
	by.cookies = p.cross.cookieCounts(r)
	v, refused := p.access.identify(r, by)
	if refused != nil {
		if !by.atOnce {
			if _, limited := p.take(p.connects, visitor{}, r, 1); limited != nil {
				return v, limited
			}
		}
		return v, refused
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refused = p.cross.mayWrite(r, v)
	}
	return v, refused
}

// Reload takes over AuthToken, Keys, Issuers, Public, TrustedProxies, the fields of
// CORS, and Limits but for Head; nil is their defaults. It ends the streams whose
// token is gone or grants them no longer ("revoked") and touches no other. Settings
// that can't be used are refused and leave everything as it was. It is safe for
// concurrent use.
func (s *Server) Reload(settings *Settings) error {
	if err := settings.Validate(); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	effective := settings.effective()
	s.reloading.Lock()
	defer s.reloading.Unlock()
	p := newPolicy(&effective, s.stats, s.policy.Load())
	s.policy.Store(p)
	s.registry.govern(p)
	s.endRelays(endRevoked, func(one *relayed) bool { return !p.allowsRelay(one) })
	return nil
}

// govern has the registry go by a policy, and ends the streams that it does not
// allow. Who joins meanwhile was judged by it.
func (r *registry) govern(p *policy) {
	r.mu.Lock()
	r.policy = p
	r.mu.Unlock()
	r.eachConsumer(globalName, func(c *consumer) bool {
		if r.policy == p && !p.allowsLocked(c) {
			r.endLocked(c, endRevoked)
		}
		return r.policy == p
	})
}

// permits returns what is known now of an identity, and whether it may follow what
// is named.
func (p *policy) permits(id *identity, names iter.Seq[string], hides bool) (now *identity, ok bool) {
	if now, ok = p.access.current(id); !ok {
		return nil, false
	}
	v := visitor{identity: now}
	if !p.access.asks {
		v.identity = everybody
	}
	for name := range names {
		if !p.access.follows(v, name) || name == "*" && v.hides() && !hides {
			return nil, false
		}
	}
	return now, true
}

// allowsLocked reports whether a consumer may go on, and notes what its token
// grants now.
func (p *policy) allowsLocked(c *consumer) bool {
	now, ok := p.permits(c.identity(), c.named, c.hides)
	if ok && now != nil {
		c.wider.identity = now
	}
	return ok
}
