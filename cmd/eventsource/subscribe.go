package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/tmaxmax/go-sse"
)

// A subscription is what a subscribe command was asked for.
type subscription struct {
	channels []string
	lastID   string
	history  int
	events   []string
	count    int
	verbose  bool
	json     bool
	quiet    bool

	given func(flag string) bool
}

func (m *Main) subscribeCommand() *cobra.Command {
	s := &subscription{}
	cmd := &cobra.Command{
		Use:   "subscribe CHANNEL...",
		Short: "Follow channels and print their events as they come",
		Long: `Follow one or more channels, or all below a name (news.*), and print the data of each
event as it comes. A connection that breaks is made again, from the last event on, until
the program is interrupted; what the server no longer keeps is told on standard error.
A refusal that won't pass ends it with status 1.`,
		Example: `  eventsource subscribe updates
  eventsource subscribe news 'pets.*' --verbose
  eventsource subscribe updates --history 10 --count 10 --json | jq .data`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := m.remote(cmd)
			if err != nil {
				return err
			}
			s.channels, s.given = args, cmd.Flags().Changed
			if err := s.check(); err != nil {
				return usageError{err}
			}
			return m.subscribe(cmd.Context(), c, s)
		},
	}
	remoteFlags(cmd)
	f := cmd.Flags()
	f.IntVar(&s.history, "history", 0, "begin with the last `N` events that are kept")
	f.StringVar(&s.lastID, "last-event-id", "", "begin after the event with this `ID`")
	f.StringSliceVarP(&s.events, "event", "e", nil, "print events of this `TYPE` only; several joined by commas, \"message\" is the untyped")
	f.IntVarP(&s.count, "count", "n", 0, "end after `N` events")
	f.BoolVarP(&s.verbose, "verbose", "v", false, "print time, channel, type and id, too")
	f.BoolVar(&s.json, "json", false, "print a JSON object a line: channel, id, event, data, time")
	f.BoolVarP(&s.quiet, "quiet", "q", false, "don't tell of reconnecting")
	return cmd
}

func (s *subscription) check() error {
	switch {
	case s.history < 0:
		return errors.New("--history is negative: give how many events to begin with")
	case s.given("count") && s.count < 1:
		return errors.New("--count must be at least 1: leave it out to follow without end")
	case s.verbose && s.json:
		return errors.New("--verbose and --json exclude each other: give one of them")
	case slices.Contains(s.channels, ""):
		return errors.New("a channel's name is empty: give one such as updates")
	}
	return nil
}

// query asks for envelopes, in which an event with empty data differs from a
// block that only moves the last id.
func (s *subscription) query() url.Values {
	q := url.Values{"envelope": {"1"}}
	if s.history > 0 {
		q.Set("history", strconv.Itoa(s.history))
	}
	if s.lastID != "" {
		q.Set("last_event_id", s.lastID)
	}
	if len(s.events) > 0 {
		q.Set("event", strings.Join(s.events, ","))
	}
	return q
}

// An envelope is what the server puts around an event.
type envelope struct {
	Channel string `json:"channel"`
	ID      string `json:"id"`
	Event   string `json:"event"`
	Data    string `json:"data"`
	Time    string `json:"time"`
}

// errEnough ends a subscription that has seen as many events as it was to.
var errEnough = errors.New("enough")

// subscribe prints events until there are enough, ctx ends or the server
// refuses.
func (m *Main) subscribe(ctx context.Context, c *remote, s *subscription) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := c.follow(ctx, s.channels, s.query())
	if err != nil {
		return err
	}
	var ended error // why no more is printed
	seen := 0
	end := func(why error) {
		ended = why
		cancel()
	}
	streams := *c.http
	streams.Transport = streamTransport{}
	sseClient := &sse.Client{
		HTTPClient: &streams,
		Backoff:    sse.Backoff{InitialInterval: time.Second, Multiplier: 2, Jitter: 0.1, MaxInterval: 30 * time.Second},
		ResponseValidator: func(res *http.Response) error {
			if res.StatusCode != 200 {
				return c.refusal(res)
			}
			return sse.DefaultValidator(res)
		},
		OnRetry: func(err error, wait time.Duration) {
			switch {
			case untrusted(err):
				end(c.unreachable(err))
			case !s.quiet:
				fmt.Fprintf(m.Stderr, "%s; trying again in %v\n", lost(c, err), wait.Round(time.Millisecond))
			}
		},
	}
	connection := sseClient.NewConnection(r)
	connection.Buffer(nil, math.MaxInt32)
	connection.SubscribeToAll(func(e sse.Event) {
		if ended != nil {
			return // what came in the same read as the last one
		}
		switch printed, err := m.printEvent(e, s); {
		case err != nil:
			end(err)
		case printed:
			if seen++; seen == s.count {
				end(errEnough)
			}
		}
	})
	err = connection.Connect()
	switch {
	case errors.Is(ended, errEnough):
		return nil
	case ended != nil:
		return ended
	case ctx.Err() != nil:
		return nil
	}
	if failed, ok := errors.AsType[*sse.ConnectionError](err); ok {
		return failed.Err
	}
	return err
}

// printEvent prints what came, and reports whether it was an event of a
// channel.
func (m *Main) printEvent(e sse.Event, s *subscription) (bool, error) {
	switch {
	case e.Type == "eventsource.gap":
		return false, m.printGap(e.Data)
	case e.Type == "eventsource.end":
		var ended struct {
			Reason string `json:"reason"`
		}
		if json.Unmarshal([]byte(e.Data), &ended) == nil && !s.quiet {
			fmt.Fprintf(m.Stderr, "The server ended the stream: %s.\n", ended.Reason)
		}
		return false, nil
	case strings.HasPrefix(e.Type, "eventsource.") || e.Data == "":
		return false, nil
	}
	var v envelope
	if err := json.Unmarshal([]byte(e.Data), &v); err != nil {
		return false, fmt.Errorf("what came is no envelope, so this is no EventSource server: %w", err)
	}
	var err error
	switch {
	case s.json:
		_, err = io.WriteString(m.Stdout, e.Data+"\n")
	case s.verbose:
		_, err = io.WriteString(m.Stdout, v.readable())
	default:
		_, err = io.WriteString(m.Stdout, v.Data+"\n")
	}
	if err != nil {
		return false, fmt.Errorf("print an event: %w", err)
	}
	return true, nil
}

// readable returns the event for a person to read.
func (v *envelope) readable() string {
	at := v.Time
	if t, err := time.Parse(time.RFC3339Nano, v.Time); err == nil {
		at = t.Local().Format("15:04:05.000")
	}
	kind := v.Event
	if kind == "" {
		kind = "message"
	}
	return fmt.Sprintf("%s %s %s %s\n  %s\n", at, v.Channel, kind, v.ID, strings.ReplaceAll(v.Data, "\n", "\n  "))
}

// printGap says that events are missing, whatever is asked for.
func (m *Main) printGap(data string) error {
	var gap struct{ Requested, Oldest *string }
	if err := json.Unmarshal([]byte(data), &gap); err != nil {
		return fmt.Errorf("read a gap: %w", err)
	}
	said := "Events are missing: the server lost some"
	if gap.Requested != nil {
		said = "Events are missing: the server does not keep all that came after " + *gap.Requested
	}
	if gap.Oldest != nil {
		said += "; the oldest that it keeps is " + *gap.Oldest
	}
	_, err := fmt.Fprintln(m.Stderr, said+".")
	return err
}

// lost says in a few words why a connection has to be made again.
func lost(c *remote, err error) string {
	failed, ok := errors.AsType[*sse.ConnectionError](err)
	switch {
	case !ok:
		return err.Error()
	case errors.Is(failed.Err, io.EOF) || errors.Is(failed.Err, io.ErrUnexpectedEOF):
		return "The stream ended"
	}
	if p, ok := errors.AsType[*passing](failed.Err); ok {
		return "The server answered " + p.answer
	}
	return "C" + c.unreachable(failed.Err).Error()[1:]
}

// A streamTransport makes of an answer what go-sse's client needs to lose
// nothing: it takes every status but 200 for final, and an event that was cut
// off at the end of the body for a whole one.
type streamTransport struct{}

// A passing is an answer after which a repeat may succeed: a status, or what a
// stream that ended at once gave as its reason.
type passing struct{ answer string }

func (p *passing) Error() string { return "the server answered " + p.answer }

// RoundTrip returns an error for what will pass.
func (streamTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusRequestTimeout {
		res.Body.Close()
		return nil, &passing{res.Status}
	}
	switch {
	case res.StatusCode != http.StatusOK:
	case res.ContentLength > 0 && res.ContentLength <= 4<<10:
		// No stream has a length: it is a refusal, with the time to come back.
		res.Body = &refused{ReadCloser: res.Body}
	default:
		res.Body = &wholeEvents{ReadCloser: res.Body}
	}
	return res, nil
}

// A refused is a stream that ends with the reason that its comment gives.
type refused struct {
	io.ReadCloser
	text []byte
}

// Read reads what came.
func (r *refused) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.text = append(r.text, p[:n]...)
	if err == io.EOF {
		for line := range strings.Lines(string(r.text)) {
			if reason, ok := strings.CutPrefix(strings.TrimSpace(line), ": "); ok {
				return n, &passing{strconv.Quote(reason)}
			}
		}
	}
	return n, err
}

// A wholeEvents ends a stream that stops within an event with an error, so that
// what is there of the event is dropped (WHATWG HTML 9.2.6).
type wholeEvents struct {
	io.ReadCloser
	tail [2]byte // the last bytes
	some bool    // there were any
}

// Read reads what came.
func (w *wholeEvents) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	for _, b := range p[max(0, n-2):n] {
		w.tail[0], w.tail[1] = w.tail[1], b
		w.some = true
	}
	if err == io.EOF && w.some && w.tail != [2]byte{'\n', '\n'} {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
