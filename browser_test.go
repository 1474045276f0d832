package eventsource_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/browsertest"
)

// followingPage follows what its query names and notes what its EventSource
// tells it.
const followingPage = `<!doctype html><title>follows</title><script>
const told = [];
const es = new EventSource(new URLSearchParams(location.search).get('follow'));
es.onopen = () => told.push('open');
es.onmessage = (e) => told.push('message ' + e.lastEventId + ' ' + e.data);
es.onerror = () => told.push('error ' + es.readyState);
for (const type of ['goal', 'eventsource.gap', 'eventsource.end'])
	es.addEventListener(type, (e) => told.push(type + ' ' + e.data));
</script>`

// A page is one in headless Chromium, on an origin that is not the server's.
type page struct {
	t   *testing.T
	ctx context.Context
}

// browse has a page of its own browser follow a stream.
func browse(t *testing.T, stream string) *page {
	t.Helper()
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, followingPage)
	}))
	t.Cleanup(origin.Close)
	return show(t, origin.URL+"/?follow="+stream)
}

// show shows a page in a browser of its own.
func show(t *testing.T, url string) *page { return &page{t, browsertest.Show(t, url)} }

// told returns what the page has noted.
func (p *page) told() []string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	told, err := chromedp.Run(ctx, chromedp.Evaluate[[]string]("told"))
	if err != nil {
		p.t.Fatal(err)
	}
	return told
}

// notes waits until the page has noted want, in that order and besides others,
// and returns all notes.
func (p *page) notes(want ...string) []string {
	p.t.Helper()
	var told []string
	if !settled(func() bool {
		told = p.told()
		at := 0
		for _, note := range told {
			if at < len(want) && strings.HasPrefix(note, want[at]) {
				at++
			}
		}
		return at == len(want)
	}) {
		p.t.Fatalf("the page was told %q, not %q", told, want)
	}
	return told
}

// events returns what is no opening and no error among notes.
func events(notes []string) string {
	var events []string
	for _, n := range notes {
		if n != "open" && !strings.HasPrefix(n, "error ") {
			events = append(events, n)
		}
	}
	return strings.Join(events, "; ")
}

// anyOrigin are settings for pages of other origins that come back fast.
func anyOrigin() *eventsource.Settings {
	return &eventsource.Settings{CorsAllowOrigin: "*", Retry: 100 * time.Millisecond}
}

func TestABrowserOnAPageOfAnotherOriginReceives(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, anyOrigin())
		p := browse(t, n.url+"/news")
		p.notes("open")
		n.post(t, "/news", "application/json", `{"id":"7","data":"héllo\n  wörld"}`)
		n.post(t, "/news", "application/json", `{"event":"goal","data":{"by":"us"}}`)
		n.post(t, "/all", "application/json", `{"id":"9","data":""}`)
		n.post(t, "/all", "application/json", `{"id":"10","data":"last"}`)
		got := events(p.notes("message 10"))
		if want := "message 7 héllo\n  wörld; goal {\"by\":\"us\"}; message 9 ; message 10 last"; got != want {
			t.Errorf("the page was told %q, not %q", got, want)
		}
	})
}

func TestABrowserThatIsCutOffBeforeItsFirstEventMissesNone(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		n := path.node(t, anyOrigin())
		n.post(t, "/news", "text/plain", "before it came")
		proxy := newCutter(t, n.addr, 0)
		p := browse(t, "http://"+proxy.Addr().String()+"/news")
		p.notes("open")
		// Nobody comes through until all of this has been published.
		proxy.refuse(true)
		proxy.cut()
		eventually(t, "it has been cut off", func() bool { return n.ConsumerCountAll() == 0 })
		for i := range 3 {
			n.post(t, "/news", "text/plain", fmt.Sprintf("while it was away %d", i))
		}
		proxy.refuse(false)
		p.notes("error 0", "open", "message")
		n.post(t, "/news?id=last", "text/plain", "last")
		got := p.notes("message last last")
		var data []string
		for _, note := range got {
			if rest, ok := strings.CutPrefix(note, "message "); ok {
				_, d, _ := strings.Cut(rest, " ")
				data = append(data, d)
			}
		}
		if want := "while it was away 0; while it was away 1; while it was away 2; last"; strings.Join(data, "; ") != want {
			t.Errorf("the page was told %q", got)
		}
		if strings.Contains(events(got), "gap") {
			t.Errorf("the page was told of a gap: %q", got)
		}
	})
}

func TestABrowserComesBackAfterARestartAndIsToldOfTheGap(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		serve := func(address string, first func(*eventsource.Server)) (s *eventsource.Server, addr string, stop func()) {
			t.Helper()
			s, err := eventsource.Open(path.settings(anyOrigin()))
			if err != nil {
				t.Fatal(err)
			}
			first(s)
			var l net.Listener
			eventually(t, "the port is free", func() bool { l, err = net.Listen("tcp", address); return err == nil })
			served := make(chan error, 1)
			go func() { served <- s.Serve(l) }()
			stopped := false
			stop = func() {
				if stopped {
					return
				}
				stopped = true
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				if err := s.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				<-served
			}
			t.Cleanup(stop)
			return s, l.Addr().String(), stop
		}
		publish := func(s *eventsource.Server, data string) string {
			t.Helper()
			receipt, err := s.Publish(t.Context(), "news", eventsource.Event{Data: data})
			if err != nil {
				t.Fatal(err)
			}
			return receipt.IDs[0]
		}
		s, address, stop := serve("127.0.0.1:0", func(*eventsource.Server) {})
		p := browse(t, "http://"+address+"/news")
		p.notes("open")
		id, oldest := publish(s, "before"), ""
		p.notes("message " + id)
		stop()
		serve(address, func(s *eventsource.Server) { oldest = publish(s, "after") })
		p.notes("message "+id+" before", `eventsource.end {"reason":"draining"}`, "error 0", "open",
			fmt.Sprintf(`eventsource.gap {"requested":%q,"oldest":%q}`, id, oldest), "message "+oldest+" after")
	})
}

func TestABrowserComesBackAfterAPassingRefusal(t *testing.T) {
	onEach(t, paths, func(t *testing.T, path servingPath) {
		settings := anyOrigin()
		settings.Limits.Consumers = 1
		n := path.node(t, settings)
		place := n.follow(t, "/news")
		p := browse(t, n.url+"/news")
		p.notes("open", "error 0") // refused by a stream that ends at once
		if refused := n.Stats().Refusals[http.StatusServiceUnavailable]; refused == 0 {
			t.Error("nobody was refused")
		}
		place.close()
		eventually(t, "the page has the place", func() bool { return n.Stats().Connects == 2 })
		n.post(t, "/news?id=1", "text/plain", "there is room now")
		if got := events(p.notes("message 1")); got != "message 1 there is room now" {
			t.Errorf("the page was told %q", got)
		}
	})
}

func TestABrowserStaysAwayAfterA401(t *testing.T) {
	settings := anyOrigin()
	settings.AuthToken, settings.Public = "secret", []string{}
	n := newNode(t, settings)
	p := browse(t, n.url+"/news")
	if got := p.notes("error 2"); len(got) != 1 { // CLOSED
		t.Errorf("the page was told %q", got)
	}
	if refused := n.Stats().Refusals[http.StatusUnauthorized]; refused != 1 {
		t.Errorf("it came %d times", refused)
	}
	with := browse(t, n.url+"/news%3Faccess_token=secret")
	with.notes("open")
	if refused := n.Stats().Refusals[http.StatusUnauthorized]; refused != 1 {
		t.Errorf("it came back: %d refusals", refused)
	}
}
