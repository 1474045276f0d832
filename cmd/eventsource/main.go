// Command eventsource serves events to browsers and programs over Server-Sent
// Events, publishes them and follows them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// What a run ends with.
const (
	statusOK     = 0
	statusFailed = 1 // it was asked for rightly and could not be done
	statusUsage  = 2 // the command line or the configuration is wrong
)

// A Main is one run of the program. What the process has, tests can replace.
type Main struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Env is the environment, as os.Environ has it.
	Env []string
	// Files are the configuration files that are read, if they are there, when
	// --config names none; a later one wins.
	Files []string

	started bool // the command line was understood
}

func main() {
	m := &Main{
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		Env:    os.Environ(),
		Files:  []string{"/etc/eventsource/config.yml"},
	}
	if program, err := os.Executable(); err == nil {
		m.Files = append(m.Files, filepath.Join(filepath.Dir(program), "config.yml"))
	}
	os.Exit(m.Run(context.Background(), os.Args[1:]))
}

// Run does what the arguments say until it is done or ctx ends, and returns the
// exit status.
func (m *Main) Run(ctx context.Context, args []string) int {
	root := m.root()
	root.SetArgs(shownBy(args))
	root.SetIn(m.Stdin)
	root.SetOut(m.Stdout)
	root.SetErr(m.Stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return statusOK
	case errors.Is(err, errReported):
		return statusFailed
	}
	fmt.Fprintln(m.Stderr, "eventsource:", err)
	if !m.started {
		fmt.Fprintln(m.Stderr, "Try: eventsource --help")
		return statusUsage
	}
	if _, ok := errors.AsType[*configError](err); ok {
		return statusUsage
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return statusUsage
	}
	return statusFailed
}

// shownBy returns the arguments with which the command config does what a last -c asks
// for: eventsourced prints its set-up so. Before a FILE it names that.
func shownBy(args []string) []string {
	last := len(args) - 1
	if last < 0 || args[last] != "-c" || !strings.HasPrefix(args[0], "-") {
		return args
	}
	return append([]string{"config"}, args[:last]...)
}

// A usageError is something wrong with the command line that a command finds
// itself.
type usageError struct{ error }

// errReported says that the user has been told already.
var errReported = errors.New("reported")

func (m *Main) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "eventsource",
		Short: "Push events to browsers and programs over Server-Sent Events",
		Long: `EventSource pushes events to browsers and programs over Server-Sent Events.

Without a command it serves, as "eventsource serve" does.

The exit status is 0; 1 when what was asked for could not be done; 2 when the
command line or the configuration is wrong.`,
		Example: `  eventsource                                   # serve on http://localhost:8080
  eventsource subscribe updates                 # follow a channel
  eventsource publish updates 'hello, world'    # publish to it
  curl -N http://localhost:8080/updates         # the same without this program
  curl http://localhost:8080/updates -d data=hello`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			m.started = true
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return m.serve(cmd) },
	}
	settingsFlags(root)
	root.AddCommand(
		m.serveCommand(),
		m.publishCommand(),
		m.subscribeCommand(),
		m.channelsCommand(),
		m.backupCommand(),
		m.tokenCommand(),
		m.keysCommand(),
		m.configCommand(),
		m.healthcheckCommand(),
		m.versionCommand(),
	)
	return root
}

// getenv returns the value of an environment variable, empty when it is not
// set.
func (m *Main) getenv(name string) string {
	value := ""
	for _, pair := range m.Env {
		if k, v, _ := strings.Cut(pair, "="); k == name {
			value = v
		}
	}
	return value
}

// isTerminal reports whether someone reads w, or types what r has, as it comes.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// logger returns what the configuration asks for, and what sets its level.
func (m *Main) logger(c *config) (*slog.Logger, *slog.LevelVar) {
	level := &slog.LevelVar{}
	level.Set(c.level())
	options := &slog.HandlerOptions{Level: level}
	if c.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(m.Stderr, options)), level
	}
	return slog.New(slog.NewTextHandler(m.Stderr, options)), level
}

// redacted returns a URL for people to read, without its user and query, which
// may hold secrets.
func redacted(u *url.URL) string {
	shown := *u
	shown.User, shown.RawQuery, shown.Fragment = nil, "", ""
	return shown.String()
}
