package eventsource_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
)

// The management API. Each of these holds what it is answered against openapi.json;
// in the end, everything that stands there must have been seen.
func TestTheAPI(t *testing.T) {
	k := newContract(t)
	all := true
	backends := []string{"memory", "sqlite"}
	if testing.Short() { // SQLite is slow with the race detector, and has tests of its own
		backends = backends[:1]
	}
	for _, backend := range backends {
		k.sqlite = backend == "sqlite"
		all = t.Run(backend, func(t *testing.T) { theAPI(t, k) }) && all
	}
	if run := flag.Lookup("test.run").Value.String(); all && !strings.Contains(run, "/") {
		k.checkSeen(t)
	}
}

// theAPI runs all of these on one backend.
func theAPI(t *testing.T, k *contract) {
	for _, tc := range []struct {
		name string
		test func(*testing.T, *contract)
	}{
		{"anybody finds the document", anybodyFindsTheDocument},
		{"every path has its verbs", everyPathHasItsVerbs},
		{"nothing in a query is passed over", nothingInAQueryIsPassedOver},
		{"the base path does not move it", theBasePathDoesNotMoveIt},
		{"who may do what", whoMayDoWhat},
		{"channels come in pages", channelsComeInPages},
		{"a channel is shown and emptied", aChannelIsShownAndEmptied},
		{"pages lead to every event while others are published", pagesLeadToEveryEvent},
		{"a page is what is asked for", aPageIsWhatIsAskedFor},
		{"ids that come twice lead no page in a circle", idsThatComeTwiceLeadNoPageInACircle},
		{"a page ends before it is too large", aPageEndsBeforeItIsTooLarge},
		{"an event is found by any id", anEventIsFoundByAnyID},
		{"what is there already is not sent again", whatIsThereAlreadyIsNotSentAgain},
		{"publishing is as on the channel", publishingIsAsOnTheChannel},
		{"one event goes to several channels", oneEventGoesToSeveralChannels},
		{"what can't be published is refused", whatCantBePublishedByTheAPI},
		{"a person marks what is read", aPersonMarksWhatIsRead},
		{"marks that can't be made are refused", marksThatCantBeMade},
		{"what is private stays so", whatIsPrivateStaysSo},
		{"consumers are shown and disconnected", consumersAreShownAndDisconnected},
		{"the node tells of itself", theNodeTellsOfItself},
		{"limits count here too", limitsCountHereToo},
		{"a server that drains changes nothing", aServerThatDrainsChangesNothing},
		{"pages of other origins", pagesOfOtherOrigins},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, k) })
	}
}

func anybodyFindsTheDocument(t *testing.T, k *contract) {
	file, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	n := k.node(t, &eventsource.Settings{AuthToken: "s3cret", Public: []string{}})
	for _, header := range [][]string{nil, {"Auth-Token", "unknown"}, {"Auth-Token", "s3cret"}} {
		for _, path := range []string{"", "/"} {
			var home struct{ Version, OpenAPI string }
			k.ok(t, n, "GET", path, &home, header...)
			if version, _ := k.at("/info/version"); home.OpenAPI != "/api/v1/openapi.json" || home.Version != version {
				t.Errorf("%s: %+v", path, home)
			}
		}
		a := k.do(t, n, "GET", "/openapi.json", "", header...)
		if a.status != 200 || strings.TrimSpace(a.body) != strings.TrimSpace(string(file)) || a.header.Get("Cache-Control") != "private, no-cache" {
			t.Errorf("%d %v", a.status, a.header)
		}
		if again := k.do(t, n, "GET", "/openapi.json", "", "If-None-Match", a.header.Get("ETag")); again.status != 304 {
			t.Errorf("again: %d", again.status)
		}
	}
}

func everyPathHasItsVerbs(t *testing.T, k *contract) {
	n := k.node(t, nil)
	n.post(t, "/users.ann?id=e1", asText, "x")
	n.follow(t, "/users.ann")
	list, _ := n.Consumers("users.ann", "", 1)
	allowed := map[string][]string{}
	for _, op := range eventsource.APIOperations() {
		allowed[op[1]] = append(allowed[op[1]], op[0])
	}
	for path, verbs := range allowed {
		id := "e1"
		if strings.Contains(path, "consumers") {
			id = list[0].ID
		}
		real := strings.NewReplacer("{channel}", "users.ann", "{id}", id).Replace(path)
		if slices.Contains(verbs, "GET") {
			get, head := k.do(t, n, "GET", real, ""), n.do(t, "HEAD", apiBase+real, nil)
			if get.status != 200 || head.status != 200 || head.body != "" || head.header.Get("Content-Type") != get.header.Get("Content-Type") ||
				head.header.Get("Content-Length") != get.header.Get("Content-Length") && path != "/stats" || head.header.Get("ETag") != get.header.Get("ETag") {
				t.Errorf("%s: GET %d %v\nHEAD %d %v", real, get.status, get.header, head.status, head.header)
			}
			verbs = append(verbs, "HEAD")
		}
		verbs = append(verbs, "OPTIONS")
		same := func(allow string) bool {
			got := strings.Split(allow, ", ")
			slices.Sort(got)
			return slices.Equal(got, slices.Sorted(slices.Values(verbs)))
		}
		if a := k.do(t, n, "OPTIONS", real, ""); a.status != 204 || !same(a.header.Get("Allow")) {
			t.Errorf("OPTIONS %s: %d, Allow: %s, not %v", real, a.status, a.header.Get("Allow"), verbs)
		}
		a := k.do(t, n, "PATCH", real, "")
		if a.refused(t, 405, "PATCH"); !same(a.header.Get("Allow")) {
			t.Errorf("PATCH %s: Allow: %s", real, a.header.Get("Allow"))
		}
	}
	for _, path := range []string{"/nothing", "/channels/", "/channels/a/", "/channels/a/events/", "/channels/a/events/1/read/", "/channels//events", "/channels/a/b/events",
		"//channels", "/Channels", "/channels/a/consumers/", "/channels/a/events/1/unread", "/openapi.json/"} {
		n.do(t, "GET", apiBase+path, nil).refused(t, 404)
	}
	n.do(t, "GET", "/api/v2", nil).refused(t, 404)
	n.do(t, "GET", "/api/v1x", nil).refused(t, 404)
	for _, name := range []string{"a,b", "a..b", "a%2Fb", "b%20c", "api", "health.x", "@me.x", strings.Repeat("x", 256), "%FF", "%00"} {
		for _, path := range []string{"", "/events", "/events/1", "/unread", "/consumers"} {
			k.do(t, n, "GET", "/channels/"+name+path, "").refused(t, 404)
		}
		k.do(t, n, "POST", "/channels/"+name+"/events", "x", "Content-Type", asText).refused(t, 404)
	}
	for _, path := range []string{"/channels/a.*", "/channels/*"} {
		k.do(t, n, "GET", path, "").refused(t, 404, "wildcard")
		k.do(t, n, "DELETE", path, "").refused(t, 404, "wildcard")
		k.do(t, n, "POST", path+"/events", "x", "Content-Type", asText).refused(t, 404, "wildcard")
	}
	k.do(t, n, "GET", "/channels/all", "").refused(t, 404, "/api/v1/stats")
	k.do(t, n, "GET", "/channels/all/events", "").refused(t, 400, "can't be followed")
	k.do(t, n, "GET", "/channels/all/events/1", "").refused(t, 400, "can't be followed")
}

// operation returns a request of an operation, that is answered by it.
func requestOf(op [2]string) (path, body string) {
	path = strings.NewReplacer("{channel}", "users.ann", "{id}", "e1").Replace(op[1])
	switch op {
	case [2]string{"POST", "/events"}:
		body = `{"channels":["users.ann"],"data":"x"}`
	case [2]string{"POST", "/channels/{channel}/read"}:
		body = `{"id":"e1"}`
	case [2]string{"POST", "/channels/{channel}/events"}:
		body = `{"data":"x"}`
	case [2]string{"PUT", "/channels/{channel}/read"}, [2]string{"DELETE", "/channels/{channel}/read"}:
		path += "?id=e1"
	}
	return path, body
}

func nothingInAQueryIsPassedOver(t *testing.T, k *contract) {
	n := k.node(t, nil)
	n.post(t, "/users.ann?id=e1", asText, "x")
	mark := n.Stats().Mark
	for _, op := range eventsource.APIOperations() {
		path, body := requestOf(op)
		join := "?"
		if strings.Contains(path, "?") {
			join = "&"
		}
		k.json(t, n, op[0], path+join+"nonsense=1&access_token=s3cret", body).refused(t, 400, `nonsense`, `access_token`)
		k.json(t, n, op[0], path+join+"a=%zz", body).refused(t, 400, "can't be read")
	}
	k.do(t, n, "GET", "/channels?limt=3", "").refused(t, 400, `did you mean \"limit\"`)
	k.do(t, n, "GET", "/channels?limit=3&limit=4", "").refused(t, 400, "twice")
	n.publishedNothing(t, "with a query that means nothing", mark)
}

func theBasePathDoesNotMoveIt(t *testing.T, k *contract) {
	for _, base := range []string{"/subscribe", "/api"} {
		n := k.node(t, &eventsource.Settings{BasePath: base})
		k.json(t, n, "POST", "/channels/news/events", `{"data":"x"}`).receipt(t)
		var page struct{ Events []struct{ Data string } }
		k.ok(t, n, "GET", "/channels/news/events", &page)
		if len(page.Events) != 1 || n.do(t, "HEAD", base+"/news", nil).header.Get("X-Channel-Exists") != "true" {
			t.Errorf("below %s: %+v", base, page)
		}
	}
}

// ann and others are who asks for something.
func apiSettings() *eventsource.Settings {
	return &eventsource.Settings{
		AuthToken: "everything",
		Public:    []string{"open"},
		Keys: []eventsource.Key{
			{Token: "reader", Subscribe: []string{"news.*"}, Publish: []string{"news.*"}},
			{Token: "admin", Admin: true},
			{Token: "warden", Subscribe: []string{"users.*"}, Publish: []string{"users.*", "all"}, Admin: true},
		},
		Issuers: []eventsource.Issuer{{Key: secret}},
	}
}

func whoMayDoWhat(t *testing.T, k *contract) {
	n := k.node(t, apiSettings())
	ann := granted(t, claims{"sub": "ann"})
	bob := granted(t, claims{"sub": "bob"})
	for _, path := range []string{"/open?id=e1", "/news.today?id=e1", "/users.ann?id=e1"} {
		n.post(t, path, asText, "x", "Auth-Token", "everything").receipt(t)
	}
	tokens := []string{"", "unknown", "reader", ann, bob, "admin", "warden", "everything"}
	names := []string{"nobody", "an unknown token", "reader", "ann", "bob", "admin", "warden", "everything"}
	for _, tc := range []struct{ verb, path, body, statuses string }{
		{"GET", "", "", "200 200 200 200 200 200 200 200"},
		{"GET", "/openapi.json", "", "200 200 200 200 200 200 200 200"},
		{"GET", "/channels", "", "401 401 403 403 403 200 200 200"},
		{"GET", "/channels/open", "", "401 401 403 403 403 200 200 200"},
		{"GET", "/channels/users.ann", "", "401 401 403 403 403 200 200 200"},
		{"GET", "/channels/open/consumers", "", "401 401 403 403 403 200 200 200"},
		{"GET", "/channels/all/consumers", "", "401 401 403 403 403 200 200 200"},
		{"GET", "/channels/open/consumers/1", "", "401 401 403 403 403 404 404 404"},
		{"DELETE", "/channels/open/consumers/1", "", "401 401 403 403 403 404 404 404"},
		{"DELETE", "/channels/nothing", "", "401 401 403 403 403 200 200 200"},
		{"GET", "/stats", "", "401 401 403 403 403 200 200 200"},
		{"GET", "/nodes", "", "401 401 403 403 403 200 200 200"},
		{"GET", "/channels/open/events", "", "200 401 200 200 200 200 200 200"},
		{"GET", "/channels/open/events/e1", "", "200 401 200 200 200 200 200 200"},
		{"GET", "/channels/news.today/events", "", "401 401 200 403 403 200 200 200"},
		{"GET", "/channels/news.today/events?id=e1", "", "401 401 200 403 403 200 200 200"},
		{"GET", "/channels/news.*/events", "", "401 401 200 403 403 200 200 200"},
		{"GET", "/channels/news.today/events/e1", "", "401 401 200 403 403 200 200 200"},
		{"GET", "/channels/*/events", "", "401 401 403 403 403 200 200 200"},
		{"GET", "/channels/users.ann/events", "", "401 401 403 200 403 403 200 200"},
		{"GET", "/channels/users.ann/events/e1", "", "401 401 403 200 403 403 200 200"},
		{"GET", "/channels/users.*/events", "", "401 401 403 403 403 403 200 200"},
		{"GET", "/channels/users.ann/unread", "", "401 401 403 200 403 403 200 200"},
		{"GET", "/channels/@me/events", "", "401 401 403 200 200 403 403 403"},
		{"GET", "/channels/@me/events/e1", "", "401 401 403 200 404 403 403 403"},
		{"GET", "/channels/@me/unread", "", "401 401 403 200 200 403 403 403"},
		{"PUT", "/channels/@me/events/e1/read", "", "401 401 403 200 404 403 403 403"},
		{"PUT", "/channels/users.ann/events/e1/read", "", "401 401 403 200 403 403 403 200"},
		{"DELETE", "/channels/users.ann/events/e1/read", "", "401 401 403 200 403 403 403 200"},
		{"PUT", "/channels/users.ann/read?id=e1", "", "401 401 403 200 403 403 403 200"},
		{"DELETE", "/channels/users.ann/read?id=e1", "", "401 401 403 200 403 403 403 200"},
		{"POST", "/channels/users.ann/read", `{"id":"e1"}`, "401 401 403 200 403 403 403 200"},
		{"POST", "/channels/news.today/events", `{"data":"x"}`, "401 401 201 403 403 403 403 201"},
		{"POST", "/channels/users.ann/events", `{"data":"x"}`, "401 401 403 403 403 403 201 201"},
		{"POST", "/channels/all/events", `{"data":"x"}`, "401 401 403 403 403 403 201 201"},
		{"POST", "/events", `{"channels":["news.today"],"data":"x"}`, "401 401 201 403 403 403 403 201"},
		{"POST", "/events", `{"channels":["news.today","users.ann"],"data":"x"}`, "401 401 403 403 403 403 403 201"},
		{"POST", "/events", `{"channels":["all","users.ann"],"data":"x"}`, "401 401 403 403 403 403 201 201"},
		{"POST", "/events", `{"channels":["@me"],"data":"x"}`, "401 401 403 403 403 403 403 403"},
	} {
		var got []string
		for i, token := range tokens {
			header := []string{"Content-Type", asJSON}
			if token != "" {
				header = append(header, "Auth-Token", token)
			}
			mark := n.Stats().Mark
			a := k.do(t, n, tc.verb, tc.path, tc.body, header...)
			got = append(got, fmt.Sprint(a.status))
			if a.status >= 400 {
				n.publishedNothing(t, tc.verb+" "+tc.path+" by "+names[i], mark)
			}
		}
		if s := strings.Join(got, " "); s != tc.statuses {
			t.Errorf("%s %s %s\nof %v:\ngot  %s\nwant %s", tc.verb, tc.path, tc.body, names, s, tc.statuses)
		}
	}
	k.json(t, n, "POST", "/events", `{`).refused(t, 401, "publish") // whose body is not looked at
	open := k.node(t, nil)
	for _, op := range eventsource.APIOperations() {
		open.post(t, "/users.ann?id=e1", asText, "x").receipt(t)
		path, body := requestOf(op)
		if a := k.json(t, open, op[0], path, body); a.status >= 400 && !strings.Contains(op[1], "/consumers/") {
			t.Errorf("%v where no token is configured: %d %s", op, a.status, a.body)
		}
	}
	k.do(t, open, "GET", "/channels/@me/events", "").refused(t, 401, "@me")
}

func channelsComeInPages(t *testing.T, k *contract) {
	n := k.node(t, apiSettings())
	type page struct {
		Channels []struct {
			Channel   string
			Consumers int
		}
		Page, Limit int
		More        bool
	}
	names := func(p page) (all []string) {
		for _, c := range p.Channels {
			all = append(all, c.Channel)
		}
		return all
	}
	ask := func(token, query string) page {
		t.Helper()
		var p page
		if a := k.ok(t, n, "GET", "/channels"+query, &p, "Auth-Token", token); a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%v", a.header)
		}
		return p
	}
	if p := ask("admin", ""); p.Channels == nil || len(p.Channels) != 0 || p.More || p.Page != 1 || p.Limit != 100 {
		t.Errorf("of none: %+v", p)
	}
	var want, public []string
	publish := func(name string) {
		n.Publish(t.Context(), name, eventsource.Event{Data: "x"})
		want = append(want, name)
		if !strings.HasPrefix(name, "users.") {
			public = append(public, name)
		}
	}
	for i := range 120 {
		publish(fmt.Sprintf("a.%03d", i))
		publish(fmt.Sprintf("users.%03d", i))
		publish(fmt.Sprintf("z.%03d", i))
	}
	publish("users")
	publish("users-b")
	slices.Sort(want)
	slices.Sort(public)
	n.follow(t, "/a.000", "Auth-Token", "everything")
	for token, want := range map[string][]string{"warden": want, "everything": want, "admin": public} {
		for _, limit := range []int{1, 7, 100, len(want), 1000} {
			var got []string
			for number := 1; ; number++ {
				p := ask(token, fmt.Sprintf("?limit=%d&page=%d", limit, number))
				if got = append(got, names(p)...); p.Page != number || p.Limit != limit || p.More != (len(got) < len(want)) || len(p.Channels) > limit {
					t.Fatalf("%s, %d at once, page %d: %+v", token, limit, number, p)
				}
				if !p.More {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s, %d at once: %v", token, limit, got)
			}
		}
	}
	if p := ask("admin", "?page=1000000&limit=1000"); len(p.Channels) != 0 || p.More {
		t.Errorf("beyond the last: %+v", p)
	}
	if p := ask("admin", "?prefix=a.01"); len(p.Channels) != 10 || p.Channels[3].Channel != "a.013" {
		t.Errorf("by prefix: %+v", p)
	}
	if p := ask("admin", "?prefix=users."); len(p.Channels) != 0 || p.More {
		t.Errorf("private, by prefix: %+v", p)
	}
	if p := ask("admin", "?prefix=a.000"); len(p.Channels) != 1 || p.Channels[0].Consumers != 1 {
		t.Errorf("with a consumer: %+v", p)
	}
	for _, query := range []string{"limit=0", "limit=1001", "limit=", "limit=x", "limit=-1", "limit=1e2", "page=0", "page=", "page=x", "page=1000001", "limit=99999999999999999999"} {
		k.do(t, n, "GET", "/channels?"+query, "", "Auth-Token", "admin").refused(t, 400, "is no number from 1 to")
	}
}

func aChannelIsShownAndEmptied(t *testing.T, k *contract) {
	n := k.node(t, &eventsource.Settings{AuthToken: "everything", Keys: apiSettings().Keys})
	token := []string{"Auth-Token", "everything"}
	k.do(t, n, "GET", "/channels/news", "", token...).refused(t, 404, "there is no channel")
	s := n.follow(t, "/news")
	type channel struct {
		Channel           string
		Consumers, Events int
		Oldest, Newest    *struct {
			ID   string
			Time time.Time
		}
	}
	var c channel
	if k.ok(t, n, "GET", "/channels/news", &c, token...); c.Channel != "news" || c.Consumers != 1 || c.Events != 0 || c.Oldest != nil || c.Newest != nil {
		t.Errorf("with a consumer only: %+v", c)
	}
	before := time.Now()
	for i := range 3 {
		n.post(t, fmt.Sprintf("/news?id=e%d", i), asText, "x", token...).receipt(t)
	}
	if k.ok(t, n, "GET", "/channels/news", &c, token...); c.Events != 3 || c.Oldest.ID != "e0" || c.Newest.ID != "e2" || c.Newest.Time.Before(before) || c.Newest.Time.Location() != time.UTC {
		t.Errorf("with events: %+v", c)
	}
	a := k.do(t, n, "DELETE", "/channels/news", "", token...)
	if a.status != 200 || a.body != `{"channels":["news"],"disconnected":1}`+"\n" {
		t.Errorf("DELETE: %d %s", a.status, a.body)
	}
	s.expect("x", "x", "x")
	if data, _ := s.ended(); data != `{"reason":"closed"}` {
		t.Errorf("the stream ended with %q", data)
	}
	eventually(t, "the channel is gone", func() bool { return k.do(t, n, "GET", "/channels/news", "", token...).status == 404 })
	if a := k.do(t, n, "DELETE", "/channels/news", "", token...); a.body != `{"channels":["news"],"disconnected":0}`+"\n" {
		t.Errorf("once more: %s", a.body)
	}
	for _, name := range []string{"a", "users.ann"} {
		n.post(t, "/"+name, asText, "x", token...).receipt(t)
	}
	if a := k.do(t, n, "DELETE", "/channels/all", "", "Auth-Token", "admin"); a.body != `{"channels":["a"],"disconnected":0}`+"\n" {
		t.Errorf("all, by who may not know of persons: %s", a.body)
	}
}

// An apiEvent is an event as a page has it.
type apiEvent struct {
	ID, Event string
	Data      *string
	Retry     *int
	Time      time.Time
	Channels  []string
	Read      *bool
}

// An apiPage is a page of events.
type apiPage struct {
	Channel string
	Events  []apiEvent
	More    bool
	Unread  *int
}

// page reads a page of events.
func (k *contract) page(t testing.TB, n *node, path string, header ...string) (apiPage, answer) {
	t.Helper()
	var p apiPage
	a := k.ok(t, n, "GET", path, &p, header...)
	return p, a
}

// next returns the path that an answer's Link leads to.
func (a answer) next(t testing.TB) string {
	t.Helper()
	link, ok := strings.CutSuffix(strings.TrimPrefix(a.header.Get("Link"), "<"), `>; rel="next"`)
	if !ok {
		t.Fatalf("the Link is %q", a.header.Get("Link"))
	}
	return strings.TrimPrefix(link, apiBase)
}

// pages reads all pages from a path on, and returns their events.
func (k *contract) pages(t testing.TB, n *node, path string, most int, header ...string) (all []apiEvent, count int) {
	t.Helper()
	for {
		p, a := k.page(t, n, path, header...)
		all = append(all, p.Events...)
		if count++; !p.More {
			if a.header.Get("Link") != "" {
				t.Errorf("the last page links to %s", a.header.Get("Link"))
			}
			return all, count
		}
		if count > most {
			t.Fatalf("there are more than %d pages", most)
		}
		path = a.next(t)
	}
}

func pagesLeadToEveryEvent(t *testing.T, k *contract) {
	n := k.node(t, &eventsource.Settings{History: eventsource.History{Events: 5000}})
	const count = 1100
	var want []string
	publish := func(i int, name string) string {
		r, err := n.Publish(context.Background(), name, eventsource.Event{Data: fmt.Sprint(i)})
		if err != nil {
			t.Error(err)
			return ""
		}
		return r.IDs[0]
	}
	for i := range count {
		want = append(want, publish(i, "news.today"))
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := range 1000 { // all of which is kept
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				publish(count+i, []string{"news.today", "news.late", "sport"}[i%3])
			}
		}
	})
	for _, tc := range []struct {
		path     string
		backward bool
	}{
		{"/channels/news.today/events", false},
		{"/channels/news.*/events?limit=137", false},
		{"/channels/*/events?limit=1000", false},
		{"/channels/news.today/events?order=desc&limit=99", true},
	} {
		all, pages := k.pages(t, n, tc.path, 200)
		if pages < 2 {
			t.Errorf("%s: there was one page", tc.path)
		}
		if tc.backward {
			slices.Reverse(all)
		}
		var got []string
		seen := map[string]bool{}
		for _, e := range all {
			if seen[e.ID] {
				t.Fatalf("%s: %s came twice", tc.path, e.ID)
			}
			if seen[e.ID] = true; len(got) < len(want) {
				got = append(got, e.ID)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: the first %d of %d events are not what was published", tc.path, len(got), len(all))
		}
	}
	close(stop)
	wg.Wait()
	// Backwards from an id, each page in order.
	var got []string
	path := "/channels/news.today/events?limit=200&before=" + want[1000]
	for {
		p, a := k.page(t, n, path)
		var ids []string
		for _, e := range p.Events {
			ids = append(ids, e.ID)
		}
		got = append(ids, got...)
		if !p.More {
			break
		}
		path = a.next(t)
	}
	if !slices.Equal(got, want[:1000]) {
		t.Errorf("backwards came %d events", len(got))
	}
}

func aPageIsWhatIsAskedFor(t *testing.T, k *contract) {
	n := k.node(t, nil)
	for i, e := range []string{
		`{"id":"1","data":"one"}`, `{"id":"2","event":"score","data":{"a": 1},"retry":0}`, `{"id":"3","event":"score","retry":1500}`,
		`{"id":"4","event":"other","data":""}`, `{"id":"5","data":"<\r\né>"}`,
	} {
		name := []string{"/news", "/news,sport"}[i%2]
		n.post(t, name, asJSON, e).receipt(t)
	}
	n.post(t, "/all", asJSON, `{"id":"6","data":"to all"}`).receipt(t)
	for _, tc := range []struct {
		query, ids string
		more       bool
	}{
		{"", "1 2 3 4 5", false},
		{"?limit=2", "1 2", true},
		{"?limit=5", "1 2 3 4 5", false},
		{"?order=asc", "1 2 3 4 5", false},
		{"?order=desc", "5 4 3 2 1", false},
		{"?order=desc&limit=2", "5 4", true},
		{"?after=2", "3 4 5", false},
		{"?after=2&limit=2", "3 4", true},
		{"?after=5", "", false},
		{"?after=2&before=5", "3 4", false},
		{"?after=4&before=2", "", false},
		{"?before=4", "1 2 3", false},
		{"?before=4&limit=2", "2 3", true},
		{"?before=4&limit=2&order=desc", "3 2", true},
		{"?before=1", "", false},
		{"?after=1&before=5&limit=2", "2 3", true},
		{"?after=1&before=5&limit=2&order=desc", "4 3", true},
		{"?event=score", "2 3", false},
		{"?event=message", "1 5", false},
		{"?event=message,other&limit=2", "1 4", true},
		{"?event=none", "", false},
	} {
		p, a := k.page(t, n, "/channels/news/events"+tc.query)
		var ids []string
		for _, e := range p.Events {
			ids = append(ids, e.ID)
		}
		if strings.Join(ids, " ") != tc.ids || p.More != tc.more || p.Channel != "news" || p.Unread != nil || a.header.Get("X-Unread-Count") != "" ||
			p.Events == nil || (a.header.Get("Link") != "") != tc.more {
			t.Errorf("%s: %+v, Link %q", tc.query, p, a.header.Get("Link"))
		}
	}
	a := k.do(t, n, "GET", "/channels/news/events", "")
	var whole struct{ Events []map[string]any }
	json.Unmarshal([]byte(a.body), &whole)
	for i, want := range []string{
		`{"channels":["news"],"data":"one","event":"","id":"1"}`,
		`{"channels":["news","sport"],"data":"{\"a\":1}","event":"score","id":"2","retry":0}`,
		`{"channels":["news"],"data":null,"event":"score","id":"3","retry":1500}`,
		`{"channels":["news","sport"],"data":"","event":"other","id":"4"}`,
		`{"channels":["news"],"data":"<\r\né>","event":"","id":"5"}`,
	} {
		if at, err := time.Parse(time.RFC3339Nano, whole.Events[i]["time"].(string)); err != nil || time.Since(at) > time.Minute || !strings.HasSuffix(whole.Events[i]["time"].(string), "Z") {
			t.Errorf("the time is %v", whole.Events[i]["time"])
		}
		delete(whole.Events[i], "time")
		var b strings.Builder
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.Encode(whole.Events[i])
		if b.String() != want+"\n" {
			t.Errorf("event %d is %s, not %s", i+1, b.String(), want)
		}
	}
	if p, _ := k.page(t, n, "/channels/nothing/events"); p.Events == nil || len(p.Events) != 0 || p.More {
		t.Errorf("of a channel that does not exist: %+v", p)
	}
	welcome := n.stream(t, "/fresh").next().id
	if p, _ := k.page(t, k.node(t, nil), "/channels/nothing/events"); len(p.Events) != 0 {
		t.Errorf("on a fresh server: %+v", p)
	}
	if p, _ := k.page(t, n, "/channels/news/events?before="+welcome); len(p.Events) != 5 {
		t.Errorf("before a position: %+v", p)
	}
	fresh := k.node(t, nil)
	start := fresh.stream(t, "/news").next().id // of the place 0
	fresh.post(t, "/news", asText, "x").receipt(t)
	for query, want := range map[string]int{"after": 1, "before": 0} {
		if p, _ := k.page(t, fresh, "/channels/news/events?"+query+"="+start); len(p.Events) != want {
			t.Errorf("%s the place 0: %+v", query, p)
		}
	}
	k.do(t, fresh, "GET", "/channels/news/events/"+start, "").refused(t, 404)
	for query, status := range map[string]int{
		"after=unknown": 404, "before=unknown": 404, "after=": 400, "before=": 400, "after=" + strings.Repeat("x", 256): 400, "limit=0": 400, "limit=1001": 400,
		"event=": 400, "event=" + strings.Repeat("a,b,", 51): 400, "order=up": 400, "order=": 400, "status=unread": 404, "status=all": 404, "status=new": 400,
		"id=1&limit=2": 400, "id=": 400, "id=unknown": 404,
	} {
		k.do(t, n, "GET", "/channels/news/events?"+query, "").refused(t, status)
	}
	k.do(t, n, "GET", "/channels/news/events?order=descc", "").refused(t, 400, `did you mean \"desc\"`)
}

func idsThatComeTwiceLeadNoPageInACircle(t *testing.T, k *contract) {
	n := k.node(t, nil)
	for range 25 {
		n.post(t, "/news", asJSON, `{"id":"same","data":"x"}`).receipt(t)
	}
	n.post(t, "/x", asText, "x").receipt(t)
	for _, query := range []string{"limit=4", "limit=4&order=desc", "limit=4&before=" + n.stream(t, "/x").next().id} {
		if all, _ := k.pages(t, n, "/channels/news/events?"+query, 30); len(all) != 25 {
			t.Errorf("%s: %d events came", query, len(all))
		}
	}
}

func aPageEndsBeforeItIsTooLarge(t *testing.T, k *contract) {
	n := k.node(t, nil)
	for range 12 {
		n.post(t, "/news", asText, strings.Repeat("x", 1<<20)).receipt(t)
	}
	p, _ := k.page(t, n, "/channels/news/events")
	if len(p.Events) != 4 || !p.More {
		t.Errorf("a page has %d events", len(p.Events))
	}
	if all, pages := k.pages(t, n, "/channels/news/events", 5); len(all) != 12 || pages != 3 {
		t.Errorf("%d events on %d pages", len(all), pages)
	}
}

func anEventIsFoundByAnyID(t *testing.T, k *contract) {
	n := k.node(t, nil)
	ids := []string{"plain", "a/b", ".", "..", "../..", "%", "%2F", "a b", "ü☃", "read", "a?b=c", "a#b", "a&b", "a,b", "+", "0", "9007199254740993", "events", "'\"<>", strings.Repeat("y", 255)}
	for i, id := range ids {
		if _, err := n.Publish(t.Context(), "news", eventsource.Event{ID: id, Data: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	given := n.post(t, "/news", asText, fmt.Sprint(len(ids))).receipt(t).ID
	for i, id := range append(ids, given) {
		paths := []string{"/events?id=" + url.QueryEscape(id), "/events/" + url.PathEscape(id)}
		for _, path := range paths {
			var e apiEvent
			if k.ok(t, n, "GET", "/channels/news"+path, &e); e.ID != id || *e.Data != fmt.Sprint(i) {
				t.Errorf("%s: %+v", path, e)
			}
			k.do(t, n, "GET", "/channels/sport"+path, "").refused(t, 404, "no event with the id")
		}
	}
	first := n.post(t, "/twice", asJSON, `{"id":"t","data":"first"}`)
	n.post(t, "/twice", asJSON, `{"id":"t","data":"second"}`)
	var e apiEvent
	if k.ok(t, n, "GET", "/channels/twice/events/t", &e); *e.Data != "first" {
		t.Errorf("of an id that came twice (%s): %+v", first.body, e)
	}
	// An id of the server's that says the place of an event with another id.
	place := n.stream(t, "/twice").next().id
	k.do(t, n, "GET", "/channels/twice/events/"+place, "").refused(t, 404)
	// A publisher's own that looks like the server's.
	n.post(t, "/looks", asJSON, `{"id":"`+place+`","data":"mine"}`).receipt(t)
	if k.ok(t, n, "GET", "/channels/looks/events/"+place, &e); *e.Data != "mine" {
		t.Errorf("of an id that looks like the server's: %+v", e)
	}
	n.do(t, "DELETE", "/news", nil)
	k.do(t, n, "GET", "/channels/news/events/"+given, "").refused(t, 404)
	k.do(t, n, "GET", "/channels/news/events/"+strings.Repeat("x", 256), "").refused(t, 400)
}

func whatIsThereAlreadyIsNotSentAgain(t *testing.T, k *contract) {
	n := k.node(t, nil)
	for i := range 3 {
		n.post(t, fmt.Sprintf("/users.ann?id=%d", i), asText, "x").receipt(t)
	}
	for _, path := range []string{"/channels/users.ann/events", "/channels/users.ann/events?limit=1", "/channels/users.ann/unread", "/channels/users.ann/events/0"} {
		a := k.do(t, n, "GET", path, "")
		tag := a.header.Get("ETag")
		if len(tag) < 10 || tag[0] != '"' || a.header.Get("Cache-Control") != "private, no-cache" {
			t.Errorf("%s: %v", path, a.header)
		}
		for _, sent := range []string{tag, "W/" + tag, `"other", ` + tag, "*"} {
			again := k.do(t, n, "GET", path, "", "If-None-Match", sent)
			if again.status != 304 || again.header.Get("ETag") != tag || again.header.Get("X-Unread-Count") != a.header.Get("X-Unread-Count") {
				t.Errorf("%s with %s: %d %v", path, sent, again.status, again.header)
			}
		}
		if again := k.do(t, n, "GET", path, "", "If-None-Match", `"other"`); again.status != 200 {
			t.Errorf("%s with another: %d", path, again.status)
		}
		k.ok(t, n, "PUT", "/channels/users.ann/events/0/read", &struct{}{})
		if changed := k.do(t, n, "GET", path, "", "If-None-Match", tag); changed.status != 200 || changed.header.Get("ETag") == tag {
			t.Errorf("%s after it changed: %d", path, changed.status)
		}
		k.ok(t, n, "DELETE", "/channels/users.ann/events/0/read", &struct{}{})
	}
}

func publishingIsAsOnTheChannel(t *testing.T, k *contract) {
	n := k.node(t, nil)
	s := n.follow(t, "/news")
	for _, tc := range []struct {
		contentType, query, body string
		want                     block
	}{
		{asJSON, "", `{"id":"a","event":"e","data":"d","retry":7,"ttl":60000}`, block{id: "a", event: "e", data: "d", retry: "7"}},
		{asJSON, "", `[{"data":1}]`, block{data: "1"}},
		{asJSON, "?raw=1&id=q&event=t&retry=3&ttl=60000", ` [1] `, block{id: "q", event: "t", data: ` [1] `, retry: "3"}},
		{asForm, "", "data=a+b%0Ac&event=e&id=f&retry=1&ttl=60000", block{id: "f", event: "e", data: "a b\nc", retry: "1"}},
		{"text/markdown", "?event=md&id=m&retry=0", "# x", block{id: "m", event: "md", data: "# x", retry: "0"}},
		{asCloud, "", `{"specversion":"1.0","id":"c","source":"/s","type":"t","data":{"a": 1}}`, block{id: "c", event: "t", data: `{"a":1}`}},
		{asCloud, "", `{"specversion":"1.0","type":"t","data_base64":"aGk="}`, block{event: "t", data: "hi"}},
		{asLines, "", `{"data":"a line"}` + "\n", block{data: "a line"}},
		{asLines, "?answers=errors", `{"data":"a quiet line"}`, block{data: "a quiet line"}},
	} {
		a := k.do(t, n, "POST", "/channels/news/events"+tc.query, tc.body, "Content-Type", tc.contentType)
		if a.status != 201 && (a.status != 200 || tc.contentType != asLines) {
			t.Errorf("%s %s: %d %s", tc.contentType, tc.body, a.status, a.body)
			continue
		}
		got := s.event()
		if tc.want.id != "" && got.id != tc.want.id || got.event != tc.want.event || got.data != tc.want.data || got.retry != tc.want.retry {
			t.Errorf("%s %s arrived as %+v", tc.contentType, tc.body, got)
		}
	}
	publish := func(body string) answer {
		return k.json(t, n, "POST", "/channels/news/events", body, "Idempotency-Key", "k")
	}
	first := publish(`{"data":"once"}`).receipt(t)
	if again := publish(`{"data":"once"}`).receipt(t); again.ID != first.ID {
		t.Errorf("the repeat was %+v, the first %+v", again, first)
	}
	publish(`{"data":"twice"}`).refused(t, 422)
	s.expect("once")
	k.json(t, n, "POST", "/channels/all/events", `{"data":"to all"}`).receipt(t)
	s.expect("to all")
}

func oneEventGoesToSeveralChannels(t *testing.T, k *contract) {
	n := k.node(t, &eventsource.Settings{Issuers: []eventsource.Issuer{{Key: secret}}})
	ann := granted(t, claims{"sub": "ann", "eventsource": claims{"publish": []string{"*", "all"}}})
	publish := func(body string, header ...string) answer {
		t.Helper()
		return k.json(t, n, "POST", "/events", body, append([]string{"Auth-Token", ann}, header...)...)
	}
	both, one, me := n.follow(t, "/a,b"), n.follow(t, "/b"), n.follow(t, "/@me", "Auth-Token", ann)
	if a := publish(`{"channels":["a","b","a"],"id":"x","event":"e","data":{"n":1},"retry":5,"ttl":60000}`); a.body != `{"id":"x","channels":["a","b"],"consumers":3}`+"\n" {
		t.Errorf("answered %s", a.body)
	}
	for _, s := range []*stream{both, one} {
		if b := s.event(); b.id != "x" || b.event != "e" || b.data != `{"n":1}` || b.retry != "5" {
			t.Errorf("it came as %+v", b)
		}
	}
	if r := publish(`{"channels":["@me"],"data":"note"}`).receipt(t); !slices.Equal(r.Channels, []string{"users.ann"}) {
		t.Errorf("to @me: %+v", r)
	}
	me.expect("note")
	if r := publish(`{"channels":["a","all","b"],"data":"everybody"}`).receipt(t); !slices.Equal(r.Channels, []string{"all"}) || r.Consumers != 3 {
		t.Errorf("to all: %+v", r)
	}
	for _, s := range []*stream{both, one, me} {
		s.expect("everybody")
	}
	first := publish(`{"channels":["a","b"],"data":"once"}`, "Idempotency-Key", "k").receipt(t)
	if again := publish(`{"channels":["a","b"],"data":"once"}`, "Idempotency-Key", "k").receipt(t); again.ID != first.ID {
		t.Errorf("the repeat was %+v, the first %+v", again, first)
	}
	publish(`{"channels":["b","a"],"data":"twice"}`, "Idempotency-Key", "k").refused(t, 422)
	both.expect("once")
	publish(`{"channels":["a"],"data":"last"}`).receipt(t)
	both.expect("last")
}

func whatCantBePublishedByTheAPI(t *testing.T, k *contract) {
	n := k.node(t, &eventsource.Settings{Timeout: 20 * time.Millisecond, Limits: eventsource.Limits{Body: 4 << 10}})
	mark := n.Stats().Mark
	many := `["c0"` + strings.Repeat(`,"c1"`, 100) + `]`
	for _, tc := range []struct {
		status      int
		contentType string
		body, words string
	}{
		{415, "", `{}`, "application/json"},
		{415, asText, `{}`, "application/json"},
		{415, asLines, `{}`, "application/json"},
		{400, asJSON, ``, "empty"},
		{400, asJSON, `{`, "at byte"},
		{400, asJSON, `[]`, "an array"},
		{400, asJSON, `[{"channels":["a"],"data":"x"}]`, "an array"},
		{400, asJSON, `{}`, "nothing to send"},
		{400, asJSON, `{"data":"x"}`, "channels: they are missing"},
		{400, asJSON, `{"channels":null,"data":"x"}`, "channels: they are missing"},
		{400, asJSON, `{"channels":"a","data":"x"}`, "give an array"},
		{400, asJSON, `{"channels":[],"data":"x"}`, "at least one"},
		{400, asJSON, `{"channels":[1],"data":"x"}`, "give a string"},
		{400, asJSON, `{"channels":["a.*"],"data":"x"}`, "wildcard"},
		{400, asJSON, `{"channels":["*"],"data":"x"}`, "wildcard"},
		{400, asJSON, `{"channels":["a/b"],"data":"x"}`, "a channel name is"},
		{400, asJSON, `{"channels":["a,b"],"data":"x"}`, "a channel name is"},
		{400, asJSON, `{"channels":["api"],"data":"x"}`, "reserved"},
		{400, asJSON, `{"channels":[""],"data":"x"}`, "a channel name is"},
		{400, asJSON, `{"channels":` + many + `,"data":"x"}`, "more than 100"},
		{400, asJSON, `{"channels":["a"]}`, "nothing to send"},
		{400, asJSON, `{"channels":["a"],"channels":["b"],"data":"x"}`, "twice"},
		{400, asJSON, `{"chanels":["a"],"data":"x"}`, `did you mean \"channels\"`},
		{400, asJSON, `{"channels":["a"],"Data":"x"}`, `did you mean \"data\"`},
		{400, asJSON, `{"channels":["a"],"data":"x","id":""}`, "id: it is empty"},
		{400, asJSON, `{"channels":["a"],"data":"x","event":"eventsource.gap"}`, "the server's own"},
		{401, asJSON, `{"channels":["a","@me"],"data":"x"}`, "@me"},
		{413, asJSON, `{"channels":["a"],"data":"` + strings.Repeat("x", 5000) + `"}`, "longer than"},
	} {
		header := []string{"Content-Type", tc.contentType}
		if tc.contentType == "" {
			header = nil
		}
		k.do(t, n, "POST", "/events", tc.body, header...).refused(t, tc.status, tc.words)
		n.publishedNothing(t, tc.body, mark)
	}
	k.json(t, n, "POST", "/events", `{"channels":["a"],"data":"x"}`, "Idempotency-Key", strings.Repeat("k", 256)).refused(t, 400, "Idempotency-Key")
	k.json(t, n, "POST", "/events", `{"channels":["a"],"data":"x"}`, "Idempotency-Key", "a", "Idempotency-Key", "b").refused(t, 400, "Idempotency-Key")
	k.do(t, n, "POST", "/channels/a/events", "x").refused(t, 415)
	k.do(t, n, "POST", "/channels/a/events", strings.Repeat("x", 5000), "Content-Type", asText).refused(t, 413)
	k.do(t, n, "POST", "/channels/users.a/read", strings.Repeat(" ", 5000), "Content-Type", asJSON).refused(t, 413)
	k.do(t, n, "POST", "/channels/users.a/read", `{"id":"x"}`, "Content-Type", asText).refused(t, 415)
	k.do(t, n, "POST", "/channels/a/events", "{\"data\":1}\n", "Content-Type", asLines, "Idempotency-Key", "k").refused(t, 400)
	n.publishedNothing(t, "what is refused", mark)
	// A body that does not come.
	for _, path := range []string{"/events", "/channels/a/events", "/channels/users.a/read"} {
		r, w := io.Pipe()
		a := n.do(t, "POST", apiBase+path, io.MultiReader(strings.NewReader("{"), r), "Content-Type", asJSON)
		w.Close()
		a.refused(t, 408)
		k.check(t, "POST", path, "", nil, a)
	}
}

func aPersonMarksWhatIsRead(t *testing.T, k *contract) {
	n := k.node(t, apiSettings())
	ann := []string{"Auth-Token", granted(t, claims{"sub": "ann"})}
	s := n.follow(t, "/@me", ann...)
	var given string
	for i := range 6 {
		id := fmt.Sprintf(`"e%d"`, i)
		if i == 5 {
			id = "null"
		}
		given = n.post(t, "/users.ann", asJSON, fmt.Sprintf(`{"id":%s,"data":"%d"}`, id, i), "Auth-Token", "everything").receipt(t).ID
		s.expect(fmt.Sprint(i))
	}
	n.post(t, "/users.ann", asJSON, `{"id":"a/b","data":"6"}`, "Auth-Token", "everything")
	s.expect("6")
	state := func() string {
		t.Helper()
		p, a := k.page(t, n, "/channels/@me/events", ann...)
		var letters strings.Builder
		for _, e := range p.Events {
			letters.WriteString(map[bool]string{true: "r", false: "u"}[*e.Read])
		}
		read := letters.String()
		var count struct{ Unread int }
		b := k.ok(t, n, "GET", "/channels/users.ann/unread", &count, ann...)
		want := strings.Count(read, "u")
		if p.Channel != "users.ann" || *p.Unread != want || count.Unread != want || a.header.Get("X-Unread-Count") != fmt.Sprint(want) || b.header.Get("X-Unread-Count") != fmt.Sprint(want) {
			t.Errorf("of %s: %d, %v, %v, %v", read, *p.Unread, count, a.header, b.header)
		}
		for status, letter := range map[string]string{"read": "r", "unread": "u", "all": ""} {
			p, _ := k.page(t, n, "/channels/@me/events?status="+status, ann...)
			if len(p.Events) != strings.Count(read, letter) && letter != "" || *p.Unread != want || letter == "" && len(p.Events) != 7 {
				t.Errorf("%s of %s: %+v", status, read, p)
			}
		}
		var e apiEvent
		if k.ok(t, n, "GET", "/channels/@me/events/e0", &e, ann...); *e.Read != (read[0] == 'r') {
			t.Errorf("one of %s: %+v", read, e)
		}
		return read
	}
	if got := state(); got != "uuuuuuu" {
		t.Errorf("at first: %s", got)
	}
	for _, tc := range []struct{ verb, path, body, want, told string }{
		{"PUT", "/events/e1/read", "", "uruuuuu", `{"channel":"users.ann","ids":["e1"],"read":true,"unread":6}`},
		{"PUT", "/events/e1/read", "", "uruuuuu", `{"channel":"users.ann","ids":["e1"],"read":true,"unread":6}`},
		{"PUT", "/events/" + given + "/read", "", "uruuuru", `{"channel":"users.ann","ids":["` + given + `"],"read":true,"unread":5}`},
		{"DELETE", "/events/e1/read", "", "uuuuuru", `{"channel":"users.ann","ids":["e1"],"read":false,"unread":6}`},
		{"PUT", "/read?id=a%2Fb", "", "uuuuurr", `{"channel":"users.ann","ids":["a/b"],"read":true,"unread":5}`},
		{"DELETE", "/read?id=a%2Fb", "", "uuuuuru", `{"channel":"users.ann","ids":["a/b"],"read":false,"unread":6}`},
		{"POST", "/read", `{"id":"e2"}`, "rrruuru", `{"channel":"users.ann","up_to":"e2","read":true,"unread":3}`},
		{"POST", "/read", `{"ids":["e0","e4"],"read":false}`, "urruuru", `{"channel":"users.ann","ids":["e0","e4"],"read":false,"unread":4}`},
		{"POST", "/read", `{"ids":["e3","e4"],"read":true}`, "urrrrru", `{"channel":"users.ann","ids":["e3","e4"],"read":true,"unread":2}`},
		{"POST", "/read", `{"id":"e5"}`, "", ""},
		{"POST", "/read", `{"id":"` + given + `","read":false}`, "uuuuuuu", `{"channel":"users.ann","up_to":"` + given + `","read":false,"unread":7}`},
	} {
		a := k.json(t, n, tc.verb, "/channels/@me"+tc.path, tc.body, ann...)
		if tc.want == "" {
			a.refused(t, 404, "is the id of no event")
			continue
		}
		unread := strings.Count(tc.want, "u")
		if a.body != fmt.Sprintf(`{"unread":%d}`+"\n", unread) || a.header.Get("X-Unread-Count") != fmt.Sprint(unread) {
			t.Errorf("%s %s %s: %d %s %v", tc.verb, tc.path, tc.body, a.status, a.body, a.header)
		}
		if got := state(); got != tc.want {
			t.Errorf("%s %s %s: %s, not %s", tc.verb, tc.path, tc.body, got, tc.want)
		}
		if b := s.event(); b.event != "eventsource.read" || b.data != tc.told || b.hasID {
			t.Errorf("%s %s %s: told as %q", tc.verb, tc.path, tc.body, b.raw)
		}
	}
	// AuthToken marks for anybody, and who follows by wildcard has no marks.
	if a := k.do(t, n, "PUT", "/channels/users.ann/events/e1/read", "", "Auth-Token", "everything"); a.status != 200 {
		t.Errorf("by AuthToken: %d %s", a.status, a.body)
	}
	p, _ := k.page(t, n, "/channels/users.*/events", "Auth-Token", "warden")
	if len(p.Events) != 7 || p.Unread != nil || p.Events[0].Read != nil {
		t.Errorf("of a wildcard: %+v", p)
	}
}

func marksThatCantBeMade(t *testing.T, k *contract) {
	n := k.node(t, nil)
	n.post(t, "/users.ann?id=e1", asText, "x").receipt(t)
	n.post(t, "/news?id=e1", asText, "x").receipt(t)
	mark := n.Stats().Mark
	for _, name := range []string{"news", "users", "all", "users.*", "*"} {
		k.do(t, n, "GET", "/channels/"+name+"/unread", "").refused(t, 404, "users.joe")
		k.do(t, n, "PUT", "/channels/"+name+"/events/e1/read", "").refused(t, 404, "users.joe")
		k.do(t, n, "DELETE", "/channels/"+name+"/events/e1/read", "").refused(t, 404, "users.joe")
		k.do(t, n, "PUT", "/channels/"+name+"/read?id=e1", "").refused(t, 404, "users.joe")
		k.do(t, n, "DELETE", "/channels/"+name+"/read?id=e1", "").refused(t, 404, "users.joe")
		k.json(t, n, "POST", "/channels/"+name+"/read", `{"id":"e1"}`).refused(t, 404, "users.joe")
	}
	k.do(t, n, "GET", "/channels/users.*/events?status=unread", "").refused(t, 404, "users.joe")
	for _, path := range []string{"/events/unknown/read", "/read?id=unknown"} {
		k.do(t, n, "PUT", "/channels/users.ann"+path, "").refused(t, 404, "no event with the id")
		k.do(t, n, "DELETE", "/channels/users.ann"+path, "").refused(t, 404, "no event with the id")
	}
	k.do(t, n, "PUT", "/channels/users.ann/read", "").refused(t, 400, "id: give the id")
	long := `"` + strings.Repeat("x", 256) + `"`
	for body, words := range map[string]string{
		``: "empty", `{`: "at byte", `[]`: "an array", `"e1"`: "a string", `{}`: "give either id", `{"read":true}`: "give either id",
		`{"id":"e1","ids":["e1"]}`: "give either id", `{"ids":[]}`: "at least one", `{"ids":"e1"}`: "give an array", `{"ids":[true]}`: "a boolean",
		`{"ids":["e1"` + strings.Repeat(`,"e1"`, 1000) + `]}`: "more than 1000", `{"id":""}`: "empty", `{"id":null}`: "null", `{"id":` + long + `}`: "255", `{"ids":[` + long + `]}`: "255",
		`{"id":"e1","read":"no"}`: "true or false", `{"id":"e1","read":null}`: "true or false", `{"id":"e1","id":"e1"}`: "twice", `{"idd":"e1"}`: `did you mean \"id\"`,
		`{"ID":"e1"}`: `did you mean \"id\"`, `{"id":"e1","x":1}`: "no member",
	} {
		k.json(t, n, "POST", "/channels/users.ann/read", body).refused(t, 400, words)
	}
	k.json(t, n, "POST", "/channels/users.ann/read", `{"id":"unknown"}`).refused(t, 404)
	k.json(t, n, "POST", "/channels/users.ann/read", `{"ids":["e1","unknown"]}`).refused(t, 404)
	n.publishedNothing(t, "marks that were refused", mark)
	if a := k.do(t, n, "GET", "/channels/users.ann/unread", ""); a.body != `{"unread":1}`+"\n" {
		t.Errorf("after them: %s", a.body)
	}
	var ids []string
	for i := range 1000 {
		ids = append(ids, fmt.Sprintf(`"i%d"`, i))
		n.Publish(t.Context(), "users.bob", eventsource.Event{ID: fmt.Sprintf("i%d", i)})
	}
	big := k.node(t, &eventsource.Settings{History: eventsource.History{Events: 2000}})
	for i := range 1000 {
		big.Publish(t.Context(), "users.bob", eventsource.Event{ID: fmt.Sprintf("i%d", i)})
	}
	if a := k.json(t, big, "POST", "/channels/users.bob/read", `{"ids":[`+strings.Join(ids, ",")+`]}`); a.body != `{"unread":0}`+"\n" {
		t.Errorf("a thousand at once: %s", a.body)
	}
}

func whatIsPrivateStaysSo(t *testing.T, k *contract) {
	n := k.node(t, apiSettings())
	publish := func(names, id string) {
		n.post(t, "/"+names, asJSON, `{"id":"`+id+`","data":"x"}`, "Auth-Token", "everything").receipt(t)
	}
	for i := range 30 {
		for range 7 {
			publish("users.ann", fmt.Sprintf("p%d", i))
		}
		publish("news.today", fmt.Sprintf("n%d", i))
	}
	publish("news.today,users.ann", "both")
	publish("users.ann,users.bob", "private both")
	for _, query := range []string{"?limit=10", "?limit=10&order=desc", "?limit=31", "?limit=3"} {
		all, _ := k.pages(t, n, "/channels/*/events"+query, 40, "Auth-Token", "admin")
		if len(all) != 31 {
			t.Errorf("%s: an administrator has %d events of *", query, len(all))
		}
		for _, e := range all {
			if strings.HasPrefix(e.ID, "p") || !slices.Equal(e.Channels, []string{"news.today"}) {
				t.Errorf("%s: an administrator has %+v", query, e)
			}
		}
	}
	if p, _ := k.page(t, n, "/channels/*/events?limit=31", "Auth-Token", "admin"); len(p.Events) != 31 || p.More {
		t.Errorf("there seem to be more than %d events", len(p.Events))
	}
	for _, path := range []string{"/channels/*/events/p1", "/channels/*/events?id=private+both"} {
		k.do(t, n, "GET", path, "", "Auth-Token", "admin").refused(t, 404)
	}
	// Nor does it learn which ids there are.
	k.do(t, n, "GET", "/channels/*/events?after=p1", "", "Auth-Token", "admin").refused(t, 404, "no event that is known")
	if p, _ := k.page(t, n, "/channels/*/events?after=n28", "Auth-Token", "admin"); len(p.Events) != 2 {
		t.Errorf("after an id that an administrator knows: %+v", p)
	}
	publish("news.today", "p3") // which a private one has, too
	var own apiEvent
	if k.ok(t, n, "GET", "/channels/*/events/p3", &own, "Auth-Token", "admin"); !slices.Equal(own.Channels, []string{"news.today"}) {
		t.Errorf("of an id that a private one has, too: %+v", own)
	}
	for token, known := range map[string]bool{"admin": false, "warden": true, "everything": true} {
		a := k.do(t, n, "GET", "/channels/users.ann", "", "Auth-Token", token)
		if a.status != 200 || strings.Contains(a.body, `"oldest":{"id":"p0"`) != known || !known && !strings.Contains(a.body, `"events":212,"oldest":null,"newest":null`) {
			t.Errorf("%s is told %s", token, a.body)
		}
	}
	for _, token := range []string{"everything", "warden"} {
		if all, _ := k.pages(t, n, "/channels/*/events?limit=200", 3, "Auth-Token", token); len(all) != 243 {
			t.Errorf("%s has %d events of *", token, len(all))
		}
	}
	var e apiEvent
	if k.ok(t, n, "GET", "/channels/news.today/events/both", &e, "Auth-Token", "reader"); !slices.Equal(e.Channels, []string{"news.today"}) {
		t.Errorf("of an event to a person, too, a reader is told %+v", e)
	}
	if k.ok(t, n, "GET", "/channels/@me/events/both", &e, "Auth-Token", granted(t, claims{"sub": "ann"})); !slices.Equal(e.Channels, []string{"users.ann"}) {
		t.Errorf("of an event to others, too, the person is told %+v", e)
	}
}

func consumersAreShownAndDisconnected(t *testing.T, k *contract) {
	n := k.node(t, apiSettings())
	admin := []string{"Auth-Token", "admin"}
	before := time.Now()
	streams := []*stream{n.follow(t, "/open,news.today", "Auth-Token", "everything"), n.follow(t, "/open"), n.follow(t, "/@me", "Auth-Token", granted(t, claims{"sub": "ann"})),
		n.follow(t, "/open,users.ann", "Auth-Token", "everything"), n.follow(t, "/news.*", "Auth-Token", "reader")}
	eventually(t, "all are connected", func() bool { return n.ConsumerCountAll() == 5 })
	type list struct {
		Consumers []eventsource.Consumer
		More      bool
	}
	ask := func(path string, header ...string) list {
		t.Helper()
		var l list
		k.ok(t, n, "GET", path, &l, append(header, admin...)...)
		return l
	}
	open := ask("/channels/open/consumers")
	if len(open.Consumers) != 3 || open.More || !slices.Equal(open.Consumers[0].Channels, []string{"open", "news.today"}) || !slices.Equal(open.Consumers[2].Channels, []string{"open"}) {
		t.Fatalf("who follows it: %+v", open)
	}
	for _, c := range open.Consumers {
		if c.Connected.Before(before.Add(-time.Second)) || c.Connected.After(time.Now().Add(time.Second)) || c.Behind != 0 || len(c.Position) != 36 {
			t.Errorf("%+v", c)
		}
	}
	var ids []string
	path := "/channels/all/consumers?limit=2"
	for {
		l := ask(path)
		for _, c := range l.Consumers {
			ids = append(ids, c.ID)
		}
		if !l.More {
			break
		}
		path = "/channels/all/consumers?limit=2&after=" + ids[len(ids)-1]
	}
	if slices.Sort(ids); len(ids) != 5 || len(slices.Compact(ids)) != 5 {
		t.Errorf("all of them: %v", ids)
	}
	if l := ask("/channels/users.ann/consumers"); len(l.Consumers) != 2 || l.Consumers[0].Subject != "ann" || !slices.Equal(l.Consumers[0].Channels, []string{"users.ann"}) {
		t.Errorf("of a person: %+v", l)
	}
	if l := ask("/channels/news.*/consumers"); len(l.Consumers) != 1 {
		t.Errorf("by wildcard: %+v", l)
	}
	if l := ask("/channels/nothing/consumers"); l.Consumers == nil || len(l.Consumers) != 0 || l.More {
		t.Errorf("of nothing: %+v", l)
	}
	var one eventsource.Consumer
	id := open.Consumers[0].ID
	if k.ok(t, n, "GET", "/channels/open/consumers/"+id, &one, admin...); one.ID != id {
		t.Errorf("one of them: %+v", one)
	}
	for _, path := range []string{"/channels/other/consumers/" + id, "/channels/open/consumers/0", "/channels/open/consumers/x", "/channels/open/consumers/" + strings.ToUpper(id) + "0"} {
		k.do(t, n, "GET", path, "", admin...).refused(t, 404, "no consumer")
		k.do(t, n, "DELETE", path, "", admin...).refused(t, 404, "no consumer")
	}
	if a := k.do(t, n, "DELETE", "/channels/open/consumers/"+id, "", admin...); a.body != `{"disconnected":1}`+"\n" {
		t.Errorf("DELETE: %d %s", a.status, a.body)
	}
	if data, _ := streams[0].ended(); data != `{"reason":"closed"}` {
		t.Errorf("it ended with %q", data)
	}
	eventually(t, "it has gone", func() bool { return n.ConsumerCountAll() == 4 })
	k.do(t, n, "GET", "/channels/open/consumers/"+id, "", admin...).refused(t, 404)
	n.post(t, "/open", asText, "still", "Auth-Token", "everything")
	streams[1].expect("still")
	for _, query := range []string{"limit=0", "limit=1001", "limit=x"} {
		k.do(t, n, "GET", "/channels/open/consumers?"+query, "", admin...).refused(t, 400, "limit")
	}
}

func theNodeTellsOfItself(t *testing.T, k *contract) {
	n := k.node(t, &eventsource.Settings{Sources: []eventsource.Source{&hook{}}})
	n.follow(t, "/news")
	n.post(t, "/news", asText, "x").receipt(t)
	n.do(t, "GET", "/..", nil).refused(t, 404)
	var st eventsource.Stats
	k.ok(t, n, "GET", "/stats", &st)
	if st.Consumers != 1 || st.Published != 1 || st.Refusals[404] != 1 || !st.Available || st.Started.IsZero() {
		t.Errorf("%+v", st)
	}
	var nodes struct {
		Nodes []struct {
			Node, Status, Version string
			Started               time.Time
			Consumers, Channels   int
			Mark                  uint64
		}
	}
	k.ok(t, n, "GET", "/nodes", &nodes)
	if len(nodes.Nodes) != 1 || nodes.Nodes[0].Status != "ok" || nodes.Nodes[0].Node == "" || nodes.Nodes[0].Consumers != 1 || nodes.Nodes[0].Channels != 1 || nodes.Nodes[0].Mark != 1 ||
		!nodes.Nodes[0].Started.Equal(st.Started) {
		t.Errorf("%+v", nodes)
	}
	name := nodes.Nodes[0].Node
	k.ok(t, k.node(t, nil), "GET", "/nodes", &nodes)
	if nodes.Nodes[0].Node == name {
		t.Errorf("two nodes have the name %s", name)
	}
}

func limitsCountHereToo(t *testing.T, k *contract) {
	n := k.node(t, &eventsource.Settings{Limits: eventsource.Limits{PublishesPerSecond: 0.001, ConnectsPerSecond: 0.001}})
	k.json(t, n, "POST", "/channels/users.ann/events", `{"id":"e1","data":"x"}`).receipt(t)
	for _, path := range []string{"/channels/users.ann/events", "/events"} {
		body := `{"data":"x"}`
		if path == "/events" {
			body = `{"channels":["a"],"data":"x"}`
		}
		k.json(t, n, "POST", path, body).refused(t, 429, "publishes a second")
	}
	k.json(t, n, "POST", "/channels/a/events", `{"dta":"x"}`).refused(t, 400)
	k.do(t, n, "GET", "/channels/users.ann/events", "")
	for _, path := range []string{"/events", "/events?id=e1", "/events/e1", "/unread"} {
		k.do(t, n, "GET", "/channels/users.ann"+path, "").refused(t, 429, "connects a second")
	}
	few := k.node(t, &eventsource.Settings{Limits: eventsource.Limits{Channels: 1}})
	k.json(t, few, "POST", "/events", `{"channels":["a"],"data":"x"}`).receipt(t)
	k.json(t, few, "POST", "/events", `{"channels":["b"],"data":"x"}`).refused(t, 503, "channels exist")
	k.json(t, few, "POST", "/channels/b/events", `{"data":"x"}`).refused(t, 503, "channels exist")
	// A token that is refused counts for its address.
	guessing := k.node(t, &eventsource.Settings{AuthToken: "s", Limits: eventsource.Limits{ConnectsPerSecond: 0.001}})
	k.do(t, guessing, "GET", "/stats", "", "Auth-Token", "a").refused(t, 401)
	k.do(t, guessing, "GET", "/stats", "", "Auth-Token", "b").refused(t, 429)
}

func aServerThatDrainsChangesNothing(t *testing.T, k *contract) {
	s, err := eventsource.Open(k.settings(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Publish(t.Context(), "users.ann", eventsource.Event{ID: "e1"}); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	for _, op := range eventsource.APIOperations() {
		path, body := requestOf(op)
		a := k.serve(t, s, op[0], path, body, "Content-Type", asJSON, "Accept", "text/event-stream")
		switch {
		case strings.Contains(op[1], "/consumers/"):
			a.refused(t, 404)
		case op[0] == "GET" && a.status != 200 && (a.status != 503 || !k.sqlite): // whose file is closed
			t.Errorf("%v: %d %s", op, a.status, a.body)
		case op[0] != "GET":
			if a.refused(t, 503, "come back later"); a.header.Get("Retry-After") == "" {
				t.Errorf("%v: there is no Retry-After", op)
			}
		}
	}
}

func pagesOfOtherOrigins(t *testing.T, k *contract) {
	const page = "https://a.example"
	n := k.node(t, &eventsource.Settings{AuthToken: "s", CorsAllowOrigin: page, CorsAllowMethod: []string{"GET", "PUT"}})
	n.post(t, "/users.ann?id=e1", asText, "x", "Auth-Token", "s").receipt(t)
	a := k.do(t, n, "GET", "/channels/users.ann/events", "", "Origin", page, "Auth-Token", "s")
	exposed := strings.ToLower(a.header.Get("Access-Control-Expose-Headers"))
	for _, name := range []string{"x-unread-count", "etag", "link", "retry-after"} {
		if !strings.Contains(exposed, name) {
			t.Errorf("%s is not exposed: %s", name, exposed)
		}
	}
	if a.header.Get("Access-Control-Allow-Origin") != page {
		t.Errorf("%v", a.header)
	}
	pre := n.do(t, "OPTIONS", apiBase+"/channels/users.ann/events/e1/read", nil, "Origin", page, "Access-Control-Request-Method", "PUT")
	if pre.header.Get("Access-Control-Allow-Methods") != "PUT" {
		t.Errorf("a preflight: %d %v", pre.status, pre.header)
	}
	if a := k.do(t, n, "PUT", "/channels/users.ann/events/e1/read", "", "Origin", page, "Sec-Fetch-Site", "cross-site", "Auth-Token", "s"); a.status != 200 {
		t.Errorf("with the token in a header: %d %s", a.status, a.body)
	}
	for _, header := range [][]string{
		{"Origin", page, "Sec-Fetch-Site", "cross-site", "Cookie", "eventsource_token=s"},
		{"Origin", "https://other.example", "Sec-Fetch-Site", "cross-site", "Auth-Token", "s"},
	} {
		if a := k.do(t, n, "PUT", "/channels/users.ann/events/e1/read", "", header...); a.status != 401 && a.status != 403 {
			t.Errorf("%v: %d %s", header, a.status, a.body)
		}
		if a := k.do(t, n, "DELETE", "/channels/users.ann", "", header...); a.status != 401 && a.status != 403 {
			t.Errorf("%v: %d %s", header, a.status, a.body)
		}
	}
	if a := k.do(t, n, "GET", "/channels/users.ann/unread", "", "Cookie", "eventsource_token=s"); a.status != 200 {
		t.Errorf("with the cookie from the same origin: %d %s", a.status, a.body)
	}
}

// Whatever is asked of the API, it answers, never with 500, and every refusal is a
// problem document and leaves everything as it was.
func FuzzAPI(f *testing.F) {
	for _, op := range eventsource.APIOperations() {
		path, body := requestOf(op)
		path, query, _ := strings.Cut(path, "?")
		f.Add(op[0], path, query, asJSON, body)
	}
	for _, seed := range [][5]string{
		{"GET", "/channels", "limit=3&page=2&prefix=u", "", ""},
		{"GET", "/channels/*/events", "after=e1&before=e2&order=desc&event=a,message", "", ""},
		{"GET", "/channels/users.ann/events", "status=unread&limit=1", "", ""},
		{"GET", "/channels/a%2fb/events/%2e%2e", "id=%00", "", ""},
		{"POST", "/channels/users.ann/read", "", asJSON, `{"ids":["e1",2],"read":false}`},
		{"POST", "/events", "", asJSON, `{"channels":["all","a"],"data":{"a":[null]},"ttl":0}`},
		{"POST", "/channels/a/events", "raw=1&answers=errors", asLines, "{\"data\":1}\n{"},
		{"GET", "/channels/\xff/events", "%zz;", "", ""},
		{"GET", "//", "?", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4])
	}
	s := fuzzServer(f)
	s.Publish(context.Background(), "users.ann", eventsource.Event{ID: "e1"}, eventsource.Event{Data: "x"})
	h := s.Handler()
	f.Fuzz(func(t *testing.T, method, path, query, contentType, body string) {
		if !validMethod(method) {
			return
		}
		u := &url.URL{Path: apiBase + path, RawQuery: query}
		if unescaped, err := url.PathUnescape(path); err == nil {
			u.Path, u.RawPath = apiBase+unescaped, apiBase+path
		}
		r := httptest.NewRequestWithContext(t.Context(), method, "/", strings.NewReader(body))
		r.URL = u
		r.Header["Content-Type"] = []string{contentType}
		before := s.Stats().Mark
		w := fullDuplex{httptest.NewRecorder()}
		h.ServeHTTP(w, r)
		checkAnswer(t, method, path, answer{w.Code, w.Header(), w.Body.String()})
		if w.Code < 200 || w.Code >= 305 && w.Code < 400 || w.Code >= 500 && w.Code != 503 {
			t.Errorf("answered %d: %s", w.Code, w.Body)
		}
		if w.Code >= 400 && s.Stats().Mark != before {
			t.Errorf("it was refused with %d, and published", w.Code)
		}
		if w.Code == 200 && w.Header().Get("Content-Type") == asJSON && method != http.MethodHead && !json.Valid(w.Body.Bytes()) {
			t.Errorf("the answer is no JSON: %s", w.Body)
		}
	})
}

func validMethod(method string) bool {
	return method != "" && !strings.ContainsFunc(method, func(r rune) bool { return r < 'A' || r > 'Z' })
}
