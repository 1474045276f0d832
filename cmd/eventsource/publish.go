package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource/client"
)

const (
	textType  = "text/plain; charset=utf-8"
	linesType = "application/x-ndjson"
)

// A publication is what a publish command was asked for.
type publication struct {
	channel     string
	event       string
	id          string
	retry       time.Duration
	ttl         time.Duration
	key         string
	contentType string
	raw         bool
	lines       bool
	quiet       bool
	json        bool

	given func(flag string) bool
}

func (m *Main) publishCommand() *cobra.Command {
	p := &publication{}
	cmd := &cobra.Command{
		Use:   "publish CHANNEL [DATA]",
		Short: "Publish an event, or each line of the standard input",
		Long: `Publish an event to a channel, or to several joined by commas; "all" reaches every
consumer. Without DATA, or with "-", the data is the standard input, as it is.

It prints the event's id, with --json the server's whole answer.`,
		Example: `  eventsource publish updates 'hello, world'
  eventsource publish news,sport 'goal!' --event score --id 42
  eventsource publish updates - < page.html
  tail -f access.log | eventsource publish logs --lines
  eventsource publish updates '{"a": 1}' --raw    # refused unless it is JSON
  eventsource publish updates '[{"data": "a"}, {"data": "b"}]' --content-type application/json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := m.remote(cmd)
			if err != nil {
				return err
			}
			p.channel, p.given = args[0], cmd.Flags().Changed
			if p.channel == "" {
				return usageError{errors.New("the channel's name is empty: give one such as updates")}
			}
			if err := p.check(len(args) == 2 && args[1] != "-"); err != nil {
				return usageError{err}
			}
			if p.lines {
				return m.publishLines(cmd.Context(), c, p)
			}
			data := m.Stdin
			if len(args) == 2 && args[1] != "-" {
				data = strings.NewReader(args[1])
			}
			return m.publish(cmd.Context(), c, p, data)
		},
	}
	remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&p.event, "event", "e", "", "the event's `TYPE`")
	f.StringVar(&p.id, "id", "", "the event's `ID`, in place of one that the server gives")
	f.DurationVar(&p.retry, "retry", 0, "tell consumers to wait for `DURATION` before they reconnect")
	f.DurationVar(&p.ttl, "ttl", 0, "keep the event for `DURATION` at most")
	f.StringVar(&p.key, "idempotency-key", "", "publish nothing if the server has seen this `KEY` in the last 5 minutes")
	f.BoolVar(&p.lines, "lines", false, "publish each line of the standard input as it comes")
	f.BoolVar(&p.raw, "raw", false, "have the server check that the data is JSON; it is sent as it is")
	f.StringVar(&p.contentType, "content-type", "", "send the data with this `TYPE`: application/json is an event or an array of them,\nwith --lines application/x-ndjson an event a line; application/cloudevents+json, ...")
	f.BoolVarP(&p.quiet, "quiet", "q", false, "print nothing but what went wrong")
	f.BoolVar(&p.json, "json", false, "print the server's answer as JSON")
	return cmd
}

// check reports flags that say nothing together.
func (p *publication) check(hasData bool) error {
	fields := ""
	for _, name := range []string{"event", "id", "retry", "ttl"} {
		if p.given(name) {
			fields = "--" + name
		}
	}
	switch {
	case p.given("id") && p.id == "":
		return errors.New("--id is empty: leave it out and the server gives one")
	case p.lines && hasData:
		return errors.New("--lines reads the standard input: leave DATA out")
	case p.lines && p.key != "":
		return errors.New("--idempotency-key is for one publish: leave it or --lines out")
	case p.lines && p.given("id"):
		return errors.New("--id would be the same for each line: leave it or --lines out")
	case p.lines && p.raw:
		return errors.New("--raw is for one document: leave it or --lines out")
	case p.lines && p.contentType != "" && p.contentType != linesType:
		return fmt.Errorf("--lines sends %s only", linesType)
	case p.raw && p.contentType != "":
		return errors.New("--raw sends application/json: leave --content-type out")
	case fields != "" && p.contentType != "" && !strings.HasPrefix(p.contentType, "text/"):
		return fmt.Errorf("%s: with --content-type %s the data says this itself", fields, p.contentType)
	case p.given("retry") && p.retry < 0 || p.given("ttl") && p.ttl < 0:
		return errors.New("--retry and --ttl can't be negative: give a duration such as 5s")
	}
	return nil
}

// query is what the body can't say itself.
func (p *publication) query() url.Values {
	q := url.Values{}
	for _, field := range []struct{ flag, value string }{
		{"event", p.event},
		{"id", p.id},
		{"retry", strconv.FormatInt(p.retry.Milliseconds(), 10)},
		{"ttl", strconv.FormatInt(p.ttl.Milliseconds(), 10)},
	} {
		if p.given(field.flag) {
			q.Set(field.flag, field.value)
		}
	}
	if p.raw {
		q.Set("raw", "1")
	}
	return q
}

// publish sends one body.
func (m *Main) publish(ctx context.Context, c *remote, p *publication, data io.Reader) error {
	// Read whole, so that its length is known and a proxy can send it again.
	body, err := io.ReadAll(data)
	if err != nil {
		return fmt.Errorf("read the data: %w", err)
	}
	b := client.Body{ContentType: textType, Query: p.query(), Data: body, Key: p.key}
	switch {
	case p.contentType != "":
		b.ContentType = p.contentType
	case p.raw:
		b.ContentType = "application/json"
	}
	answer, err := c.PublishBody(ctx, p.channel, b)
	if err != nil {
		return c.explain(err)
	}
	return m.printAnswer(answer, p)
}

// answeredIDs returns the ids of an answer: of one event, or of a batch.
func answeredIDs(answer []byte) ([]string, error) {
	type one struct {
		ID string `json:"id"`
	}
	var batch []one
	if bytes.HasPrefix(bytes.TrimSpace(answer), []byte("[")) {
		if err := json.Unmarshal(answer, &batch); err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
	} else {
		batch = make([]one, 1)
		if err := json.Unmarshal(answer, &batch[0]); err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
	}
	ids := make([]string, len(batch))
	for i, b := range batch {
		ids[i] = b.ID
	}
	return ids, nil
}

// publishLines streams the standard input, an event a line, and reads an answer
// for each.
func (m *Main) publishLines(ctx context.Context, c *remote, p *publication) error {
	body, input := io.Pipe()
	// Input that is bad ends the body where the last good line ended: what came
	// before has been published, and its answers are still read.
	var bad atomic.Pointer[error]
	go func() {
		if err := p.copyLines(m.Stdin, input); err != nil {
			bad.Store(&err)
		}
		input.Close()
	}()
	defer body.Close()

	progress := m.newProgress(p.quiet)
	defer progress.end()
	for answer, err := range c.PublishLines(ctx, p.channel, body) {
		if u, ok := errors.AsType[*client.UnreachableError](err); ok && progress.n > 0 {
			return fmt.Errorf("the answers ended after %d lines: %w", progress.n, u.Err)
		}
		if err != nil {
			return c.explain(err)
		}
		progress.add()
		if err := m.printAnswer(answer, p); err != nil {
			return err
		}
	}
	if err := bad.Load(); err != nil {
		return *err
	}
	return nil
}

// printAnswer prints what is answered to a publish.
func (m *Main) printAnswer(answer []byte, p *publication) error {
	if p.quiet {
		return nil
	}
	if p.json {
		_, err := fmt.Fprintf(m.Stdout, "%s\n", bytes.TrimSpace(answer))
		return err
	}
	ids, err := answeredIDs(answer)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(m.Stdout, strings.Join(ids, "\n"))
	return err
}

// copyLines writes each line of in to out as an event.
func (p *publication) copyLines(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	event := struct {
		Event string `json:"event,omitempty"`
		Data  string `json:"data"`
		Retry *int64 `json:"retry,omitempty"`
		TTL   *int64 `json:"ttl,omitempty"`
	}{Event: p.event}
	if p.given("retry") {
		event.Retry = new(p.retry.Milliseconds())
	}
	if p.given("ttl") {
		event.TTL = new(p.ttl.Milliseconds())
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if !utf8.Valid(line) {
				return fmt.Errorf("line %d is not valid UTF-8: the lines before it were published, it and what follows were not", n)
			}
			b.Reset()
			if p.contentType == linesType {
				b.Write(line)
				if line[len(line)-1] != '\n' {
					b.WriteByte('\n')
				}
			} else {
				text := bytes.TrimSuffix(line, []byte("\n"))
				event.Data = string(bytes.TrimSuffix(text, []byte("\r")))
				if err := encoder.Encode(event); err != nil {
					return fmt.Errorf("line %d: %w", n, err)
				}
			}
			if _, err := out.Write(b.Bytes()); err != nil {
				return nil // the server ended it, and its answer says why
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read line %d: %w", n, err)
		}
	}
}

// A progress tells a person how far it is.
type progress struct {
	n     int
	to    io.Writer // nil when nobody watches
	began time.Time
	told  time.Time
}

// newProgress returns one that tells whoever sits at the terminal, unless the
// answers go there.
func (m *Main) newProgress(quiet bool) *progress {
	p := &progress{began: time.Now()}
	if isTerminal(m.Stderr) && (quiet || !isTerminal(m.Stdout)) {
		p.to = m.Stderr
	}
	return p
}

func (p *progress) add() {
	p.n++
	if p.to != nil && time.Since(p.told) > 100*time.Millisecond {
		p.told = time.Now()
		p.tell()
	}
}

func (p *progress) tell() {
	seconds := time.Since(p.began).Seconds()
	fmt.Fprintf(p.to, "\r%d events, %.0f a second \x1b[K", p.n, float64(p.n)/max(seconds, 0.001))
}

// end leaves the line with the last number on it.
func (p *progress) end() {
	if p.to != nil && p.n > 0 {
		p.tell()
		fmt.Fprintln(p.to)
	}
}
