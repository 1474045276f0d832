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

// writingPage tries everything that a page can do to a server of another origin,
// and notes what came of it.
const writingPage = `<!doctype html><title>writes</title><iframe name=sink></iframe><script>
const told = [];
const server = new URLSearchParams(location.search).get('server');
const post = {method: 'POST', body: 'x', headers: {'Content-Type': 'text/plain'}};
const token = {...post, headers: {...post.headers, 'Auth-Token': 's3cret'}};
const attempt = async (name, path, init) => {
	try { const r = await fetch(server + path, init); told.push(name + ' ' + (r.type === 'opaque' ? 'opaque' : r.status)); }
	catch (e) { told.push(name + ' blocked'); }
};
const follow = (name, path, init) => new Promise((done) => {
	const es = new EventSource(server + path, init);
	es.onopen = () => { told.push(name + ' open'); es.close(); done(); };
	es.onerror = () => { told.push(name + ' error'); es.close(); done(); };
});
const submit = (path) => new Promise((done) => {
	const form = document.createElement('form');
	form.method = 'POST'; form.target = 'sink'; form.action = server + path; form.enctype = 'text/plain';
	form.append(Object.assign(document.createElement('input'), {name: 'x', value: 'y'}));
	document.body.append(form);
	document.querySelector('iframe').onload = done;
	form.submit();
});
(async () => {
	await attempt('post-token', '/a', {...token, credentials: 'omit'});
	await attempt('post-cookie', '/b', {...post, credentials: 'include'});
	await attempt('post-simple', '/c', {...post, mode: 'no-cors', credentials: 'include'});
	await attempt('post-nothing', '/d', {...post, credentials: 'omit'});
	await attempt('delete-cookie', '/e', {method: 'DELETE', credentials: 'include'});
	await attempt('delete-token', '/f', {...token, method: 'DELETE', credentials: 'omit'});
	await submit('/g');
	told.push('form sent');
	await follow('follow-cookie', '/h', {withCredentials: true});
	await follow('follow-nothing', '/i', {});
	await follow('follow-query', '/j?access_token=s3cret', {});
	told.push('done');
})();
</script>`

// Pages of two origins, one of which is listed, and the server's own do what a page
// can do, with the cookie that the browser has for all of them.
func TestPagesOfOtherOriginsInABrowser(t *testing.T) {
	origin := func() *httptest.Server {
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			// Cookies are of a host, whatever the port.
			http.SetCookie(w, &http.Cookie{Name: "eventsource_token", Value: "s3cret", Path: "/"})
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprint(w, writingPage)
		}))
		t.Cleanup(h.Close)
		return h
	}
	listed, other := origin(), origin()
	far := strings.Replace(other.URL, "127.0.0.1", "localhost", 1) // of another site, too
	for name, tc := range map[string]struct {
		settings  eventsource.Settings
		page      string
		told      string
		published string // paths
	}{
		"the listed origin": {
			eventsource.Settings{CorsAllowOrigin: listed.URL, CorsAllowMethod: []string{"GET", "POST"}, CorsAllowCredentials: true}, listed.URL,
			"post-token 201; post-cookie 201; post-simple opaque; post-nothing 401; delete-cookie blocked; delete-token blocked; form sent; " +
				"follow-cookie open; follow-nothing error; follow-query open", "a b c g",
		},
		"another origin": {
			eventsource.Settings{CorsAllowOrigin: listed.URL, CorsAllowMethod: []string{"GET", "POST", "DELETE"}, CorsAllowCredentials: true}, other.URL,
			"post-token blocked; post-cookie blocked; post-simple opaque; post-nothing blocked; delete-cookie blocked; delete-token blocked; form sent; " +
				"follow-cookie error; follow-nothing error; follow-query error", "",
		},
		"another site": {
			eventsource.Settings{CorsAllowOrigin: listed.URL, CorsAllowMethod: []string{"GET", "POST", "DELETE"}, CorsAllowCredentials: true}, far,
			"post-token blocked; post-cookie blocked; post-simple opaque; post-nothing blocked; delete-cookie blocked; delete-token blocked; form sent; " +
				"follow-cookie error; follow-nothing error; follow-query error", "",
		},
		"any origin, without credentials": {
			eventsource.Settings{CorsAllowOrigin: "*", CorsAllowMethod: []string{"GET", "POST", "DELETE"}}, other.URL,
			"post-token 201; post-cookie blocked; post-simple opaque; post-nothing 401; delete-cookie blocked; delete-token 200; form sent; " +
				"follow-cookie error; follow-nothing error; follow-query open", "a",
		},
		"CORS off": {
			eventsource.Settings{}, other.URL,
			"post-token blocked; post-cookie blocked; post-simple opaque; post-nothing blocked; delete-cookie blocked; delete-token blocked; form sent; " +
				"follow-cookie error; follow-nothing error; follow-query error", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.settings.AuthToken, tc.settings.Public, tc.settings.Retry = "s3cret", []string{}, time.Second
			n := newNode(t, &tc.settings)
			got := show(t, tc.page+"/?server="+n.url).notes("done")
			if told := strings.Join(got[:len(got)-1], "; "); told != tc.told {
				t.Errorf("the page was told\n%s, not\n%s", told, tc.told)
			}
			channels := slices.DeleteFunc(n.Channels(), func(name string) bool { return name == "h" || name == "j" }) // followed, a moment ago or still
			if published := strings.Join(channels, " "); published != tc.published || n.Stats().Published != uint64(len(channels)) {
				t.Errorf("published was to %q, not to %q", published, tc.published)
			}
		})
	}
}
