package eventsource

import (
	"net/http/httptest"
	"testing"
	"time"
)

// A reload comes between the look at a request's token and its joining, and between
// its joining and the writer's meeting it: neither gets through.
func TestAReloadCatchesWhoIsAboutToJoin(t *testing.T) {
	with := &Settings{Public: []string{}, Keys: []Key{{Token: "stays", Subscribe: []string{"news"}}, {Token: "goes", Subscribe: []string{"news"}}}}
	without := &Settings{Public: []string{}, Keys: with.Keys[:1]}
	s, w := idleNotifier(t, with)
	r := s.registry
	judged := func(token string) subscription {
		t.Helper()
		request := httptest.NewRequest("GET", "/news", nil)
		request.Header.Set("Auth-Token", token)
		sub, p := s.subscription(request, false)
		if p != nil {
			t.Fatal(p)
		}
		sub.portable, sub.raw = true, true
		return sub
	}
	reload := func(to *Settings) {
		t.Helper()
		if err := s.Reload(to); err != nil {
			t.Fatal(err)
		}
	}
	join := func(sub subscription) *consumer {
		t.Helper()
		c, p := r.join(sub, w, time.Second)
		if p != nil {
			t.Fatal(p)
		}
		return c
	}
	late, later := judged("goes"), judged("stays")
	reload(without)
	// The registry goes by a policy a moment after requests are judged by it.
	effective := with.effective()
	s.policy.Store(newPolicy(&effective, s.stats, r.policy))
	early := join(judged("goes"))
	r.depart(early, endGone)
	s.policy.Store(r.policy)
	if _, p := r.join(late, w, time.Second); p == nil || p.Status != 401 {
		t.Errorf("who was judged before the reload joins: %v", p)
	}
	stays := join(later)
	reload(with)
	goes := join(judged("goes"))
	reload(without)
	if len(w.ends) != 1 || w.ends[0].consumer != goes || w.ends[0].reason != endRevoked {
		t.Errorf("to be ended are %+v, not who has just joined", w.ends)
	}
	r.depart(stays, endGone)
	r.depart(goes, endGone)
	var p pass
	w.take(&p)
	if n := r.connected(); n != 0 {
		t.Errorf("%d consumers are left", n)
	}
}
