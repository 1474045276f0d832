package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// linesType is NDJSON's.
const linesType = "application/x-ndjson"

// An Event is what a publisher sends, or what is kept of it.
type Event struct {
	// ID is sent as it is given; empty: the server gives one.
	ID string
	// Type is what a browser listens for; empty: "message".
	Type string
	// Data is any text. NoData sends none at all, not even the empty one.
	Data   string
	NoData bool
	// Retry is what consumers are told to wait before they reconnect. 0 tells nothing,
	// a negative one not to wait.
	Retry time.Duration
	// TTL is how long the event is kept for consumers that come back. 0: as long as the
	// server keeps it; negative: not at all. Of a kept event it is not known.
	TTL time.Duration

	// Of a kept event: when it was published, to what, as far as the asker may follow
	// that, and whether it is read, on the channels of persons.
	Time     time.Time
	Channels []string
	Read     bool
}

// An eventText is an event in JSON.
type eventText struct {
	Channels []string `json:"channels,omitempty"`
	ID       string   `json:"id,omitempty"`
	Type     string   `json:"event,omitempty"`
	Data     *string  `json:"data,omitempty"`
	Retry    *int64   `json:"retry,omitempty"`
	TTL      *int64   `json:"ttl,omitempty"`
}

// text returns what the server reads.
func (e *Event) text() eventText {
	t := eventText{ID: e.ID, Type: e.Type, Retry: milliseconds(e.Retry), TTL: milliseconds(e.TTL)}
	if !e.NoData {
		t.Data = &e.Data
	}
	return t
}

// milliseconds is nil for what is not said, and 0 for what is negative.
func milliseconds(d time.Duration) *int64 {
	if d == 0 {
		return nil
	}
	return new(max(d, 0).Milliseconds())
}

// A Receipt says what became of a publish.
type Receipt struct {
	IDs       []string // of the events, in order
	Channels  []string // that they went to
	Consumers int      // followers of the logs that they went to, counted in each
}

// A receiptText is what is answered for one event.
type receiptText struct {
	ID        string   `json:"id"`
	Channels  []string `json:"channels"`
	Consumers int      `json:"consumers"`
}

// Publish publishes events to a channel, or to several joined by commas: each event is
// one, with one id, and who follows two of the channels gets it once. "all" reaches
// every consumer. They are kept together, in order, or not at all.
//
// A publish that was not answered, or refused with what will pass, is tried again
// (Options.Attempts), and published once.
func (c *Client) Publish(ctx context.Context, channel string, events ...Event) (Receipt, error) {
	key := ""
	if c.attempts > 1 {
		key = rand.Text()
	}
	return c.PublishOnce(ctx, key, channel, events...)
}

// PublishOnce is Publish with an idempotency key, with which the same publish may be
// repeated for 5 minutes, and happens once. With the empty key it is tried once.
func (c *Client) PublishOnce(ctx context.Context, key, channel string, events ...Event) (Receipt, error) {
	if len(events) == 0 {
		return Receipt{}, errors.New("nothing to send: give at least one event")
	}
	texts := make([]eventText, len(events))
	for i := range events {
		texts[i] = events[i].text()
	}
	names := strings.Split(channel, ",")
	k := &call{method: http.MethodPost, key: key, media: "application/json", status: http.StatusCreated}
	var document any = texts
	switch {
	case len(names) == 1 && len(events) == 1:
		document = texts[0]
		fallthrough
	case len(names) == 1:
		k.path = apiPath + "/channels/" + segment(channel) + "/events"
	case len(events) == 1:
		texts[0].Channels = names
		document = texts[0]
		k.path = apiPath + "/events"
	default: // which the API has no path for
		k.root, k.path = c.base, listPath(channel)
	}
	var err error
	if k.body, err = json.Marshal(document); err != nil {
		return Receipt{}, fmt.Errorf("encode the events: %w", err)
	}
	var answer json.RawMessage
	if err := c.publish(ctx, k, &answer); err != nil {
		return Receipt{}, err
	}
	return readReceipt(answer)
}

// publish sends a call, again and again where that may help and happens once.
func (c *Client) publish(ctx context.Context, k *call, answer *json.RawMessage) error {
	wait := 200 * time.Millisecond
	for attempt := 1; ; attempt++ {
		_, err := c.ask(ctx, k, answer)
		if err == nil || k.key == "" || attempt >= c.attempts {
			return err
		}
		p, refused := errors.AsType[*Problem](err)
		if _, away := errors.AsType[*UnreachableError](err); !away && (!refused || !p.passing()) {
			return err
		}
		pause := wait
		if refused && p.RetryAfter > 0 {
			pause = p.RetryAfter
		}
		timer := time.NewTimer(min(pause, mostWait) + mathrand.N(wait/4)) // not all at once
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
		wait *= 2
	}
}

// listPath is the path of channels joined by commas, as the channels have it.
func listPath(names string) string { return (&url.URL{Path: "/" + names}).EscapedPath() }

// readReceipt reads what is answered for an event or a batch.
func readReceipt(answer []byte) (Receipt, error) {
	var several []receiptText
	if bytes.HasPrefix(bytes.TrimSpace(answer), []byte("[")) {
		if err := json.Unmarshal(answer, &several); err != nil {
			return Receipt{}, fmt.Errorf("read the answer: %w", err)
		}
	} else {
		several = make([]receiptText, 1)
		if err := json.Unmarshal(answer, &several[0]); err != nil {
			return Receipt{}, fmt.Errorf("read the answer: %w", err)
		}
	}
	var r Receipt
	for _, one := range several {
		r.IDs = append(r.IDs, one.ID)
		r.Channels, r.Consumers = one.Channels, one.Consumers
	}
	return r, nil
}

// A Body is what a publish sends as it is: docs/api.md has the content types.
type Body struct {
	ContentType string
	Query       url.Values // what the body can't say itself
	Data        []byte
	// Key is an idempotency key; with one, the publish is tried again where that may
	// help.
	Key string
}

// PublishBody publishes a body to a channel, or to several joined by commas, and returns
// the server's answer: a receipt in JSON, or an array of them. NDJSON is for
// PublishLines.
func (c *Client) PublishBody(ctx context.Context, channel string, b Body) (json.RawMessage, error) {
	var answer json.RawMessage
	err := c.publish(ctx, &call{method: http.MethodPost, root: c.base, path: listPath(channel), query: b.Query,
		body: append([]byte{}, b.Data...), media: b.ContentType, key: b.Key, status: http.StatusCreated}, &answer)
	return answer, err
}

// A LineError is a line that was refused. Those before it stay published.
type LineError struct {
	Line    int // from 1
	Problem *Problem
}

// Error says which line it is.
func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Problem.Detail) }

// Unwrap returns why it was refused.
func (e *LineError) Unwrap() error { return e.Problem }

// PublishLines publishes each line that it reads, an event in JSON, as it comes, and
// yields what is answered for it, in JSON, in order. The first line that is refused ends
// it (*LineError). It reads lines until their end, or until what it
// returns is no longer ranged over.
func (c *Client) PublishLines(ctx context.Context, channel string, lines io.Reader) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		r, err := c.request(ctx, &call{method: http.MethodPost, root: c.base, path: listPath(channel), media: linesType}, lines)
		if err != nil {
			yield(nil, err)
			return
		}
		res, err := c.send(r)
		if err != nil {
			yield(nil, err)
			return
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			yield(nil, ReadProblem(res))
			return
		}
		answers := bufio.NewScanner(res.Body)
		answers.Buffer(nil, mostProblem)
		for n := 0; answers.Scan(); {
			line := bytes.TrimSpace(answers.Bytes())
			if len(line) == 0 {
				continue
			}
			var p Problem
			if json.Unmarshal(line, &p) == nil && p.Detail != "" {
				p.Document = true
				yield(nil, &LineError{n + 1, &p})
				return
			}
			if n++; !yield(bytes.Clone(line), nil) {
				return
			}
		}
		if err := answers.Err(); err != nil {
			yield(nil, c.unreachable(err))
		}
	}
}
