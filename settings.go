package eventsource

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What the zero value of a setting means.
const (
	defaultTimeout         = 5 * time.Second
	defaultHost            = "127.0.0.1"
	defaultPort            = 8080
	defaultCorsAllowMethod = "GET"
	defaultHeartbeat       = 15 * time.Second
	defaultRetry           = 3 * time.Second
	defaultDrain           = 10 * time.Second

	defaultHistoryEvents = 256
	defaultHistoryAge    = 10 * time.Minute
	defaultHistoryBytes  = 64 << 20

	// maxRules is how many settings of some channels there may be.
	maxRules = 255

	defaultRetentionEvents = 10_000
	defaultRetentionAge    = 30 * 24 * time.Hour

	defaultLimitBody                = 1 << 20
	defaultLimitHead                = 16 << 10
	defaultLimitChannels            = 1_000_000
	defaultLimitChannelsPerConsumer = 100
	defaultLimitIdempotencyKeys     = 100_000
)

// Settings say how a server behaves. The zero value of each field, and a nil
// *Settings, mean the documented default; where zero is a default that is not
// "none", -1 is none. A Server copies its settings when it is made.
type Settings struct {
	// Timeout is how long a consumer may make no progress before it is
	// disconnected, how long a request's head may take, and how long a publish
	// waits where it must. 0 is 5 s.
	Timeout time.Duration
	// AuthToken is the key that may do everything. Empty: nothing asks for a
	// token.
	AuthToken string
	// Host is the name or address that Run and ListenAndServe listen on. Empty
	// is 127.0.0.1.
	Host string
	// Port is the TCP port that Run and ListenAndServe listen on. 0 is 8080; for
	// any free port hand a listener to Serve.
	Port uint
	// CorsAllowOrigin is the origin whose pages may read and, with
	// CorsAllowMethod, write: "https://example.org", several joined by commas,
	// or "*". A host without a scheme stands for http and https. Empty: no CORS
	// headers are sent.
	CorsAllowOrigin string
	// CorsAllowMethod are the methods that such pages may use. Empty is GET.
	CorsAllowMethod []string

	// CorsAllowHeaders are request headers that such pages may send besides
	// Authorization, Auth-Token, Content-Type, Last-Event-ID, Cache-Control and
	// Idempotency-Key, which are always allowed.
	CorsAllowHeaders []string
	// CorsAllowCredentials lets such pages send the cookie. It needs origins
	// that are listed by name.
	CorsAllowCredentials bool

	// BasePath is put before every channel: "/subscribe" serves the channel
	// "updates" at /subscribe/updates. Empty: /updates.
	BasePath string
	// Heartbeat is the longest silence on a stream before a comment is sent. 0
	// is 15 s, -1 sends none.
	Heartbeat time.Duration
	// Retry is what a consumer is told to wait before it reconnects. 0 is 3 s.
	Retry time.Duration
	// Drain is how long Stop and Run wait for publishes under way. 0 is 10 s.
	Drain time.Duration
	// Public are the names and wildcards that need no token to follow. nil is
	// {"*"}; empty but not nil: none. What is below "users" is never public.
	Public []string
	// Keys are tokens besides AuthToken, each with what it grants.
	Keys []Key
	// Issuers are whose JWTs count: those of any that accepts them.
	Issuers []Issuer
	// TrustedProxies are the addresses whose word is taken for where a request
	// comes from: X-Forwarded-For, or else Forwarded (RFC 7239). Who comes over a
	// Unix socket counts as 127.0.0.1.
	TrustedProxies []netip.Prefix
	// TLS has Serve speak TLS, and HTTP/2 where a client wants it (ALPN). nil:
	// cleartext HTTP/1.1 and HTTP/2.
	TLS *tls.Config
	// Headers are sent with every stream besides the standard ones.
	Headers map[string]string
	// History is what is kept for consumers that come back.
	History History
	// Retention is what a Backend that is a Store retains, for pages and inboxes, and
	// for consumers that come back later than History reaches.
	Retention Retention
	// Channels are settings of some channels, in place of those of all: of the first
	// that matches a channel's name.
	Channels []ChannelSettings
	// Limits bound what a server takes on.
	Limits Limits

	// Backend keeps and orders events; nil keeps them in memory. The server
	// closes it.
	Backend Backend
	// Sources feed events in from elsewhere while the server is open.
	Sources []Source
	// Logger gets what an operator wants to know; nil logs nothing.
	Logger *slog.Logger

	// portable keeps consumers on the handler's goroutine where the reactor
	// could serve them.
	portable bool
}

// History bounds the events that are kept for consumers that come back.
type History struct {
	// Events is the number kept in a channel. 0 is 256, -1 keeps none.
	Events int
	// Age is how long an event is kept. 0 is 10 minutes, -1 keeps it for any
	// time.
	Age time.Duration
	// Bytes is the memory of all channels' events together, with what it costs
	// to keep track of them; beyond it the channel that holds most loses its
	// oldest. 0 is 64 MiB.
	Bytes int64
}

// ChannelSettings are the settings of some channels. What is nil or zero is as for all
// the others.
type ChannelSettings struct {
	// Match is a name or a wildcard, which holds itself, too: "users.*" is every
	// channel below users, and what the streams of "users.*" keep; "*" is all.
	Match string
	// History is what is kept of each; its Bytes are those of all channels together
	// and not set here.
	History *History
	// Retention is what a Store retains of each.
	Retention *Retention
	// Consumers is how many may follow one by name. 0 is what Limits says, -1 any
	// number.
	Consumers int
}

// Limits bound what a server takes on. What exceeds them is refused and leaves
// everything as it was.
type Limits struct {
	// Body is the longest body of a request, or line of an NDJSON one, in
	// bytes. 0 is 1 MiB.
	Body int64
	// Head is the longest head of a request in bytes, give or take 4 KiB. 0 is
	// 16 KiB.
	Head int
	// Channels is how many channels may exist. 0 is 1,000,000.
	Channels int
	// ChannelsPerConsumer is how many names one request may join by commas. 0
	// is 100.
	ChannelsPerConsumer int
	// IdempotencyKeys is how many are remembered at once. 0 is 100,000.
	IdempotencyKeys int
	// Consumers is how many may be connected at once. 0 is what the process's
	// descriptor limit allows, less 64.
	Consumers int
	// ConsumersPerChannel is how many may follow one channel by name. 0 is no
	// limit.
	ConsumersPerChannel int
	// ConsumersPerAddress is how many may be connected from one address, or from
	// one /64 of IPv6. 0 is no limit.
	ConsumersPerAddress int
	// PublishesPerSecond is how many publishes a key, a subject, or, where there
	// is neither, an address may send a second. A second's worth may come at once.
	// An event of a batch and a line of NDJSON counts as one: a batch beyond that
	// puts off what comes next, lines wait for their turn. 0 is no limit.
	PublishesPerSecond float64
	// ConnectsPerSecond is likewise how many streams may be asked for. A token that
	// is refused counts for its address. 0 is no limit.
	ConnectsPerSecond float64
}

// A Key is a token with what it grants. It is kept as a hash.
type Key struct {
	// Token is the token itself, or "sha256:" and the hash of it in hexadecimal
	// digits, as HashToken returns it.
	Token string
	// Subscribe are the names and wildcards that it may follow besides the public
	// ones. "*" is every channel that is not below "users"; for these a grant
	// begins with "users.".
	Subscribe []string
	// Publish are the names and wildcards that it may publish to. "all" must be
	// named.
	Publish []string
	// Admin lets it follow every channel that is not below "users", delete and
	// inspect channels, and see the pages of the operators.
	Admin bool
}

// An Issuer is who signs JWTs (RFC 7519), and what these must hold.
//
// A token grants what its claim "eventsource" says, an object of "subscribe",
// "publish" (lists of names and wildcards) and "admin"; and its subject may
// follow "users." and itself.
type Issuer struct {
	// Algorithm is the one that the tokens are signed with: HS256, HS384, HS512,
	// RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 or EdDSA
	// (RFC 7518, 3.1; RFC 8037). Empty is the usual one of Key's kind: HS256,
	// RS256, ES256, ES384 or ES512 by the curve, EdDSA; with Keys it is what each
	// key is for.
	Algorithm string
	// Key checks signatures: the secret as []byte, an *rsa.PublicKey, an
	// *ecdsa.PublicKey or an ed25519.PublicKey.
	Key any
	// Keys returns the public keys that may have signed a token with this "kid"
	// ("": it has none) by this algorithm, in place of Key. It may wait, and is
	// called by several goroutines at once.
	Keys func(ctx context.Context, kid, algorithm string) ([]crypto.PublicKey, error)
	// Name tells Keys of another source apart when settings are reloaded, such
	// as their URL. It is shown to nobody.
	Name string
	// Issuer is what "iss" must be. Empty: it may be anything.
	Issuer string
	// Audience is of what "aud" must hold one. Empty: it may be anything.
	Audience []string
	// SubjectClaim is the claim that says who the subject is. Empty is "sub".
	SubjectClaim string
	// Leeway is by how much the clocks of issuer and server may differ.
	Leeway time.Duration
	// NoExpiry accepts tokens without "exp".
	NoExpiry bool
}

// GetTimeout returns the timeout in force.
func (s *Settings) GetTimeout() time.Duration {
	if s == nil || s.Timeout <= 0 {
		return defaultTimeout
	}
	return s.Timeout
}

// GetAuthToken returns the token in force, without white space around it.
func (s *Settings) GetAuthToken() string {
	if s == nil {
		return ""
	}
	return strings.TrimSpace(s.AuthToken)
}

// GetHost returns the host in force.
func (s *Settings) GetHost() string {
	if s == nil || s.Host == "" {
		return defaultHost
	}
	return s.Host
}

// GetPort returns the port in force.
func (s *Settings) GetPort() uint {
	if s == nil || s.Port == 0 {
		return defaultPort
	}
	return s.Port
}

// GetCorsAllowOrigin returns the origins in force, empty when CORS is off.
func (s *Settings) GetCorsAllowOrigin() string {
	if s == nil {
		return ""
	}
	return s.CorsAllowOrigin
}

// GetCorsAllowMethod returns the methods in force, joined by ", ".
func (s *Settings) GetCorsAllowMethod() string {
	if s == nil || len(s.CorsAllowMethod) == 0 {
		return defaultCorsAllowMethod
	}
	return strings.Join(s.CorsAllowMethod, ", ")
}

// effective returns a copy of s in which every default is spelled out. A field
// that may be none is 0 then.
func (s *Settings) effective() Settings {
	var e Settings
	if s != nil {
		e = *s
	}
	e.Timeout = e.GetTimeout()
	e.AuthToken = e.GetAuthToken()
	e.Host = e.GetHost()
	e.Port = e.GetPort()
	e.CorsAllowMethod = strings.Split(e.GetCorsAllowMethod(), ", ")
	e.BasePath = strings.TrimRight(e.BasePath, "/")
	e.Heartbeat = orDefault(e.Heartbeat, defaultHeartbeat)
	e.Retry = orDefault(e.Retry, defaultRetry)
	e.Drain = orDefault(e.Drain, defaultDrain)
	if e.Public == nil {
		e.Public = []string{"*"}
	}
	e.History.Events = orDefault(e.History.Events, defaultHistoryEvents)
	e.History.Age = orDefault(e.History.Age, defaultHistoryAge)
	e.History.Bytes = orDefault(e.History.Bytes, defaultHistoryBytes)
	e.Retention.Events = orDefault(e.Retention.Events, defaultRetentionEvents)
	e.Retention.Age = orDefault(e.Retention.Age, defaultRetentionAge)
	e.Channels = slices.Clone(e.Channels)
	for i := range e.Channels {
		e.Channels[i] = e.Channels[i].effective(&e)
	}
	e.Limits.Body = orDefault(e.Limits.Body, defaultLimitBody)
	e.Limits.Head = orDefault(e.Limits.Head, defaultLimitHead)
	e.Limits.Channels = orDefault(e.Limits.Channels, defaultLimitChannels)
	e.Limits.ChannelsPerConsumer = orDefault(e.Limits.ChannelsPerConsumer, defaultLimitChannelsPerConsumer)
	e.Limits.IdempotencyKeys = orDefault(e.Limits.IdempotencyKeys, defaultLimitIdempotencyKeys)
	if e.Limits.Consumers == 0 {
		e.Limits.Consumers = descriptorLimit() - 64
	}
	if e.Logger == nil {
		e.Logger = slog.New(slog.DiscardHandler)
	}
	return e
}

// effective returns a copy of c in which everything that it has of s is spelled out.
func (c ChannelSettings) effective(s *Settings) ChannelSettings {
	history, retention := s.History, s.Retention
	if c.History != nil {
		history.Events = orDefault(c.History.Events, history.Events)
		history.Age = orDefault(c.History.Age, history.Age)
	}
	if c.Retention != nil {
		retention.Events = orDefault(c.Retention.Events, retention.Events)
		retention.Age = orDefault(c.Retention.Age, retention.Age)
	}
	c.History, c.Retention = &history, &retention
	return c
}

// orDefault returns what zero means for v, and 0 for -1.
func orDefault[T int | int64 | time.Duration](v, zero T) T {
	switch {
	case v == 0:
		return zero
	case v < 0:
		return 0
	}
	return v
}

// Validate reports every setting that can't be used, each with what would be
// right. Open, Run and Serve refuse such settings.
func (s *Settings) Validate() error {
	if s == nil {
		return nil
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Timeout < 0 {
		bad("timeout: %v is negative; give a duration such as 5s", s.Timeout)
	}
	if s.Port > 65535 {
		bad("port: %d is above 65535", s.Port)
	}
	if strings.ContainsAny(s.AuthToken, "\r\n\x00") {
		bad("auth_token: it has control characters and could not come in a header")
	}
	if s.BasePath != "" && (!strings.HasPrefix(s.BasePath, "/") || strings.ContainsAny(s.BasePath, "?#{} ") || strings.Contains(s.BasePath, "//")) {
		bad("base_path: %q is no path such as /subscribe", s.BasePath)
	}
	for _, d := range []struct {
		name string
		v    time.Duration
		none bool
	}{{"heartbeat", s.Heartbeat, true}, {"retry", s.Retry, false}, {"drain", s.Drain, false}, {"history.age", s.History.Age, true}, {"retention.age", s.Retention.Age, true}} {
		if d.v < 0 && (!d.none || d.v != -1) {
			bad("%s: %v is negative; give a duration such as 15s", d.name, d.v)
		}
	}
	if s.Heartbeat > 0 && s.Heartbeat < 10*time.Millisecond {
		bad("heartbeat: %v is below 10ms", s.Heartbeat)
	}
	for _, n := range []struct {
		name string
		v    int64
		low  int64
	}{
		{"history.events", int64(s.History.Events), -1}, {"history.bytes", s.History.Bytes, 0},
		{"retention.events", int64(s.Retention.Events), -1},
		{"limits.body", s.Limits.Body, 0}, {"limits.head", int64(s.Limits.Head), 0},
		{"limits.channels", int64(s.Limits.Channels), 0}, {"limits.channels_per_consumer", int64(s.Limits.ChannelsPerConsumer), 0},
		{"limits.idempotency_keys", int64(s.Limits.IdempotencyKeys), 0}, {"limits.consumers", int64(s.Limits.Consumers), 0},
		{"limits.consumers_per_channel", int64(s.Limits.ConsumersPerChannel), 0},
		{"limits.consumers_per_address", int64(s.Limits.ConsumersPerAddress), 0},
	} {
		if n.v < n.low {
			bad("%s: %d is below %d", n.name, n.v, n.low)
		}
	}
	if s.Limits.Body > 1<<30 {
		bad("limits.body: %d is above 1 GiB", s.Limits.Body)
	}
	for _, n := range []struct {
		name string
		v    float64
	}{{"limits.publishes_per_second", s.Limits.PublishesPerSecond}, {"limits.connects_per_second", s.Limits.ConnectsPerSecond}} {
		if !(n.v >= 0 && n.v <= 1e9) {
			bad("%s: %v is not between 0 and a billion", n.name, n.v)
		}
	}
	for _, p := range s.Public {
		if err := validPattern(p); err != nil {
			bad("public: %w", err)
		} else if private(p) {
			bad("public: %q is below users, which is private: a person follows its own channel, and a key is granted others", p)
		}
	}
	if len(s.Channels) > maxRules {
		bad("channels: %d are more than %d; join some by a wildcard", len(s.Channels), maxRules)
	}
	for i := range s.Channels {
		s.Channels[i].validate(func(member, what string) { bad("channels[%d]%s: %s", i, member, what) })
	}
	tokens := map[hash]string{sha256.Sum256([]byte(s.GetAuthToken())): "the AuthToken"}
	for i, k := range s.Keys {
		k.validate(func(member, what string) { bad("keys[%d]%s: %s", i, member, what) })
		if h, err := k.hash(); err == nil {
			if other, ok := tokens[h]; ok {
				bad("keys[%d].token: it is %s, too: give each key one of its own", i, other)
			}
			tokens[h] = fmt.Sprintf("that of keys[%d]", i)
		}
	}
	for i := range s.Issuers {
		s.Issuers[i].validate(func(member, what string) { bad("jwt[%d]%s: %s", i, member, what) })
	}
	origins := corsOrigins(s.CorsAllowOrigin)
	for _, o := range origins {
		if err := validOrigin(o); err != nil {
			bad("cors.allow_origin: %w", err)
		}
		if (o == "*" || o == "null") && s.CorsAllowCredentials {
			bad(`cors.allow_credentials: needs origins that are listed by name, not %q`, o) // any page can make itself "null"
		}
	}
	for _, o := range splitList(s.CorsAllowOrigin) {
		if s.CorsAllowCredentials && o != "*" && o != "null" && !strings.Contains(o, "://") {
			bad("cors.allow_credentials: %q stands for its http origin, too, whose pages anybody on the way can change: give it with its scheme, https://%[1]s", o)
		}
	}
	for _, m := range s.CorsAllowMethod {
		if !validToken(m) {
			bad("cors.allow_method: %q is no method", m)
		}
	}
	for _, h := range s.CorsAllowHeaders {
		if !validToken(h) {
			bad("cors.allow_headers: %q is no header", h)
		}
	}
	for k, v := range s.Headers {
		switch textproto.CanonicalMIMEHeaderKey(k) {
		case "Content-Type", "Content-Length", "Transfer-Encoding", "Connection", "Date":
			bad("headers: %s is the server's to set", k)
		}
		if !validToken(k) || strings.ContainsAny(v, "\r\n\x00") {
			bad("headers: %q: %q is no header", k, v)
		}
	}
	paths := map[string]bool{}
	for _, src := range s.Sources {
		e, ok := src.(Endpoint)
		if !ok {
			continue
		}
		p := e.Path()
		if !strings.HasPrefix(p, "/") || p == "/" {
			bad("sources: path %q does not begin with / and a name", p)
		}
		if paths[p] {
			bad("sources: path %q is taken twice", p)
		}
		paths[p] = true
	}
	return errors.Join(errs...)
}

// validate tells what is wrong with the settings of some channels, by their members.
func (c *ChannelSettings) validate(bad func(member, what string)) {
	if err := validPattern(c.Match); err != nil {
		bad(".match", err.Error())
	}
	bounds := func(member string, events int, age time.Duration) {
		if events < -1 {
			bad(member+".events", fmt.Sprintf("%d is below -1", events))
		}
		if age < -1 {
			bad(member+".age", fmt.Sprintf("%v is negative; give a duration such as 10m", age))
		}
	}
	if h := c.History; h != nil {
		bounds(".history", h.Events, h.Age)
		if h.Bytes != 0 {
			bad(".history.bytes", "it is the memory of all channels together; leave it out here")
		}
	}
	if r := c.Retention; r != nil {
		bounds(".retention", r.Events, r.Age)
	}
	if c.Consumers < -1 {
		bad(".consumers", fmt.Sprintf("%d is below -1", c.Consumers))
	}
}

// validOrigin reports why o is not an origin as a browser sends it (RFC 6454,
// 6.2), or "*".
func validOrigin(o string) error {
	if o == "*" || o == "null" {
		return nil
	}
	u, err := url.Parse(o)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf(`%q is no origin such as https://example.org, without a path, or "*"`, o)
	}
	return nil
}

// corsOrigins returns the origins of a list. A bare host, as the classic server
// had it for a default, stands for its http and its https origin.
func corsOrigins(list string) []string {
	var origins []string
	for _, o := range splitList(list) {
		if o == "*" || o == "null" || strings.Contains(o, "://") {
			origins = append(origins, o)
		} else {
			origins = append(origins, "http://"+o, "https://"+o)
		}
	}
	return origins
}

// validToken reports whether s is a token of RFC 9110, 5.6.2.
func validToken(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return true
}

// splitList returns the members of a comma list without the white space around
// them, and without empty ones.
func splitList(s string) []string {
	var list []string
	for m := range strings.SplitSeq(s, ",") {
		if m = strings.TrimSpace(m); m != "" {
			list = append(list, m)
		}
	}
	return list
}

// address returns what Run and ListenAndServe listen on.
func (s *Settings) address() string {
	return net.JoinHostPort(s.GetHost(), strconv.FormatUint(uint64(s.GetPort()), 10))
}

// streamHeaders returns the configured headers of streams, canonical.
func (s *Settings) streamHeaders() http.Header {
	h := http.Header{}
	for k, v := range s.Headers {
		h.Set(k, v)
	}
	return h
}
