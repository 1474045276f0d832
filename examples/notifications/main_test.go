package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/browsertest"
)

var people = []string{"Ada", "Grace", "Joan", "Linus"}

// running is the program while it runs.
type running struct {
	*application
	address string
	stop    func()
}

// start starts the program over a file. Before it listens, first is called.
func start(t *testing.T, file, address string, first func(*application)) *running {
	t.Helper()
	a, err := open(file, []byte("a secret of this test, and of no other"), people)
	if err != nil {
		t.Fatal(err)
	}
	if first != nil {
		first(a)
	}
	l, err := net.Listen("tcp", address)
	for range 50 {
		if err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond) // until the port is free
		l, err = net.Listen("tcp", address)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.serve(ctx, l) }()
	stopped := false
	r := &running{a, l.Addr().String(), func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}}
	t.Cleanup(r.stop)
	return r
}

// notify publishes to people as the program does, and returns the id.
func (a *application) notify(t *testing.T, title string, channels string) string {
	t.Helper()
	receipt, err := a.es.Publish(t.Context(), channels, eventsource.Event{Type: "comment", Data: fmt.Sprintf(`{"from":"Joan","title":%q}`, title)})
	if err != nil {
		t.Fatal(err)
	}
	return receipt.IDs[0]
}

// A tab shows the page to a person.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// logIn has a browser of its own log in.
func logIn(t *testing.T, r *running, name string) tab {
	t.Helper()
	p := tab{t, browsertest.Show(t, "http://"+r.address)}
	p.do(click(`button[value="` + name + `"]`))
	p.sees("the state", `document.getElementById("state")?.textContent`, "Live")
	return p
}

// another opens the page in a second tab of the same browser.
func (p tab) another(r *running) tab {
	p.t.Helper()
	ctx, cancel := chromedp.NewContext(p.ctx)
	p.t.Cleanup(cancel)
	other := tab{p.t, ctx}
	if err := chromedp.Do(ctx); err != nil { // opens it, for as long as ctx lasts
		p.t.Fatal(err)
	}
	other.do(chromedp.Navigate("http://" + r.address))
	other.sees("the state", `document.getElementById("state")?.textContent`, "Live")
	return other
}

func (p tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 15*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

func click(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.Click(chromedp.CSS(selector))
}

func enter(selector, text string) chromedp.Action[chromedp.Void] {
	return chromedp.SendKeys(chromedp.CSS(selector), text)
}

// sees waits until an expression has a value.
func (p tab) sees(what, expression string, want any) {
	p.t.Helper()
	var got string
	for range 100 {
		ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
		value, err := chromedp.Run(ctx, chromedp.Evaluate[string]("String("+expression+")"))
		cancel()
		if err == nil && value == fmt.Sprint(want) {
			return
		}
		if got = value; err != nil {
			got = err.Error()
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.t.Fatalf("%s is %q, not %q", what, got, fmt.Sprint(want))
}

// counts waits until the bell says n.
func (p tab) counts(n int) {
	p.t.Helper()
	p.sees("the count", `document.getElementById("badge").hidden ? 0 : document.getElementById("badge").textContent`, n)
	p.sees("the title", `document.title`, map[bool]string{true: "Notifications", false: fmt.Sprintf("(%d) Notifications", n)}[n == 0])
}

// lists waits until the list has these titles, newest first, the unread ones with
// a star.
func (p tab) lists(titles string) {
	p.t.Helper()
	p.sees("the list", `[...document.querySelectorAll("#list > li")].map((li) =>
		li.querySelector(".title").lastElementChild.textContent + (li.dataset.read === "true" ? "" : "*")).join(" ")`, titles)
}

func TestNotificationsReachEveryTabOfAPersonAndNobodyElse(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "notifications.db"), "127.0.0.1:0", nil)
	one := logIn(t, r, "Ada")
	two := one.another(r)
	grace := logIn(t, r, "Grace")
	one.counts(0)

	// Grace sends by the form, to Ada alone.
	grace.do(click(`label:has([value=Ada])`), click(`label:has([value=mention])`),
		enter(`input[name=title]`, "first"), enter(`textarea[name=text]`, "Have you seen it?"), click(`#send button`))
	grace.sees("what became of it", `document.getElementById("sent").textContent`, "Sent to Ada.")
	for _, p := range []tab{one, two} {
		p.counts(1)
		p.lists("first*")
		p.sees("the sender", `document.querySelector("#list .from").textContent`, "Grace, mention")
	}
	grace.lists("")

	// What is read in one tab is read in the other, which is not loaded again.
	two.do(chromedp.Evaluate[chromedp.Void](`window.sameAsBefore = true; undefined`))
	one.do(click(`#list > li .mark`))
	for _, p := range []tab{one, two} {
		p.counts(0)
		p.lists("first")
	}
	one.do(click(`#list > li .mark`)) // and unread again
	two.counts(1)
	two.lists("first*")
	two.sees("the tab", "window.sameAsBefore", true)

	// To everybody: each marks it for themselves.
	grace.do(click(`label:has(#everybody)`), enter(`input[name=title]`, "second"), click(`#send button`))
	grace.sees("what became of it", `document.getElementById("sent").textContent`, "Sent to everybody.")
	grace.counts(1)
	two.lists("second* first*")
	two.do(click(`#all-read`))
	for _, p := range []tab{one, two} {
		p.counts(0)
		p.lists("second first")
	}
	grace.counts(1)
	grace.lists("second*")
}

func TestARestartInTheMiddleLosesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "notifications.db")
	r := start(t, file, "127.0.0.1:0", nil)
	r.notify(t, "old", "users.Ada")
	one := logIn(t, r, "Ada")
	two := one.another(r)
	grace := logIn(t, r, "Grace")
	one.counts(1)
	one.do(chromedp.Evaluate[chromedp.Void](`window.sameAsBefore = true; undefined`))

	r.stop()
	one.sees("the state", `document.getElementById("state").textContent`, "Reconnecting")
	one.sees("the banner", `document.getElementById("banner").hidden`, false)
	again := start(t, file, r.address, func(a *application) {
		a.notify(t, "missed", "users.Ada")
		a.notify(t, "both", "users.Ada,users.Grace")
	})
	for _, p := range []tab{one, two} {
		p.counts(3)
		p.lists("both* missed* old*")
	}
	one.sees("the banner", `document.getElementById("banner-says").textContent`, "Back again. 2 came meanwhile.")
	grace.counts(1)
	grace.lists("both*")
	again.notify(t, "after", "users.Ada")
	one.counts(4)
	one.sees("the tab", "window.sameAsBefore", true)

	// Marks are in the file, too, and one that is made while the tabs are away reaches
	// them when they are back.
	two.do(click(`#list > li:nth-child(2) .mark`))
	one.lists("after* both missed* old*")
	one.counts(3)
	again.stop()
	one.sees("the state", `document.getElementById("state").textContent`, "Reconnecting")
	start(t, file, r.address, func(a *application) {
		page, err := a.es.Read(t.Context(), eventsource.Query{Channel: "users.Ada", Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		missed := page.Events[1]
		if _, err := a.es.Mark(t.Context(), "users.Ada", eventsource.Marks{UpTo: missed.Seq, UpToID: missed.ID}); err != nil {
			t.Fatal(err)
		}
	})
	for _, p := range []tab{one, two} {
		p.counts(1)
		p.lists("after* both missed old")
	}
	grace.counts(1)
}

func TestEarlierOnesComeAPageAtATime(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "notifications.db"), "127.0.0.1:0", nil)
	all := ""
	for i := range 45 {
		title := fmt.Sprintf("n%d", i)
		r.notify(t, title, "users.Ada")
		if all = title + "* " + all; i == 44 {
			all = all[:len(all)-1]
		}
	}
	p := logIn(t, r, "Ada")
	p.counts(45)
	items := `document.querySelectorAll("#list > li").length`
	for _, n := range []int{20, 40, 45} {
		p.sees("the number shown", items, n)
		p.sees("whether there are earlier ones", `!document.getElementById("foot").hidden`, n < 45)
		if n < 45 {
			p.do(click(`#earlier`))
		}
	}
	p.lists(all)
	p.do(click(`#list > li:nth-child(2)`))
	p.counts(44)
	p.do(click(`button[data-status=unread]`))
	p.sees("the number shown", items, 20)
	p.sees("the second", `document.querySelector("#list > li:nth-child(2) .title").lastElementChild.textContent`, "n42")
}

func TestThePageFitsATelephoneAndAKeyboard(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "notifications.db"), "127.0.0.1:0", nil)
	for _, title := range []string{"first", "https://example.org/" + strings.Repeat("a", 100), "third"} {
		r.notify(t, title, "users.Ada")
	}
	p := logIn(t, r, "Ada")
	p.counts(3)
	for _, width := range []int64{360, 768, 1280} {
		p.do(chromedp.EmulateViewport(width, 700))
		p.sees(fmt.Sprintf("what is beyond %d pixels", width), `Math.max(0, document.documentElement.scrollWidth - innerWidth)`, 0)
	}
	// The bell leads to the newest that is unread, and a key marks it; the focus stays.
	p.do(chromedp.Focus(chromedp.CSS("#bell")), chromedp.KeyEvent("\r"))
	p.sees("the focus", `document.activeElement.getAttribute("aria-label")`, "Mark as read: third")
	p.do(chromedp.KeyEvent("\r"))
	p.counts(2)
	p.sees("the focus", `document.activeElement.getAttribute("aria-label")`, "Mark as unread: third")
	r.notify(t, "fourth", "users.Ada")
	p.counts(3)
	p.sees("what is told", `document.getElementById("told").textContent`, "New: fourth, from Joan, comment")
	p.sees("the focus", `document.activeElement.getAttribute("aria-label")`, "Mark as unread: third")
}

// The tabs of a browser have one cookie.
func TestATabOfWhoHasLoggedOutElsewhereShowsNothingMoreOfIt(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "notifications.db"), "127.0.0.1:0", nil)
	r.notify(t, "for Ada", "users.Ada")
	one := logIn(t, r, "Ada")
	one.counts(1)
	two := one.another(r)
	two.do(click(`form[action="/logout"] button`), click(`button[value="Grace"]`))
	two.sees("who it is", `document.querySelector(".me b")?.textContent`, "Grace")
	two.lists("")
	one.do(click(`#list > li .mark`))
	one.sees("who it is", `document.querySelector(".me b")?.textContent`, "Grace")
	one.lists("")
	r.notify(t, "for Grace", "users.Grace")
	for _, p := range []tab{one, two} {
		p.lists("for Grace*")
	}
	if n, err := r.es.Count(t.Context(), eventsource.Query{Channel: "users.Ada", Status: eventsource.Unread}); err != nil || n != 1 {
		t.Errorf("%d of Ada's are unread: %v", n, err)
	}
}
