//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// What differs from run to run: ids, times, tags and the node's name.
var (
	varies     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{13}\b|"[0-9a-f]{32}"`)
	times      = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	nodeNames  = regexp.MustCompile(`"node":"[^"]+"`)
	apiCommand = regexp.MustCompile(`(?m)^\$ ((?:.*\\\n)*.*)\n((?:(?:[^$\n].*)?\n)*)`)
)

// Every command of the chapter on the API in docs/api.md is run as it stands there, but
// for the port, and answered as it says there, but for ids and times.
func TestThePageOnTheAPIIsTrue(t *testing.T) {
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, ok := strings.Cut(string(text), "\n## The management API\n")
	if !ok {
		t.Fatal("the page has no chapter on the API")
	}
	srv := serving(t, nil, "-c", write(t, "config.yml", ""), "--port", "0")
	dir := t.TempDir()
	// A terminal would not show the progress of curl in an answer either.
	if err := os.WriteFile(filepath.Join(dir, ".curlrc"), []byte("silent\nshow-error\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	bash := exec.Command("bash", "-u")
	bash.Dir = dir
	bash.Env = append(bareEnvironment(), "CURL_HOME="+dir)
	bash.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s := &shell{t: t}
	bash.Stdout, bash.Stderr = &s.output, &s.output
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

	address := strings.TrimPrefix(srv.url, "http://")
	here := map[string]string{} // the ids of the page, as they are in this run
	commands := 0
	for _, block := range regexp.MustCompile("(?ms)^```console\n(.*?)^```$").FindAllStringSubmatch(chapter, -1) {
		for _, m := range apiCommand.FindAllStringSubmatch(block[1], -1) {
			command, want := m[1], strings.TrimSpace(m[2])
			commands++
			for said, is := range here {
				command = strings.ReplaceAll(command, said, is)
			}
			printed := s.run(strings.ReplaceAll(command, "localhost:8080", address))
			printed = strings.ReplaceAll(strings.ReplaceAll(printed, "\r", ""), address, "localhost:8080")
			switch {
			case strings.HasSuffix(command, "&"):
				followed(t, srv.url+"/news", 1)
				continue
			case strings.Contains(command, " -X DELETE ") && strings.Contains(command, "/consumers/"):
				followed(t, srv.url+"/news", 0)
			case strings.Contains(command, " -i "):
				printed = regexp.MustCompile(`(?m)^(Date|Content-Length): .*\n`).ReplaceAllString(printed, "")
			}
			said, is := varies.FindAllString(want, -1), varies.FindAllString(printed, -1)
			for i := range min(len(said), len(is)) {
				here[said[i]] = is[i]
			}
			if got, want := same(printed), same(want); got != want {
				t.Errorf("the page says that\n%s\nis answered with\n%s\nwhere it is\n%s", command, want, got)
			}
		}
	}
	if commands < 30 {
		t.Errorf("there were %d commands only", commands)
	}
}

// same returns what stays the same from run to run.
func same(answer string) string {
	answer = varies.ReplaceAllString(strings.TrimSpace(answer), "ID")
	answer = times.ReplaceAllString(answer, "TIME")
	return nodeNames.ReplaceAllString(answer, `"node":"NAME"`)
}
