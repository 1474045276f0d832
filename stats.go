package eventsource

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// Stats are what a server has done and holds. Counters count from the time that
// it was opened.
type Stats struct {
	Started       time.Time         `json:"started"`
	Consumers     int               `json:"consumers"`      // connected now
	Relayed       int               `json:"relayed"`        // streams of relays, such as those of AMQP queues and the status page
	Replays       int               `json:"replays"`        // consumers that come, and are sent what the logs have no longer
	Channels      int               `json:"channels"`       // with a consumer by name or a kept event, or about to go
	HistoryEvents int64             `json:"history_events"` // kept, each once
	HistoryBytes  int64             `json:"history_bytes"`  // their memory, with entries and channels
	Mark          uint64            `json:"mark"`           // the Seq up to which every event is here
	Publishes     uint64            `json:"publishes"`      // requests and calls that published
	Published     uint64            `json:"published"`      // events of them
	Delivered     uint64            `json:"delivered"`      // events to consumers, each counted
	Sent          uint64            `json:"sent_bytes"`     // bytes that their streams took, and those of relays but the status page's
	Connects      uint64            `json:"connects"`       // consumers that came
	Gaps          uint64            `json:"gaps"`           // that were told of
	Recalled      uint64            `json:"recalled"`       // events of Delivered that were read from the backend for one consumer
	Disconnects   map[string]uint64 `json:"disconnects"`    // consumers that went, by reason
	Refusals      map[int]uint64    `json:"refusals"`       // requests, by status
	Limited       map[string]uint64 `json:"limited"`        // requests that a limit refused, by its name
	Verified      uint64            `json:"verified"`       // JWTs that were checked and accepted
	Unverified    uint64            `json:"unverified"`     // JWTs that were checked and refused
	Draining      bool              `json:"draining"`
	Available     bool              `json:"available"` // the backend takes events
	Sources       []SourceStats     `json:"sources"`
}

// stats are the counters behind Stats.
type stats struct {
	events     atomic.Int64 // kept
	publishes  atomic.Uint64
	published  atomic.Uint64
	delivered  atomic.Uint64
	sent       atomic.Uint64
	connects   atomic.Uint64
	gaps       atomic.Uint64
	recalled   atomic.Uint64
	verified   atomic.Uint64
	unverified atomic.Uint64

	mu          sync.Mutex
	disconnects map[string]uint64
	refusals    map[int]uint64
	limited     map[string]uint64
}

func newStats() *stats {
	st := &stats{disconnects: map[string]uint64{}, refusals: map[int]uint64{}, limited: map[string]uint64{}}
	for _, reason := range []string{endClosed, endSlow, endDraining, endExpired, endRevoked, endGone, endNoisy} {
		st.disconnects[reason] = 0
	}
	for _, limit := range []string{limitConsumers, limitConsumersPerChannel, limitConsumersPerAddress, limitPublishes, limitConnects} {
		st.limited[limit] = 0
	}
	return st
}

func (st *stats) publish(events int) {
	st.publishes.Add(1)
	st.published.Add(uint64(events))
}

func (st *stats) deliver(events, bytes int) {
	st.delivered.Add(uint64(events))
	st.sent.Add(uint64(bytes))
}

func (st *stats) disconnect(reason string) {
	st.mu.Lock()
	st.disconnects[reason]++
	st.mu.Unlock()
}

// refuse counts a refusal.
func (st *stats) refuse(p *Problem) {
	st.mu.Lock()
	st.refusals[p.Status]++
	if p.limit != "" {
		st.limited[p.limit]++
	}
	st.mu.Unlock()
}

// verify counts a JWT that was checked.
func (st *stats) verify(accepted bool) {
	if accepted {
		st.verified.Add(1)
	} else {
		st.unverified.Add(1)
	}
}

// Stats returns what the server has done and holds. Safe for concurrent use.
func (s *Server) Stats() Stats {
	st, r := s.stats, s.registry
	r.mu.Lock()
	out := Stats{
		Started:      s.started,
		Consumers:    r.consumers,
		Relayed:      r.relayed,
		Channels:     len(r.named),
		HistoryBytes: r.budget.held,
		Mark:         r.mark.Load(),
	}
	r.mu.Unlock()
	out.Replays = int(s.replays.Load())
	out.HistoryEvents = st.events.Load()
	out.Publishes, out.Published = st.publishes.Load(), st.published.Load()
	out.Delivered, out.Sent = st.delivered.Load(), st.sent.Load()
	out.Connects, out.Gaps, out.Recalled = st.connects.Load(), st.gaps.Load(), st.recalled.Load()
	out.Verified, out.Unverified = st.verified.Load(), st.unverified.Load()
	st.mu.Lock()
	out.Disconnects, out.Refusals, out.Limited = maps.Clone(st.disconnects), maps.Clone(st.refusals), maps.Clone(st.limited)
	st.mu.Unlock()
	out.Draining, out.Available = s.draining.Load(), s.reason() == nil
	out.Sources = make([]SourceStats, len(s.feeds))
	for i, f := range s.feeds {
		out.Sources[i] = f.stats()
	}
	return out
}

// Health is the document at /health.
type Health struct {
	Status   string            `json:"status"`           // "ok", "draining" or "unavailable"
	Ready    bool              `json:"ready"`            // takes publishes and consumers
	Draining bool              `json:"draining"`         // shuts down
	Backend  string            `json:"backend"`          // "ok" or "unavailable"
	Reason   string            `json:"reason,omitempty"` // why the backend is unavailable; over HTTP for administrators
	Sources  map[string]string `json:"sources"`          // "connecting", "ok" or "failing", by kind and number
}

// Health returns the state of the server and what it rests on. Safe for
// concurrent use.
func (s *Server) Health() Health {
	h := Health{Status: "ok", Ready: true, Draining: s.draining.Load(), Backend: "ok", Sources: map[string]string{}}
	for _, f := range s.feeds {
		h.Sources[f.name] = f.stats().State
	}
	if reason := s.reason(); reason != nil {
		h.Reason = reasonOf(reason)
		h.Backend, h.Status, h.Ready = "unavailable", "unavailable", false
	}
	if h.Draining {
		h.Status, h.Ready = "draining", false
	}
	return h
}
