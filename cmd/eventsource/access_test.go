//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/railsmechanic/eventsource/internal/browsertest"
	"github.com/railsmechanic/eventsource/internal/check"
)

// A shell runs the commands of a page of the documentation, one block after the
// other.
type shell struct {
	t      *testing.T
	stdin  io.Writer
	blocks int
	output check.Log
}

// openShell starts a shell in a directory, which ends with the test, and with it what
// it has started.
func openShell(t *testing.T, dir string, env ...string) *shell {
	t.Helper()
	bash := exec.Command("bash", "-eu")
	bash.Dir = dir
	bash.Env = append(bareEnvironment(), env...)
	bash.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s := &shell{t: t}
	bash.Stdout, bash.Stderr = &s.output, &s.output
	var err error
	if s.stdin, err = bash.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := bash.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-bash.Process.Pid, syscall.SIGKILL)
		bash.Wait()
	})
	return s
}

// run runs a block and returns what it prints.
func (s *shell) run(block string) string {
	s.t.Helper()
	s.blocks++
	end := fmt.Sprintf("@@ end of block %d @@\n", s.blocks)
	begin := len(s.output.String())
	fmt.Fprintf(s.stdin, "%s\nprintf '%s'\n", block, strings.ReplaceAll(end, "\n", "\\n"))
	for range 600 {
		printed := s.output.String()[begin:]
		if before, _, ok := strings.Cut(printed, end); ok {
			return before
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatalf("a block does not end:\n%s\nprinted so far:\n%s", block, s.output.String()[begin:])
	return ""
}

// follow runs the blocks of a page's text, with the names that are here, and checks what
// they print. It returns how many blocks there are.
func (s *shell) follow(page string, here *strings.Replacer) int {
	s.t.Helper()
	blocks := regexp.MustCompile("(?ms)^```(sh|text)\n(.*?)^```$").FindAllStringSubmatch(page, -1)
	printed := ""
	for _, block := range blocks {
		if text := here.Replace(block[2]); block[1] == "text" {
			checkPrinted(s.t, text, printed)
		} else {
			printed = s.run(text)
		}
	}
	return len(blocks)
}

// migration returns the chapter of docs/migrating.md on where somebody comes from.
func migration(t *testing.T, from string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/migrating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, found := strings.Cut(string(page), "\n## From "+from+"\n")
	if !found {
		t.Fatal("there is no chapter on " + from)
	}
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	return chapter
}

// Every command of docs/access.md is run as it stands there, but for ports and where
// the programs are, and prints what the page says; and a browser follows the private
// channel with its cookie.
func TestThePageOnAccessIsTrue(t *testing.T) {
	page, err := os.ReadFile("../../docs/access.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	application := filepath.Join(dir, "application")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", application, "../../examples/private").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ports := freePorts(t, 2)
	server, login := strconv.Itoa(ports[0]), strconv.Itoa(ports[1])
	here := strings.NewReplacer(
		"go build -o eventsource ./cmd/eventsource", "ln -s "+program+" eventsource",
		"go build -o private ./examples/private", "ln -s "+application+" private",
		"./private", "./private -listen localhost:8081 -events http://localhost:8080",
		"8080", server, "8081", login)
	here2 := strings.NewReplacer("8080", server, "8081", login)

	s := openShell(t, dir, "RUN_AS_EVENTSOURCE=1", "EVENTSOURCE_PORT="+server)
	printed := ""
	var browser context.Context
	for _, block := range regexp.MustCompile("(?ms)^```(sh|text)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		kind, text := block[1], block[2]
		if kind == "text" {
			checkPrinted(t, here2.Replace(text), printed)
			continue
		}
		if strings.Contains(text, "hello, joe") {
			browser = logIn(t, "http://localhost:"+login)
		}
		printed = s.run(here2.Replace(here.Replace(text)))
	}
	if browser == nil {
		t.Fatal("the page says nothing of a browser")
	}
	seen := ""
	if err := poll(browser, `document.getElementById("list").innerText`, &seen, "hello, joe"); err != nil {
		t.Errorf("the page shows %q: %v", seen, err)
	}
}

// checkPrinted fails the test unless printed has each line of want, in order; "…"
// stands for anything.
func checkPrinted(t *testing.T, want, printed string) {
	t.Helper()
	rest := printed
	for line := range strings.Lines(want) {
		line = strings.TrimRight(line, "\n")
		found := regexp.MustCompile(strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*")).FindStringIndex(rest)
		if found == nil {
			t.Errorf("the page says that\n%s\nis printed, where there is only\n%s", line, printed)
			return
		}
		rest = rest[found[1]:]
	}
}

// logIn has a browser log in as joe and waits until the page is connected.
func logIn(t *testing.T, url string) context.Context {
	t.Helper()
	ctx := browsertest.Show(t, url)
	if err := chromedp.Do(ctx, chromedp.SendKeys(`input[name=name]`, "joe\r")); err != nil {
		t.Fatal(err)
	}
	state := ""
	if err := poll(ctx, `document.getElementById("state")?.textContent ?? ""`, &state, "connected"); err != nil {
		t.Fatalf("the page is %q: %v", state, err)
	}
	return ctx
}

// poll waits until what an expression gives holds want.
func poll(ctx context.Context, expression string, got *string, want string) (err error) {
	for range 100 {
		if *got, err = chromedp.Run(ctx, chromedp.Evaluate[string](expression)); err == nil && strings.Contains(*got, want) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err == nil {
		err = fmt.Errorf("it never had %q", want)
	}
	return err
}
