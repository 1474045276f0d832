//go:build unix

package main

import (
	"context"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/railsmechanic/eventsource/internal/browsertest"
)

// Every command of docs/notifications.md is run as it stands there, but for the port
// and where the program is, and prints what the page says; its script runs in a
// browser, on a page of the server's origin with Ada's cookie.
func TestThePageOnNotificationsIsTrue(t *testing.T) {
	needs(t, "curl")
	page, err := os.ReadFile("../../docs/notifications.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(freePorts(t, 1)[0])
	here := strings.NewReplacer("go build -o eventsource ./cmd/eventsource", "ln -s "+program+" eventsource", "8080", port)
	s := openShell(t, t.TempDir(), "RUN_AS_EVENTSOURCE=1", "EVENTSOURCE_PORT="+port)

	printed, blocks := "", 0
	var browser context.Context
	for _, block := range regexp.MustCompile("(?ms)^```(sh|text|js)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		kind, text := block[1], block[2]
		blocks++
		switch kind {
		case "text":
			checkPrinted(t, text, printed)
			continue
		case "js":
			_, token, _ := strings.Cut(strings.TrimSpace(s.run(`echo "$ADA"`)), "Bearer ")
			browser = browsertest.Show(t, "http://localhost:"+port)
			cookie := "document.cookie = `eventsource_token=" + token + "`; undefined"
			if err := chromedp.Do(browser, chromedp.Evaluate[chromedp.Void](cookie), chromedp.Evaluate[chromedp.Void](text+"; undefined")); err != nil {
				t.Fatal(err)
			}
			titled(t, browser, "0 unread")
			continue
		}
		printed = s.run(here.Replace(text))
		if browser != nil && strings.Contains(text, "curl") {
			titled(t, browser, map[bool]string{true: "0 unread", false: "1 unread"}[strings.Contains(text, "PUT")])
		}
	}
	if browser == nil || blocks < 40 {
		t.Fatalf("%d blocks are few, or there is no script", blocks)
	}
	body := ""
	if err := poll(browser, "document.body.innerText", &body, "One more thing"); err != nil {
		t.Errorf("the page shows %q: %v", body, err)
	}
}

// titled waits until a page has a title.
func titled(t *testing.T, browser context.Context, want string) {
	t.Helper()
	title := ""
	if err := poll(browser, "document.title", &title, want); err != nil {
		t.Fatalf("the title is %q: %v", title, err)
	}
}
