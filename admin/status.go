package admin

import (
	"encoding/json"
	"net/http"
	"runtime/metrics"
	"strings"
	"sync"
	"time"

	"github.com/railsmechanic/eventsource"
)

const (
	// mostConnections is how many consumers the document has.
	mostConnections = 100
	// mostNamed is about how many bytes of names it has of each.
	mostNamed = 500
	// comparable is how far two documents may be apart for rates.
	comparable = time.Minute
)

// A Status is the document at status.json. Besides its own members it has those of
// eventsource.Stats.
type Status struct {
	Node       string `json:"node"`
	Status     string `json:"status"`      // "OK", "draining" or "unavailable"
	ReportedAt int64  `json:"reported_at"` // Unix seconds
	Build      Build  `json:"build"`
	Uptime     int64  `json:"uptime"` // seconds
	eventsource.Stats
	Rates       *Rates       `json:"rates"`        // null: there is no document of the last minute to compare with
	Watchers    int          `json:"watchers"`     // who looks at the page; part of Stats.Relayed
	MemoryBytes uint64       `json:"memory_bytes"` // that the program has from the system
	Goroutines  uint64       `json:"goroutines"`
	Backend     Backend      `json:"backend"`
	Upstream    []Upstream   `json:"upstream"`
	Followed    Following    `json:"followed"`
	Connections []Connection `json:"connections"` // up to 100 of Stats.Consumers, the latest first
}

// Rates are what happened each second since an earlier document.
type Rates struct {
	Seconds   float64 `json:"seconds"` // since that one
	Published float64 `json:"published"`
	Delivered float64 `json:"delivered"`
	Sent      float64 `json:"sent_bytes"`
	Connects  float64 `json:"connects"`
}

// A Backend is what keeps the events, and how it is.
type Backend struct {
	Kind   string `json:"kind"`   // such as "sqlite"
	State  string `json:"state"`  // "ok" or "unavailable"
	Reason string `json:"reason"` // why it is unavailable
}

// A Following is what consumers follow on this node.
type Following struct {
	Names     int        `json:"names"`      // names and wildcards with consumers, the private ones too
	Top       []Followed `json:"top"`        // up to 50 of them, those with most consumers first
	CountedAt *int64     `json:"counted_at"` // Unix seconds; null: not yet
}

// A Connection is a consumer, as other servers' pages have it.
type Connection struct {
	ID          string `json:"id"`
	RequestPath string `json:"request_path"` // what it follows, with the base path
	Namespace   string `json:"namespace"`    // what it follows, without
	CreatedAt   int64  `json:"created_at"`   // Unix seconds
	ClientIP    string `json:"client_ip"`    // "" where limits don't count by addresses: it is not kept then
	UserAgent   string `json:"user_agent"`   // always "": it is not kept
	Behind      uint64 `json:"behind"`       // places between what it has and the mark
}

// A sample is what rates are counted from.
type sample struct {
	at    time.Time
	stats eventsource.Stats
}

// rates returns what happened a second since an earlier sample; nil where that is not
// there or too old.
func (s *sample) rates(since *sample) *Rates {
	seconds := s.at.Sub(since.at).Seconds()
	if seconds <= 0 || seconds > comparable.Seconds() {
		return nil
	}
	each := func(now, before uint64) float64 { return float64(now-before) / seconds }
	return &Rates{
		Seconds:   seconds,
		Published: each(s.stats.Published, since.stats.Published),
		Delivered: each(s.stats.Delivered, since.stats.Delivered),
		Sent:      each(s.stats.Sent, since.stats.Sent),
		Connects:  each(s.stats.Connects, since.stats.Connects),
	}
}

// A look is one document, made once for all who look at that time.
type look struct {
	at   time.Time
	all  func() string
	open func() string // without what is private
	next chan struct{} // closed when there is a later one
}

// text returns the document for who may know of private channels, or not.
func (l *look) text(private bool) string {
	if private {
		return l.all()
	}
	return l.open()
}

// knows reports whether who sends a request may know of private channels.
func (p *Pages) knows(r *http.Request) bool { return p.server.MayFollow(r, personal+"*") }

// look returns the document of now, which is at most a second old.
func (p *Pages) look() *look {
	p.making.Lock()
	defer p.making.Unlock()
	if latest := p.last(); latest != nil && time.Since(latest.at) < period {
		return latest
	}
	return p.renew()
}

// last returns the document that was made last; nil: none was.
func (p *Pages) last() *look {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latest
}

// renew makes a document and shows it to all who look. p.making is held.
func (p *Pages) renew() *look {
	now := sample{time.Now(), p.server.Stats()}
	status, found := p.report(&now), p.followed.count(p.server)
	consumers := p.server.Latest(mostConnections)
	p.before = now
	document := func(private bool) func() string {
		return sync.OnceValue(func() string { return p.encode(status, found, consumers, private) })
	}
	l := &look{at: now.at, all: document(true), open: document(false), next: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.latest != nil {
		close(p.latest.next)
	}
	p.latest = l
	return l
}

// report returns the document without what some may not know.
func (p *Pages) report(now *sample) Status {
	health := p.server.Health()
	status := Status{
		Node:       p.server.Node(),
		Status:     health.Status,
		ReportedAt: now.at.Unix(),
		Build:      p.options.Build,
		Uptime:     int64(now.at.Sub(now.stats.Started).Seconds()),
		Stats:      now.stats,
		Rates:      now.rates(&p.before),
		Backend:    Backend{p.options.Backend, health.Backend, health.Reason},
		Upstream:   []Upstream{},
	}
	if status.Status == "ok" {
		status.Status = "OK" // as other servers' pages have it
	}
	if p.options.Upstream != nil {
		status.Upstream = append(status.Upstream, p.options.Upstream()...)
	}
	status.MemoryBytes, status.Goroutines = process()
	p.mu.Lock()
	defer p.mu.Unlock()
	status.Watchers = p.watchers
	return status
}

// process returns the memory that the program has from the system, and how many
// goroutines there are.
func process() (memory, goroutines uint64) {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/sched/goroutines:goroutines"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64(), samples[2].Value.Uint64()
}

// encode returns a document with what those who may know of private channels see, or
// the others.
func (p *Pages) encode(status Status, found count, consumers []eventsource.Consumer, private bool) string {
	status.Followed = Following{Names: found.names, Top: found.open}
	if private {
		status.Followed.Top = found.top
	}
	if status.Followed.Top == nil {
		status.Followed.Top = []Followed{}
	}
	if !found.at.IsZero() {
		at := found.at.Unix()
		status.Followed.CountedAt = &at
	}
	status.Connections = make([]Connection, len(consumers))
	for i := range consumers {
		status.Connections[i] = p.connection(&consumers[i], private)
	}
	text, err := json.Marshal(&status)
	if err != nil {
		panic("admin: a document of numbers and strings can't fail to encode: " + err.Error())
	}
	return string(text)
}

// connection is a consumer as the document has it.
func (p *Pages) connection(c *eventsource.Consumer, private bool) Connection {
	var names []string
	for length, i := 0, 0; i < len(c.Channels); i++ {
		if !private && strings.HasPrefix(c.Channels[i], personal) {
			continue
		}
		if length += len(c.Channels[i]); length > mostNamed {
			names = append(names, "…")
			break
		}
		names = append(names, c.Channels[i])
	}
	what := "/" + strings.Join(names, ",")
	one := Connection{ID: c.ID, RequestPath: p.options.BasePath + what, Namespace: what, CreatedAt: c.Connected.Unix(), Behind: c.Behind}
	if c.Address.IsValid() {
		one.ClientIP = c.Address.String()
	}
	return one
}
