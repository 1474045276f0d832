package eventsource_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// verbs are those that ask for a token, each with a status for who has it.
var verbs = []struct {
	verb   string
	status int
}{{"GET", 200}, {"POST", 201}, {"DELETE", 200}, {"HEAD", 200}}

// status sends a request to a channel and returns the answer's status; a stream
// is closed at once.
func (n *node) status(t testing.TB, verb, path string, header ...string) (int, http.Header) {
	t.Helper()
	if verb == "GET" {
		r, _ := http.NewRequestWithContext(t.Context(), verb, n.url+path, nil)
		setHeader(r, header)
		resp, err := n.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode, resp.Header
	}
	a := n.do(t, verb, path, strings.NewReader("x"), append([]string{"Content-Type", asText}, header...)...)
	return a.status, a.header
}

func TestATokenComesInSeveralWays(t *testing.T) {
	n := newNode(t, &eventsource.Settings{AuthToken: "s3cret", Public: []string{}})
	for _, v := range verbs {
		for _, tc := range []struct {
			name   string
			query  string
			header []string
			ok     bool
			gets   bool // ok for GET only
		}{
			{name: "none"},
			{name: "Auth-Token", header: []string{"Auth-Token", "s3cret"}, ok: true},
			{name: "bearer", header: []string{"Authorization", "Bearer s3cret"}, ok: true},
			{name: "bearer in other case", header: []string{"Authorization", "bearer  s3cret"}, ok: true},
			{name: "cookie", header: []string{"Cookie", "a=b; eventsource_token=s3cret"}, ok: true},
			{name: "query", query: "?access_token=s3cret", gets: true},
			{name: "wrong", header: []string{"Auth-Token", "s3cre"}},
			{name: "longer", header: []string{"Auth-Token", "s3cret2"}},
			{name: "wrong bearer", header: []string{"Authorization", "Bearer x"}},
			{name: "basic", header: []string{"Authorization", "Basic s3cret"}},
			{name: "empty", header: []string{"Auth-Token", " "}},
			{name: "wrong cookie", header: []string{"Cookie", "eventsource_token=x"}},
			{name: "wrong header before a right cookie", header: []string{"Auth-Token", "x", "Cookie", "eventsource_token=s3cret"}},
			{name: "wrong query", query: "?access_token=x"},
		} {
			status, header := n.status(t, v.verb, "/news"+tc.query, tc.header...)
			want := http.StatusUnauthorized
			if tc.ok || tc.gets && v.verb == "GET" {
				want = v.status
			}
			if status != want {
				t.Errorf("%s with %s: %d, not %d", v.verb, tc.name, status, want)
			}
			if got := header.Get("WWW-Authenticate"); (want == 401) != strings.HasPrefix(got, "Bearer realm=") {
				t.Errorf("%s with %s: WWW-Authenticate is %q", v.verb, tc.name, got)
			}
		}
	}
}

func TestARefusedRequestForLackOfATokenChangesNothing(t *testing.T) {
	n := newNode(t, &eventsource.Settings{AuthToken: "s3cret"})
	s := n.follow(t, "/news")
	n.post(t, "/news", asText, "kept", "Auth-Token", "s3cret").receipt(t)
	s.expect("kept")
	mark := n.Stats().Mark
	n.post(t, "/news", asText, "x").refused(t, 401, "Auth-Token")
	n.post(t, "/news", asLines, "{\"data\":1}\n").refused(t, 401)
	n.do(t, "DELETE", "/all", nil).refused(t, 401)
	n.publishedNothing(t, "without a token", mark)
	n.follow(t, "/news?history=1").expect("kept")
	if got := n.do(t, "HEAD", "/all", nil).header.Get("X-Available-Channels"); got != "" {
		t.Errorf("HEAD told %s", got)
	}
}

func TestWhatIsPublicNeedsNoTokenToFollow(t *testing.T) {
	for _, tc := range []struct {
		public []string
		open   string
		closed string
	}{
		{nil, "/news /news.* /a,b /users", "/* /users.joe /users.* /users.joe.x /news,users.joe /news,*"},
		{[]string{"news", "pets.*"}, "/news /pets.cats /pets.* /pets.cats.* /news,pets.x", "/* /news.x /news.* /pets /petsy.x /sport /news,sport"},
		{[]string{}, "", "/news /* /users.joe"},
	} {
		n := newNode(t, &eventsource.Settings{AuthToken: "s3cret", Public: tc.public})
		for path := range strings.FieldsSeq(tc.open) {
			if status, _ := n.status(t, "GET", path); status != 200 {
				t.Errorf("%v: %s: %d", tc.public, path, status)
			}
			if status, _ := n.status(t, "GET", path, "Auth-Token", "x"); status != 401 {
				t.Errorf("%v: %s with an unknown token: %d", tc.public, path, status)
			}
		}
		for path := range strings.FieldsSeq(tc.closed) {
			if status, _ := n.status(t, "GET", path); status != 401 {
				t.Errorf("%v: %s: %d", tc.public, path, status)
			}
			if status, _ := n.status(t, "GET", path, "Auth-Token", "s3cret"); status != 200 {
				t.Errorf("%v: %s with the token: %d", tc.public, path, status)
			}
		}
	}
	open := newNode(t, nil)
	for _, path := range []string{"/*", "/users.joe", "/users.*"} {
		if status, _ := open.status(t, "GET", path); status != 200 {
			t.Errorf("%s where no token is configured: %d", path, status)
		}
	}
}

func TestWhereNoTokenIsConfiguredOneIsIgnored(t *testing.T) {
	n := newNode(t, nil)
	for _, v := range verbs {
		if status, _ := n.status(t, v.verb, "/news?access_token=x", "Auth-Token", "x", "Cookie", "eventsource_token=x"); status != v.status {
			t.Errorf("%s: %d", v.verb, status)
		}
	}
}

func TestAPreflightIsAnswered(t *testing.T) {
	n := newNode(t, &eventsource.Settings{AuthToken: "s3cret", CorsAllowOrigin: "https://a.example, https://b.example",
		CorsAllowMethod: []string{"GET", "POST"}, CorsAllowHeaders: []string{"X-Mine"}})
	preflight := func(origin, method, headers string) http.Header {
		a := n.do(t, "OPTIONS", "/news", nil, "Origin", origin, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", headers)
		if a.status != 204 && a.status != 200 {
			t.Errorf("a preflight of %s by %s: %d", origin, method, a.status)
		}
		return a.header
	}
	for _, h := range []string{"authorization", "auth-token", "content-type", "last-event-id", "cache-control", "idempotency-key", "x-mine",
		"auth-token,authorization,cache-control,content-type,idempotency-key,last-event-id,x-mine"} {
		got := preflight("https://b.example", "POST", h)
		if got.Get("Access-Control-Allow-Origin") != "https://b.example" || got.Get("Access-Control-Allow-Methods") != "POST" ||
			!strings.EqualFold(got.Get("Access-Control-Allow-Headers"), h) || got.Get("Access-Control-Max-Age") != "600" {
			t.Errorf("with %s: %v", h, got)
		}
		if got.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("credentials are allowed: %v", got)
		}
	}
	for _, tc := range [][3]string{{"https://c.example", "POST", ""}, {"https://a.example", "DELETE", ""}, {"https://a.example", "GET", "x-other"}, {"null", "GET", ""}} {
		if got := preflight(tc[0], tc[1], tc[2]); got.Get("Access-Control-Allow-Origin") != "" && got.Get("Access-Control-Allow-Methods") != "" {
			t.Errorf("%v is allowed: %v", tc, got)
		}
	}
}

func TestAnswersCarryTheHeadersOfCORS(t *testing.T) {
	onEach(t, everyPath, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{CorsAllowOrigin: "https://a.example", CorsAllowMethod: []string{"GET", "HEAD", "POST"}})
		s := n.stream(t, "/news", "Origin", "https://a.example")
		head := n.do(t, "HEAD", "/all", nil, "Origin", "https://a.example")
		refusal := n.do(t, "GET", "/all", nil, "Origin", "https://a.example")
		nowhere := n.do(t, "GET", "/api/nothing", nil, "Origin", "https://a.example")
		for what, h := range map[string]http.Header{"stream": s.header, "HEAD": head.header, "refusal": refusal.header, "nowhere": nowhere.header} {
			exposed := strings.Split(h.Get("Access-Control-Expose-Headers"), ", ")
			if h.Get("Access-Control-Allow-Origin") != "https://a.example" || !slices.Contains(h.Values("Vary"), "Origin") {
				t.Errorf("%s: %v", what, h)
			}
			for _, name := range []string{"X-Consumer-Count", "X-Channel-Exists", "X-Channel-Count", "X-Available-Channels", "X-Available-Channels-Truncated"} {
				if !slices.Contains(exposed, name) {
					t.Errorf("%s: %s is not exposed: %v", what, name, exposed)
				}
			}
		}
		other := n.stream(t, "/news", "Origin", "https://b.example")
		if got := other.header.Get("Access-Control-Allow-Origin"); got != "" {
			t.Errorf("another origin may read: %s", got)
		}
	})
	off := newNode(t, nil)
	if got := off.stream(t, "/news", "Origin", "https://a.example").header.Get("Access-Control-Allow-Origin"); got != "" {
		t.Errorf("without CORS another origin may read: %s", got)
	}
}

func TestAPageOfAnotherSiteWritesOnlyWhereItMay(t *testing.T) {
	const cookie, header = "cookie", "header"
	both := []string{"GET", "POST", "DELETE"}
	for i, tc := range []struct {
		origins     string
		methods     []string
		credentials bool
		origin      string
		site        string // Sec-Fetch-Site
		by          string // what carries the token
		post        int
		del         int
	}{
		// No page at all, and pages of the server itself.
		{by: header, post: 201, del: 200},
		{by: cookie, post: 201, del: 200},
		{origin: "self", site: "same-origin", by: cookie, post: 201, del: 200},
		{origin: "self", by: cookie, post: 201, del: 200}, // a browser without Sec-Fetch-Site
		{site: "none", by: cookie, post: 201, del: 200},
		// Without CORS, no page of another site writes, whatever it has.
		{origin: "https://a.example", site: "cross-site", by: header, post: 403, del: 403},
		{origin: "https://a.example", site: "same-site", by: header, post: 403, del: 403},
		{origin: "https://a.example", by: header, post: 403, del: 403},
		{origin: "https://a.example", site: "cross-site", by: cookie, post: 403, del: 403},
		{origin: "null", by: cookie, post: 403, del: 403},
		// With it, by its origin and method.
		{origins: "https://a.example", methods: both, origin: "https://a.example", site: "cross-site", by: header, post: 201, del: 200},
		{origins: "https://a.example", methods: []string{"POST"}, origin: "https://a.example", site: "cross-site", by: header, post: 201, del: 403},
		{origins: "https://a.example", origin: "https://a.example", site: "cross-site", by: header, post: 403, del: 403},
		{origins: "https://a.example", methods: both, origin: "https://b.example", site: "cross-site", by: header, post: 403, del: 403},
		{origins: "*", methods: both, origin: "https://b.example", site: "cross-site", by: header, post: 201, del: 200},
		// A cookie counts only from an origin that is listed, with credentials.
		{origins: "*", methods: both, origin: "https://b.example", site: "cross-site", by: cookie, post: 401, del: 401},
		{origins: "https://a.example", methods: both, origin: "https://a.example", site: "cross-site", by: cookie, post: 401, del: 401},
		{origins: "https://a.example", methods: both, credentials: true, origin: "https://a.example", site: "cross-site", by: cookie, post: 201, del: 200},
		{origins: "https://a.example", methods: []string{"POST"}, credentials: true, origin: "https://a.example", site: "cross-site", by: cookie, post: 201, del: 403},
		{origins: "https://a.example", methods: both, credentials: true, origin: "https://b.example", site: "cross-site", by: cookie, post: 403, del: 403},
	} {
		n := newNode(t, &eventsource.Settings{AuthToken: "s3cret", Public: []string{}, CorsAllowOrigin: tc.origins, CorsAllowMethod: tc.methods, CorsAllowCredentials: tc.credentials})
		h := []string{"Auth-Token", "s3cret"}
		if tc.by == cookie {
			h = []string{"Cookie", "eventsource_token=s3cret"}
		}
		if tc.origin == "self" {
			tc.origin = n.url
		}
		if tc.origin != "" {
			h = append(h, "Origin", tc.origin)
		}
		if tc.site != "" {
			h = append(h, "Sec-Fetch-Site", tc.site)
		}
		for verb, want := range map[string]int{"POST": tc.post, "DELETE": tc.del} {
			if status, _ := n.status(t, verb, "/news", h...); status != want {
				t.Errorf("%d: %+v: %s is %d, not %d", i, tc, verb, status, want)
			}
		}
		if n.Stats().Published > 0 != (tc.post == 201) {
			t.Errorf("%d: %+v: published %d", i, tc, n.Stats().Published)
		}
		// A stream is read with the cookie by the same rule.
		want := 200
		if tc.by == cookie && (tc.post == 401 || tc.post == 403) {
			want = 401
		}
		if status, _ := n.status(t, "GET", "/news", h...); status != want {
			t.Errorf("%d: %+v: GET is %d, not %d", i, tc, status, want)
		}
	}
}

// Where no token is asked for, a page of any site could still have a browser
// write to a server in its private network.
func TestAnOpenServerIsNotWrittenToFromOtherSites(t *testing.T) {
	n := newNode(t, nil)
	n.post(t, "/news", asText, "x", "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site").refused(t, 403, "cors.allow_origin")
	n.do(t, "DELETE", "/all", nil, "Origin", "https://evil.example").refused(t, 403)
	n.publishedNothing(t, "another site", 0)
}

func TestPagesAreForAdministratorsAndHealthIsOpen(t *testing.T) {
	for _, token := range []string{"", "s3cret"} {
		s := openWith(t, &eventsource.Settings{AuthToken: token})
		s.Handle("/metrics", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the page") }))
		s.Handle("/debug/vars", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the page") }))
		h := httptest.NewServer(s.Handler())
		defer h.Close()
		n := &node{Server: s, url: h.URL, client: h.Client()}
		for _, path := range []string{"/health", "/health/live", "/health/ready", "/"} {
			if a := n.do(t, "GET", path, nil); a.status != 200 {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
			if a := n.do(t, "HEAD", path, nil); a.status != 200 || a.body != "" {
				t.Errorf("HEAD %s: %d %q", path, a.status, a.body)
			}
		}
		for _, path := range []string{"/metrics", "/debug/vars"} {
			a := n.do(t, "GET", path, nil)
			if token == "" && (a.status != 200 || a.body != "the page") {
				t.Errorf("%s without tokens: %d %s", path, a.status, a.body)
			}
			if token != "" {
				a.refused(t, 401, "token")
				n.do(t, "GET", path, nil, "Auth-Token", "x").refused(t, 401)
				n.do(t, "GET", path+"?access_token="+token, nil).refused(t, 401)
				if a := n.do(t, "GET", path, nil, "Auth-Token", token); a.body != "the page" {
					t.Errorf("%s with the token: %d %s", path, a.status, a.body)
				}
			}
		}
		n.do(t, "GET", "/debug", nil, "Auth-Token", token).refused(t, 404)
	}
}

// The server must not stand open because a program has overlooked what is wrong
// with its settings.
func TestARouterWithSettingsThatCantBeUsedRefusesEverything(t *testing.T) {
	es := eventsource.New(&eventsource.Settings{AuthToken: "s3cret", Port: 70000})
	defer es.Stop()
	h := httptest.NewServer(es.Router())
	defer h.Close()
	n := &node{url: h.URL, client: h.Client()}
	n.client.Timeout = 5 * time.Second // a stream would never end
	for _, path := range []string{"/news", "/health", "/", "/api/x"} {
		for _, verb := range []string{"GET", "POST", "DELETE", "PUT"} {
			n.do(t, verb, path, nil).refused(t, 500, "settings")
		}
	}
}
