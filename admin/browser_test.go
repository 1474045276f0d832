package admin_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/admin"
	"github.com/railsmechanic/eventsource/internal/browsertest"
)

// A page is the status page in a browser.
type page struct {
	t   *testing.T
	ctx context.Context
}

// visit has a browser of its own show a server's page.
func visit(t *testing.T, n *node) page { return page{t, browsertest.Show(t, n.url+"/admin/")} }

// do does something on the page.
func (p page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// says returns the value of an expression.
func (p page) says(expression string) string {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[string]("String("+expression+")"))
	if err != nil {
		return err.Error()
	}
	return value
}

// sees waits until an expression has a value.
func (p page) sees(expression, want string) {
	p.t.Helper()
	got := ""
	if !settled(func() bool { got = p.says(expression); return got == want }) {
		p.t.Fatalf("%s is %q, not %q", expression, got, want)
	}
}

// text is the text of an element that is to be seen.
func text(selector string) string {
	return fmt.Sprintf("((e) => e && e.checkVisibility() ? e.innerText.trim() : '(hidden)')(document.querySelector(%q))", selector)
}

func click(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.Click(chromedp.CSS(selector))
}

func TestThePageShowsWhatHappens(t *testing.T) {
	t.Parallel()
	n := serve(t, &eventsource.Settings{Sources: []eventsource.Source{broken{}}}, &admin.Options{Backend: "memory",
		Upstream: func() []admin.Upstream {
			return []admin.Upstream{{Name: "<b>broker</b>", State: "ok", Since: time.Now(), Numbers: map[string]uint64{"streams_now": 7}}}
		}})
	for i := range 20 {
		defer follow(t, fmt.Sprintf("%s/news.n%02d", n.url, min(i, 17))).close()
	}
	p := visit(t, n)
	p.sees(text("#state"), "Live")
	p.sees(text("#line"), "Not connected: admin_test-1.")
	p.sees(text("#node"), n.Node())
	p.sees(text("#consumers"), "20")
	p.sees(text("#published-all"), "0 in all")
	p.sees(text("#followed tbody"), "news.n17\t3\n"+func() (rows string) {
		for i := range 11 {
			rows += fmt.Sprintf("news.n%02d\t1\n", i)
		}
		return strings.TrimSpace(rows)
	}())
	p.sees(text("#followed-others"), "and 6 more")
	p.do(click("#followed-more"))
	p.sees("document.querySelectorAll('#followed tbody tr').length", "18")
	p.sees(text("#followed-more"), "Show fewer")
	p.sees(text("#followed-others"), "")
	p.sees(text("#latest tbody td"), "news.n17")
	p.sees(text("#rests li:nth-child(2) b"), "admin_test-1")
	p.sees(text("#rests li:nth-child(2) .why"), "nobody listens there")
	p.sees(text("#rests li:nth-child(3) b"), "<b>broker</b>")
	p.sees(text("#rests li:nth-child(3) p"), "Broker · 7 streams now")
	p.sees(text("#counts-none"), "Nothing was refused, and nobody was cut off.")

	for range 30 {
		if _, err := n.Publish(t.Context(), "news.n17", eventsource.Event{Data: "hello"}); err != nil {
			t.Fatal(err)
		}
	}
	get(t, "GET", n.url+"/nothing//here")
	p.sees(text("#published-all"), "30 in all")
	p.sees(text("#delivered-all"), "90 in all")
	p.sees(text("#counts"), "Refused: 404 Not found\n1")
	p.sees("/L/.test(document.querySelector('#spark-published .stroke').getAttribute('d'))", "true")
	p.sees("history.published.some((n) => n > 0)", "true")

	// It loads nothing from elsewhere, and what it loads is allowed.
	p.sees("performance.getEntriesByType('resource').every((r) => r.name.startsWith(location.origin + '/admin/'))", "true")
	p.sees("getComputedStyle(document.body).margin", "0px")
	for _, width := range []int64{360, 800, 1600} {
		p.do(chromedp.EmulateViewport(width, 800))
		p.sees("document.documentElement.scrollWidth <= innerWidth", "true")
	}
}

func TestThePageComesBackAfterARestart(t *testing.T) {
	t.Parallel()
	n := serve(t, nil, nil)
	p := visit(t, n)
	p.sees(text("#state"), "Live")
	eventually(t, "the stream is open", func() bool { return n.Stats().Relayed == 1 })
	p.do(chromedp.Evaluate[chromedp.Void](`window.states = []; new MutationObserver(() => states.push($("state").textContent)).observe($("state"), {childList: true}); undefined`))
	n.stop()
	p.sees(text("#state"), "Disconnected")
	p.sees("states.join(', ')", "Draining, Disconnected")
	p.sees("$('main').hasAttribute('data-stale')", "true")
	if line := p.says(text("#line")); !strings.HasPrefix(line, "The server can’t be reached. Last heard of at ") {
		t.Errorf("the line is %q", line)
	}
	again := serveAt(t, n.address, nil, nil)
	p.sees(text("#state"), "Live")
	p.sees(text("#node"), again.Node())
	p.sees("$('main').hasAttribute('data-stale')", "false")
	if _, err := again.Publish(t.Context(), "news", eventsource.Event{Data: "hello"}); err != nil {
		t.Fatal(err)
	}
	p.sees(text("#published-all"), "1 in all")
}

func TestThePageAsksForAToken(t *testing.T) {
	t.Parallel()
	settings := &eventsource.Settings{AuthToken: "geheim", Keys: []eventsource.Key{{Token: "follower", Subscribe: []string{"*"}}}}
	n := serve(t, settings, nil)
	p := visit(t, n)
	enter := func(token string) {
		p.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf("$('token').value = %q; undefined", token)), click("#ask button"))
	}
	p.sees(text("#ask h2"), "A token, please")
	p.sees(text("#refused"), "")
	p.sees("document.activeElement.id", "token")
	p.sees(text("#line"), "(hidden)")
	enter("wrong")
	p.sees(text("#refused"), "The token is not known: send one that this server was given.")
	enter("follower")
	p.sees(text("#refused"), "This token may not do this: send an administrator's.")
	enter("two words")
	p.sees(text("#refused"), "A cookie can’t hold this token: it has a space, a quote, a semicolon, a backslash or a letter that is not ASCII.")
	enter(strings.Repeat("long", 1200))
	p.sees(text("#refused"), "The browser does not keep this token in a cookie: it is too long, or cookies are off.")
	p.sees("document.cookie", "")
	p.do(chromedp.Evaluate[chromedp.Void]("$('token').value = ''; undefined"), chromedp.SendKeys(chromedp.CSS("#token"), "geheim\r"))
	p.sees(text("#state"), "Live")
	p.sees(text("#ask"), "(hidden)")
	p.sees("document.cookie", "eventsource_token=geheim")
	p.sees("location.search + location.hash", "")
	eventually(t, "the stream is open", func() bool { return n.Stats().Relayed == 1 })

	// A reload of the page has it still, and forgets it when it is told to.
	p.do(chromedp.Reload())
	p.sees(text("#state"), "Live")
	p.do(click("#forget"))
	p.sees(text("#ask h2"), "A token, please")
	p.sees("document.cookie", "")
	eventually(t, "the stream is closed", func() bool { return n.Stats().Relayed == 0 })

	// A token that is taken away is asked for anew.
	enter("geheim")
	p.sees(text("#state"), "Live")
	settings.AuthToken = "another"
	if err := n.Reload(settings); err != nil {
		t.Fatal(err)
	}
	p.sees(text("#refused"), "The token is not known: send one that this server was given.")
	enter("another")
	p.sees(text("#state"), "Live")
}

func TestThePageGoesOnWhereTheStreamIsRefused(t *testing.T) {
	t.Parallel()
	n := serve(t, &eventsource.Settings{Limits: eventsource.Limits{Consumers: 1}}, nil)
	defer follow(t, n.url+"/news").close()
	p := visit(t, n)
	p.sees(text("#state"), "Live")
	p.sees(text("#line"), "The server has no place for another stream, so this page asks every 2 seconds. All is well.")
	if _, err := n.Publish(t.Context(), "news", eventsource.Event{Data: "hello"}); err != nil {
		t.Fatal(err)
	}
	p.sees(text("#published-all"), "1 in all")
}
