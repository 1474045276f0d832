package eventsource_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/railsmechanic/eventsource"
)

func TestWhatIsNoNameIsRefusedByEveryVerb(t *testing.T) {
	n := newNode(t, nil)
	long := strings.Repeat("a", 256)
	for _, tc := range []struct{ path, words string }{
		{"/news!", "1 to 255 bytes"},
		{"/n%C3%A4chste", "A-Z a-z 0-9"},
		{"/a%20b", "A-Z a-z 0-9"},
		{"/a%00b", "A-Z a-z 0-9"},
		{"/a..b", "empty token"},
		{"/a//b", "empty token"},
		{"/a.", "empty token"},
		{"/a/", "empty token"},
		{"/.a", "empty token"},
		{"//", "empty token"},
		{"/a/./b", "empty token"},
		{"/a/../b", "empty token"},
		{"/" + long, "256 bytes"},
		{"/,", "0 bytes"},
		{"/a,", "0 bytes"},
		{"/a,,b", "0 bytes"},
		{"/a,b!", "1 to 255 bytes"},
		{"/*.a", "1 to 255 bytes"},
		{"/a*", "1 to 255 bytes"},
		{"/a.*.b", "1 to 255 bytes"},
		{"/a.**", "1 to 255 bytes"},
		{"/api", "reserved"},
		{"/api.x", "reserved"},
		{"/api/v2", "reserved"},
		{"/admin", "reserved"},
		{"/debug", "reserved"},
		{"/debug.vars", "reserved"},
		{"/health.x", "reserved"},
		{"/health/x", "reserved"},
		{"/metrics", "reserved"},
		{"/metrics.x", "reserved"},
		{"/favicon.ico", "reserved"},
		{"/favicon/ico", "reserved"},
		{"/favicon.ico.x", "reserved"},
		{"/all.x", "reserved"},
		{"/all/x", "reserved"},
		{"/@me.x", "reserved"},
		{"/@me/x", "reserved"},
		{"/@me.*", "reserved"},
		{"/all.*", "reserved"},
		{"/a,health", "reserved"},
		{"/health,a", "reserved"},
		{"/a,@me.x", "reserved"},
	} {
		for _, verb := range []string{"GET", "POST", "DELETE", "HEAD"} {
			a := n.do(t, verb, tc.path, nil, "Content-Type", "text/plain")
			if a.status != http.StatusNotFound {
				t.Errorf("%s %.40s: %d %s", verb, tc.path, a.status, a.body)
			} else if verb != "HEAD" && !strings.Contains(a.body, tc.words) {
				t.Errorf("%s %.40s: %s does not say %q", verb, tc.path, a.body, tc.words)
			}
		}
	}
	if names := n.Channels(); len(names) != 0 {
		t.Errorf("what was refused made the channels %v", names)
	}
}

func TestEveryByteOfTheRuleMakesAName(t *testing.T) {
	n := newNode(t, nil)
	for _, name := range []string{
		"a", "A-Z_~:@+|09", strings.Repeat("a", 255), "stream.tweet_updates.2665", "a.b.c.d.e",
		"apis", "healthy.x", "favicon", "favicon.icon", "allx", "x.all", "x.api", "@you", "x.@me", "user@example.org",
	} {
		if r := n.post(t, "/"+name, "text/plain", "x").receipt(t); len(r.Channels) != 1 || r.Channels[0] != name {
			t.Errorf("%s is published to as %v", name, r.Channels)
		}
		if a := n.do(t, "HEAD", "/"+name, nil); a.header.Get("X-Channel-Exists") != "true" {
			t.Errorf("%s does not exist", name)
		}
	}
}

func TestASlashReadsAsADot(t *testing.T) {
	n := newNode(t, nil)
	s := n.follow(t, "/pets/cats")
	for _, path := range []string{"/pets.cats", "/pets/cats", "/pets%2Fcats", "/pets%2Ecats"} {
		if r := n.post(t, path, "text/plain", path).receipt(t); r.Channels[0] != "pets.cats" || r.Consumers != 1 {
			t.Errorf("%s: %+v", path, r)
		}
		s.expect(path)
	}
}

func TestAListNamesEachChannelOnce(t *testing.T) {
	n := newNode(t, nil)
	r := n.post(t, "/news,sport,news,pets/cats,pets.cats", "text/plain", "x").receipt(t)
	if got := strings.Join(r.Channels, " "); got != "news sport pets.cats" {
		t.Errorf("published to %s", got)
	}
	if got := strings.Join(n.Channels(), " "); got != "news pets.cats sport" {
		t.Errorf("the channels are %s", got)
	}
}

func TestAListIsLimited(t *testing.T) {
	n := newNode(t, &eventsource.Settings{Limits: eventsource.Limits{ChannelsPerConsumer: 3}})
	n.post(t, "/a,b,c", "text/plain", "x").receipt(t)
	for _, verb := range []string{"GET", "POST", "DELETE"} {
		n.do(t, verb, "/a,b,c,d", nil, "Content-Type", "text/plain").refused(t, 400, "at most 3")
	}
}

func TestAWildcardCanOnlyBeFollowed(t *testing.T) {
	n := newNode(t, nil)
	for _, verb := range []string{"POST", "DELETE"} {
		for _, path := range []string{"/*", "/pets.*", "/pets/*", "/news,pets.*"} {
			n.do(t, verb, path, nil, "Content-Type", "text/plain").refused(t, 404, "wildcard")
		}
	}
	for path, want := range map[string]string{"/*": "news pets cat siamese", "/pets.*": "cat siamese", "/pets/cats/*": "siamese", "/pets.*,pets": "pets cat siamese"} {
		s := n.follow(t, path)
		for _, e := range [][2]string{{"news", "news"}, {"pets", "pets"}, {"petsy.x", "no"}, {"pets.cats", "cat"}, {"pets.cats.siamese", "siamese"}} {
			if e[1] != "no" || path != "/*" {
				n.post(t, "/"+e[0], "text/plain", e[1])
			}
		}
		s.expect(strings.Fields(want)...)
		n.post(t, "/all", "text/plain", "the end")
		s.expect("the end")
		s.close()
	}
}

func TestAllReachesEverybodyAndNobodyFollowsIt(t *testing.T) {
	n := newNode(t, nil)
	for _, path := range []string{"/all", "/news,all", "/all,news"} {
		n.do(t, "GET", path, nil).refused(t, 400, "every consumer")
		n.do(t, "GET", path, nil, "Accept", "text/event-stream").refused(t, 400, "every consumer")
	}
	one, two, wild := n.follow(t, "/news"), n.follow(t, "/sport,news"), n.follow(t, "/pets.*")
	for path, channels := range map[string]string{"/all": "all", "/news,all": "all"} {
		r := n.post(t, path, "text/plain", path).receipt(t)
		if strings.Join(r.Channels, ",") != channels || r.Consumers != 3 {
			t.Errorf("%s: %+v", path, r)
		}
		for _, s := range []*stream{one, two, wild} {
			if e := s.event(); e.data != path || e.id != r.ID {
				t.Errorf("%s arrived as %+v", path, e)
			}
		}
	}
	if got := n.Channels(); strings.Contains(strings.Join(got, ","), "all") {
		t.Errorf("all is among the channels %v", got)
	}
}

func TestMeNeedsATokenWithASubject(t *testing.T) {
	n := newNode(t, nil)
	closed := newNode(t, &eventsource.Settings{AuthToken: "secret"})
	for _, verb := range []string{"GET", "POST", "DELETE", "HEAD"} {
		for _, path := range []string{"/@me", "/news,@me"} {
			a := n.do(t, verb, path, nil, "Content-Type", "text/plain")
			if a.status != 401 || a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s without tokens: %d %v", verb, path, a.status, a.header)
			}
			if a := closed.do(t, verb, path, nil, "Content-Type", "text/plain"); a.status != 401 {
				t.Errorf("%s %s without a token: %d", verb, path, a.status)
			}
			if a := closed.do(t, verb, path, nil, "Content-Type", "text/plain", "Auth-Token", "secret"); a.status != 403 {
				t.Errorf("%s %s with a token without a subject: %d", verb, path, a.status)
			}
		}
	}
}

func TestWhoFollowsTwiceGetsEachEventOnce(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, nil)
		s := n.follow(t, "/pets.cats,pets.*,*,pets/cats,news,pets.cats.*")
		n.post(t, "/pets.cats", "text/plain", "1")
		n.post(t, "/pets.cats,pets.dogs,news", "text/plain", "2")
		n.post(t, "/all", "text/plain", "3")
		n.post(t, "/other", "text/plain", "4")
		s.expect("1", "2", "3", "4")
	})
}

func TestABasePathMovesTheChannelsOnly(t *testing.T) {
	n := newNode(t, &eventsource.Settings{BasePath: "/subscribe/"})
	if r := n.post(t, "/subscribe/news/today", "text/plain", "x").receipt(t); r.Channels[0] != "news.today" {
		t.Errorf("got %+v", r)
	}
	n.post(t, "/news", "text/plain", "x").refused(t, 404, "/subscribe")
	n.post(t, "/subscribed", "text/plain", "x").refused(t, 404)
	n.post(t, "/subscribe", "text/plain", "x").refused(t, 404)
	n.post(t, "/subscribe/health", "text/plain", "x").refused(t, 404, "reserved")
	if a := n.do(t, "GET", "/health", nil); a.status != 200 {
		t.Errorf("/health: %d", a.status)
	}
}

func TestAvailableChannelsAreSortedAndCut(t *testing.T) {
	n := newNode(t, nil)
	for _, name := range []string{"b", "a.b", "a-b", "C"} {
		n.post(t, "/"+name, "text/plain", "x")
	}
	a := n.do(t, "HEAD", "/all", nil)
	if got := a.header.Get("X-Available-Channels"); got != "[C,a-b,a.b,b]" || a.header.Get("X-Channel-Count") != "4" ||
		a.header.Get("X-Consumer-Count") != "0" || a.header.Get("X-Available-Channels-Truncated") != "" {
		t.Errorf("got %v", a.header)
	}
	for i := range 40 {
		n.post(t, "/"+strings.Repeat("x", 200)+string(rune('a'+i%26))+string(rune('a'+i/26)), "text/plain", "x")
	}
	a = n.do(t, "HEAD", "/all", nil)
	got := a.header.Get("X-Available-Channels")
	if len(got) > 4096 || len(got) < 3800 || !strings.HasPrefix(got, "[C,a-b,") || !strings.HasSuffix(got, "]") ||
		a.header.Get("X-Available-Channels-Truncated") != "true" || a.header.Get("X-Channel-Count") != "44" {
		t.Errorf("%d bytes: %.100s, %v", len(got), got, a.header)
	}
}

func TestHeadCountsWhoFollowsByName(t *testing.T) {
	n := newNode(t, nil)
	head := func(path string) string {
		a := n.do(t, "HEAD", path, nil)
		return a.header.Get("X-Consumer-Count") + " " + a.header.Get("X-Channel-Exists")
	}
	if got := head("/news"); got != "0 false" {
		t.Errorf("at first: %s", got)
	}
	n.follow(t, "/news")
	n.follow(t, "/news,sport")
	n.follow(t, "/*")
	n.follow(t, "/pets.*")
	for path, want := range map[string]string{"/news": "2 true", "/sport": "1 true", "/news,sport": "3 true", "/news,nobody": "2 false", "/pets": "0 false", "/pets.cats": "0 false"} {
		if got := head(path); got != want {
			t.Errorf("%s: %s, not %s", path, got, want)
		}
	}
	if got := n.do(t, "HEAD", "/all", nil).header.Get("X-Consumer-Count"); got != "4" {
		t.Errorf("all: %s", got)
	}
}
