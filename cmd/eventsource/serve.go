package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/admin"
	"github.com/railsmechanic/eventsource/queue"
)

func (m *Main) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve events; also what runs without a command",
		Long: `Serve events until SIGTERM or SIGINT, then let publishes under way complete within
"drain" and tell consumers when to come back. A second signal ends it at once.

SIGHUP has it read the configuration again: keys, JWTs, limits, CORS, certificates.

Settings come from /etc/eventsource/config.yml, then config.yml beside the program (or
--config FILE in place of both), then EVENTSOURCE_* variables (two underscores nest:
EVENTSOURCE_HISTORY__EVENTS), then flags; the later one wins.`,
		Example: `  eventsource serve
  eventsource serve --port 0                    # any free port; it is printed
  eventsource serve -c /etc/events.yml --log-level debug
  EVENTSOURCE_AUTH_TOKEN=secret eventsource serve --host 0.0.0.0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return m.serve(cmd) },
	}
	settingsFlags(cmd)
	return cmd
}

// serve runs a server until it is told to stop.
func (m *Main) serve(cmd *cobra.Command) error {
	c, err := m.configure(cmd.Flags())
	if err != nil {
		return err
	}
	log, level := m.logger(c)
	c.settings.Logger = log
	if c.settings.Backend, err = c.openBackend(log); err != nil {
		return err
	}
	sets := newKeySets(log)
	defer sets.close()
	if err := sets.open(c); err != nil {
		return err
	}
	prepare, err := c.speakTLS(log)
	if err != nil {
		return err
	}

	// From here on, a signal finds who listens for it.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	first, operators, err := listen(c)
	if err != nil {
		return err
	}
	srv, err := eventsource.Open(&c.settings)
	if err != nil {
		return err
	}

	queues, err := c.openQueues(srv, log)
	if err != nil {
		return err
	}
	if queues != nil {
		defer queues.Close()
	}

	pages := &operations{server: srv, queues: queues, admin: statusPages(srv, c, queues)}
	served := make(chan error, 2)
	if operators != nil {
		go func() { served <- pages.serve(operators, c.settings.Timeout, log) }()
	} else {
		pages.addTo(srv)
	}
	go func() { served <- srv.Serve(first) }()
	go prepare()
	log.Info("listening", "address", first.Addr().String(), "descriptors", descriptorLimit())
	if operators != nil {
		log.Info("listening for operators", "address", operators.Addr().String())
	}
	if tcp, ok := first.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && !c.asks() {
		log.Warn("nobody is asked for a token: whoever reaches this address may publish to every channel and follow every one; set auth_token, keys or jwt")
	}
	m.announce(c, first.Addr())

	r := &reloading{main: m, flags: cmd.Flags(), server: srv, started: c, now: c, sets: sets, level: level, log: log}
	err = m.wait(cmd.Context(), signals, served, r)
	if err != nil {
		return errors.Join(err, shutdown(srv, c))
	}
	return m.drain(srv, c, pages, signals, log)
}

// wait returns nil when the server is told to stop, or why it serves no more.
func (m *Main) wait(ctx context.Context, signals <-chan os.Signal, served <-chan error, r *reloading) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return err
		case s := <-signals:
			if s != syscall.SIGHUP {
				r.log.Info("stopping", "signal", s.String())
				return nil
			}
			r.reload()
		}
	}
}

// drain shuts the server down, at once when another signal comes.
func (m *Main) drain(srv *eventsource.Server, c *config, pages *operations, signals <-chan os.Signal, log *slog.Logger) error {
	done := make(chan error, 1)
	go func() { done <- shutdown(srv, c) }()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				continue
			}
			log.Warn("stopped at once", "signal", s.String())
			return errReported
		case err := <-done:
			pages.close()
			if err != nil {
				log.Error("the server did not shut down cleanly", "drain", c.settings.Drain.String(), "error", err)
				return errReported
			}
			log.Info("stopped")
			return nil
		}
	}
}

// shutdown ends the server within the time that is set for it.
func shutdown(srv *eventsource.Server, c *config) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), c.settings.Drain,
		fmt.Errorf("%v have passed (drain)", c.settings.Drain))
	defer cancel()
	return srv.Shutdown(ctx)
}

// listen opens the address of the server, and of the operators where it is
// another.
func listen(c *config) (first, operators net.Listener, err error) {
	first, err = net.Listen("tcp", c.address())
	if err != nil {
		return nil, nil, listenError(c.address(), "another --host and --port, or --port 0 for any free one", err)
	}
	if c.operations == "" {
		return first, nil, nil
	}
	operators, err = net.Listen("tcp", c.operations)
	if err != nil {
		first.Close()
		return nil, nil, listenError(c.operations, "another address as operations", err)
	}
	return first, operators, nil
}

// listenError says what to do when an address can't be had.
func listenError(address, instead string, err error) error {
	_, port, _ := net.SplitHostPort(address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("can't listen on %s: another program listens there; stop it, or give %s", address, instead)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("can't listen on %s: port %s needs a privilege that this user does not have; give %s", address, port, instead)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("can't listen on %s: it is no address of this machine; give one that is, or 0.0.0.0 for all of them", address)
	}
	return fmt.Errorf("can't listen on %s: %w; give %s", address, err, instead)
}

// announce says where the server listens, and to a person how to try it.
func (m *Main) announce(c *config, addr net.Addr) {
	url := urlOf(c.tls.scheme(), addr)
	fmt.Fprintf(m.Stdout, "Listening on %s\n", url)
	if !isTerminal(m.Stdout) {
		return
	}
	fmt.Fprint(m.Stdout, tryLines(c, url))
}

// tryLines are the two lines that try the server.
func tryLines(c *config, url string) string {
	channel := url + strings.TrimRight(c.settings.BasePath, "/") + "/updates"
	token := ""
	if c.asks() {
		token = " -H 'Auth-Token: TOKEN'"
	}
	follow := token
	if slices.Contains(c.settings.Public, "*") || slices.Contains(c.settings.Public, "updates") {
		follow = ""
	}
	return fmt.Sprintf(`
Follow a channel in one terminal, publish to it in another:

  curl -N%s %s
  curl%s %s -d 'data=hello, world'

`, follow, channel, token, channel)
}

// urlOf returns how a program on this machine reaches a listener.
func urlOf(scheme string, addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return scheme + "://" + addr.String()
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() || tcp.IP.Equal(net.IPv4(127, 0, 0, 1)) {
		host = "localhost"
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// An operations serves the pages of who runs the server.
type operations struct {
	server *eventsource.Server
	queues *queue.Queues // nil: there are none
	admin  *admin.Pages
	second http.Server
}

// addTo adds the pages to the first address.
func (o *operations) addTo(srv *eventsource.Server) {
	for path, page := range o.pages() {
		srv.Handle(path, page)
	}
	o.admin.AddTo()
}

// statusPages returns the status page of a server.
func statusPages(srv *eventsource.Server, c *config, queues *queue.Queues) *admin.Pages {
	b := readBuild()
	kind, _, _ := strings.Cut(c.backend, ":") // and nothing of its URL, which may hold a password
	options := &admin.Options{
		Build:    admin.Build{Version: b.Version, Commit: b.Commit, Go: b.Go},
		Backend:  kind,
		BasePath: strings.TrimRight(c.settings.BasePath, "/"),
	}
	if queues != nil {
		options.Upstream = func() []admin.Upstream { return upstream(queues) }
	}
	return admin.New(srv, options)
}

// pages returns the pages by their paths.
func (o *operations) pages() map[string]http.Handler {
	return map[string]http.Handler{
		"/metrics":    readOnly(metricsPage(o.server, o.queues)),
		"/debug/vars": readOnly(varsPage(o.server, o.queues)),
	}
}

// serve serves the pages, and health, on an address of their own, which asks
// for no token.
func (o *operations) serve(l net.Listener, timeout time.Duration, log *slog.Logger) error {
	mux := http.NewServeMux()
	for path, page := range o.pages() {
		mux.Handle(path, page)
	}
	health := o.server.Handler()
	mux.Handle("/admin", o.admin.Handler())
	mux.Handle("/admin/", o.admin.Handler())
	mux.Handle("/health", health)
	mux.Handle("/health/", health)
	mux.Handle("/", problem(http.StatusNotFound, "nothing is here: there are /health, /admin/, /metrics and /debug/vars; channels are on the first address"))
	o.second.Handler = mux
	o.second.ReadHeaderTimeout = timeout
	o.second.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	err := o.second.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return fmt.Errorf("operations: %w", err)
}

// close ends the second address, once the streams there have got their end.
func (o *operations) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := o.second.Shutdown(ctx); err != nil {
		o.second.Close()
	}
}

// readOnly serves a page to GET and HEAD, and has nobody keep or guess it.
func readOnly(page http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			problem(http.StatusMethodNotAllowed, r.Method+" is not possible here: use GET or HEAD").ServeHTTP(w, r)
			return
		}
		page.ServeHTTP(w, r)
	})
}

func problem(status int, detail string) *eventsource.Problem {
	return &eventsource.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}
