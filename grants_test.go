package eventsource_test

import (
	"strings"
	"testing"

	"github.com/railsmechanic/eventsource"
)

// keyring is a server with keys of every kind.
func keyring(t testing.TB, public ...string) *node {
	t.Helper()
	if public == nil {
		public = []string{}
	}
	return newNode(t, &eventsource.Settings{
		AuthToken: "boss",
		Public:    public,
		Keys: []eventsource.Key{
			{Token: eventsource.HashToken("reader"), Subscribe: []string{"news.*", "sport"}},
			{Token: "writer", Publish: []string{"news.*", "sport", "users.*"}},
			{Token: "caller", Publish: []string{"all"}},
			{Token: "star", Subscribe: []string{"*"}, Publish: []string{"*"}},
			{Token: "admin", Admin: true},
			{Token: "inspector", Admin: true, Subscribe: []string{"users.*"}},
			{Token: "friend", Subscribe: []string{"users.joe", "users.teams.*"}},
			{Token: "nobody"},
		},
		Issuers: []eventsource.Issuer{{Key: secret}},
	})
}

func TestAKeyAllowsWhatItGrants(t *testing.T) {
	n := keyring(t, "open", "open.*")
	n.post(t, "/news.a,sport,users.joe,users.teams.x,open", asText, "kept", "Auth-Token", "boss").receipt(t)
	joe := granted(t, nil)
	odd := granted(t, claims{"sub": "*"})
	nameless := granted(t, claims{"sub": nil})
	for _, tc := range []struct {
		token   string
		allowed string // space-separated verbs and paths
		not     string // 403, and 401 without a token
	}{
		{"", "GET/open GET/open.x GET/open.* GET/open,open.x", "GET/news.a GET/* GET/users.joe GET/open,news.a POST/open POST/news.a DELETE/open HEAD/open HEAD/all"},
		{"boss", "GET/* GET/users.* GET/users.joe GET/x POST/x POST/all POST/users.joe DELETE/zzz HEAD/all HEAD/x", ""},
		{"reader", "GET/news.a GET/news.a.b GET/news.* GET/news.a.* GET/sport GET/news.a,sport,open", "GET/news GET/sport.x GET/sport.* GET/newsy.a GET/* GET/news.a,x GET/users.joe POST/news.a DELETE/news.a HEAD/news.a HEAD/all"},
		{"writer", "POST/news.a POST/sport POST/news.a,sport POST/users.joe GET/open", "POST/news POST/x POST/news.a,x POST/all POST/news.a,all GET/news.a GET/users.joe DELETE/sport HEAD/sport"},
		{"caller", "POST/all", "POST/x POST/news.a"},
		{"star", "GET/x GET/x.y.z GET/x.* POST/x POST/users.joe", "GET/* GET/users.joe GET/users.* GET/x,users.joe POST/all POST/x,all DELETE/x HEAD/x"},
		{"admin", "GET/x GET/* GET/x.* DELETE/zzz HEAD/x HEAD/all HEAD/users.joe", "GET/users.joe GET/users.* GET/users.joe.* GET/*,users.joe POST/x POST/all"},
		{"inspector", "GET/* GET/users.joe GET/users.* GET/users.joe.*", "POST/x"},
		{"friend", "GET/users.joe GET/users.teams.x GET/users.teams.* GET/users.teams.x.*", "GET/users.ann GET/users.* GET/users.joe.x GET/users.teams GET/*"},
		{"nobody", "GET/open", "GET/x POST/x DELETE/x HEAD/x"},
		{joe, "GET/users.joe GET/@me GET/open,@me GET/users.joe,@me", "GET/users.ann GET/users.joe.x GET/users.* GET/* GET/x POST/@me POST/x DELETE/@me"},
		{odd, "GET/open", "GET/@me GET/users.* GET/users.joe"},
		{nameless, "GET/open", "GET/@me GET/users.joe"},
	} {
		refused := 403
		if tc.token == "" {
			refused = 401
		}
		check := func(list string, ok bool) {
			for verbAndPath := range strings.FieldsSeq(list) {
				verb, path, _ := strings.Cut(verbAndPath, "/")
				var header []string
				if tc.token != "" {
					header = []string{"Auth-Token", tc.token}
				}
				status, h := n.status(t, verb, "/"+path, header...)
				if ok && status >= 300 || !ok && status != refused {
					t.Errorf("%.12q: %s /%s: %d", tc.token, verb, path, status)
				}
				want := ""
				switch {
				case !ok && refused == 403:
					want = `Bearer realm="eventsource", error="insufficient_scope"`
				case !ok:
					want = `Bearer realm="eventsource"`
				}
				if got := h.Get("WWW-Authenticate"); got != want {
					t.Errorf("%.12q: %s /%s: WWW-Authenticate is %q", tc.token, verb, path, got)
				}
			}
		}
		check(tc.allowed, true)
		check(tc.not, false)
	}
	for _, hash := range []string{eventsource.HashToken("reader"), strings.TrimPrefix(eventsource.HashToken("reader"), "sha256:"), eventsource.HashToken("writer")} {
		if status, _ := n.status(t, "GET", "/sport", "Auth-Token", hash); status != 401 {
			t.Errorf("a hash as a token: %d", status)
		}
	}
}

func TestAStreamOfEverythingLeavesOutWhatIsPrivate(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{AuthToken: "boss", Keys: []eventsource.Key{
			{Token: "admin", Admin: true}, {Token: "inspector", Admin: true, Subscribe: []string{"users.*"}}}, Issuers: []eventsource.Issuer{{Key: secret}}})
		joe := granted(t, claims{"eventsource": claims{"admin": true}})
		boss := n.follow(t, "/*", "Auth-Token", "boss")
		inspector := n.follow(t, "/*", "Auth-Token", "inspector")
		admin := n.follow(t, "/*", "Auth-Token", "admin")
		envelopes := n.follow(t, "/*?envelope=1", "Auth-Token", "admin")
		his := n.follow(t, "/*,users.joe", "Auth-Token", joe)
		for _, channels := range []string{"/users.joe", "/a", "/users.joe,b", "/users.ann,users.joe", "/users.ann", "/users.joe.x", "/users", "/all"} {
			n.post(t, channels, asText, channels, "Auth-Token", "boss").receipt(t)
		}
		all := []string{"/users.joe", "/a", "/users.joe,b", "/users.ann,users.joe", "/users.ann", "/users.joe.x", "/users", "/all"}
		open := []string{"/a", "/users.joe,b", "/users", "/all"}
		boss.expect(all...)
		inspector.expect(all...)
		admin.expect(open...)
		his.expect("/users.joe", "/a", "/users.joe,b", "/users.ann,users.joe", "/users", "/all")
		for _, want := range []string{`"a"`, `"b"`, `"users"`, `"all"`} {
			if b := envelopes.event(); !strings.Contains(b.data, `"channel":`+want) {
				t.Errorf("the envelope %s is not of %s", b.data, want)
			}
		}
		// What is kept is as private as what is live.
		n.follow(t, "/*?history=100", "Auth-Token", "admin").expect(open...)
		n.follow(t, "/*?history=2", "Auth-Token", "admin").expect("/users", "/all")
		n.follow(t, "/*?history=100", "Auth-Token", "boss").expect(all...)
		if got := n.do(t, "DELETE", "/all", nil, "Auth-Token", "admin").body; got != `{"channels":["a","b","users"],"disconnected":1}`+"\n" {
			t.Errorf("an administrator is told that there went %s", got)
		}
		for _, channels := range []string{"/users.joe,b,a", "/users.ann", "/users.joe.x,users"} {
			n.post(t, channels, asText, "x", "Auth-Token", "boss").receipt(t)
		}
		list := n.do(t, "HEAD", "/all", nil, "Auth-Token", "admin").header
		if got := list.Get("X-Available-Channels"); got != "[a,b,users]" || list.Get("X-Channel-Count") != "3" {
			t.Errorf("an administrator is told of %s channels: %s", list.Get("X-Channel-Count"), got)
		}
		list = n.do(t, "HEAD", "/all", nil, "Auth-Token", "inspector").header
		if got := list.Get("X-Available-Channels"); got != "[a,b,users,users.ann,users.joe,users.joe.x]" {
			t.Errorf("who may follow what is private is told of %s", got)
		}
	})
}

func TestAPersonFollowsItsOwnChannel(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{AuthToken: "boss", Issuers: []eventsource.Issuer{{Key: secret}}})
		joe := n.follow(t, "/@me,news", "Cookie", "eventsource_token="+granted(t, nil))
		mail := n.follow(t, "/@me?access_token="+granted(t, claims{"sub": "ann@example.org"}))
		n.post(t, "/users.joe", asText, "1", "Auth-Token", "boss").receipt(t)
		n.post(t, "/users.ann@example.org", asText, "2", "Auth-Token", "boss").receipt(t)
		n.post(t, "/news", asText, "3", "Auth-Token", "boss").receipt(t)
		joe.expect("1", "3")
		mail.expect("2")
		for subject, status := range map[string]int{"a b": 403, "a/b": 403, "": 403, "a..b": 403, ".": 403, "*": 403, "a.*": 403, "a,b": 403,
			"@me": 200, "all": 200, "auth0|12:3": 200, "a.b": 200, strings.Repeat("x", 250): 403} {
			if got, _ := n.status(t, "GET", "/@me", "Auth-Token", granted(t, claims{"sub": subject})); got != status {
				t.Errorf("the subject %q: %d", subject, got)
			}
		}
		n.do(t, "GET", "/@me", nil).refused(t, 401)
		n.do(t, "GET", "/@me", nil, "Auth-Token", "boss").refused(t, 403, "has none")
		n.do(t, "GET", "/@me.x", nil, "Auth-Token", "boss").refused(t, 404)
	})
}

func TestAKeyThatCantBeUsedIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		keys []eventsource.Key
		says string
	}{
		"no token":       {[]eventsource.Key{{}}, "keys[0].token: none is given"},
		"a half hash":    {[]eventsource.Key{{Token: "sha256:abc"}}, "keys[0].token: after"},
		"spaces":         {[]eventsource.Key{{Token: "a"}, {Token: " b"}}, "keys[1].token: it has"},
		"too long":       {[]eventsource.Key{{Token: strings.Repeat("a", 9<<10)}}, "longer"},
		"a wildcard":     {[]eventsource.Key{{Token: "a", Publish: []string{"x", "a.*.b"}}}, "keys[0].publish[1]: "},
		"all to follow":  {[]eventsource.Key{{Token: "a", Subscribe: []string{"all"}}}, "keys[0].subscribe[0]: "},
		"twice":          {[]eventsource.Key{{Token: "a"}, {Token: eventsource.HashToken("a")}}, "keys[1].token: it is that of keys[0], too"},
		"the AuthToken":  {[]eventsource.Key{{Token: "boss"}}, "keys[0].token: it is the AuthToken, too"},
		"several faults": {[]eventsource.Key{{Token: "a", Subscribe: []string{""}, Publish: []string{"@me"}}}, "keys[0].publish[0]"},
	} {
		err := (&eventsource.Settings{AuthToken: "boss", Keys: tc.keys}).Validate()
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&eventsource.Settings{Keys: []eventsource.Key{{Token: "a", Subscribe: []string{"*", "a.*", "users.*"}, Publish: []string{"all", "*"}}}}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestADeleteOfAllTellsNoAdministratorWhatIsPrivate(t *testing.T) {
	for token, want := range map[string]string{"admin": `["a"]`, "inspector": `["a","users.joe"]`, "boss": `["a","users.joe"]`} {
		n := newNode(t, &eventsource.Settings{AuthToken: "boss", Keys: []eventsource.Key{
			{Token: "admin", Admin: true}, {Token: "inspector", Admin: true, Subscribe: []string{"users.*"}}}})
		n.post(t, "/users.joe,a", asText, "x", "Auth-Token", "boss").receipt(t)
		if a := n.do(t, "DELETE", "/all", nil, "Auth-Token", token); !strings.Contains(a.body, `"channels":`+want) {
			t.Errorf("%s is told %s", token, a.body)
		}
	}
}

func TestAGapTellsNoAdministratorWhatIsPrivate(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, &eventsource.Settings{AuthToken: "boss", Keys: []eventsource.Key{{Token: "admin", Admin: true}}})
		post := func(channel, id string) {
			n.post(t, "/"+channel, asJSON, `{"id":"`+id+`","data":"x"}`, "Auth-Token", "boss").receipt(t)
		}
		gap := func(id string) string {
			return n.follow(t, "/*", "Auth-Token", "admin", "Last-Event-ID", id).event().data
		}
		post("users.joe", "private")
		if got, want := gap("unknown"), `{"requested":"unknown","oldest":null}`; got != want {
			t.Errorf("told %s, not %s", got, want)
		}
		post("a", "open")
		for _, id := range []string{"unknown", "private"} { // whether there is such an event is nobody's business either
			if got, want := gap(id), `{"requested":"`+id+`","oldest":"open"}`; got != want {
				t.Errorf("told %s, not %s", got, want)
			}
		}
	})
}
