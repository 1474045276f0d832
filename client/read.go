package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// channelPath returns the path of a channel, and of what is below it.
func channelPath(channel string, below ...string) string {
	return strings.Join(append([]string{apiPath + "/channels/" + segment(channel)}, below...), "/")
}

// get asks for a document.
func (c *Client) get(ctx context.Context, path string, query url.Values, v any) (http.Header, error) {
	return c.ask(ctx, &call{method: http.MethodGet, path: path, query: query}, v)
}

// A Query says which events of a channel to return. nil is all, oldest first.
type Query struct {
	// After and Before are ids between whose events they stand; empty: none. Before
	// alone reads backwards from there, the newest first.
	After, Before string
	// Types are the events' types, "message" being the untyped; nil: any.
	Types []string
	// Status is "read" or "unread", on the channels of persons; empty: both.
	Status string
	// Descending returns the newest first.
	Descending bool
	// Page is how many are asked for at once, up to 1000; 0 is 100.
	Page int
}

// values returns the query of a request.
func (q *Query) values() url.Values {
	v := url.Values{}
	if q == nil {
		return v
	}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	set("after", q.After)
	set("before", q.Before)
	set("event", strings.Join(q.Types, ","))
	set("status", q.Status)
	if q.Descending || q.Before != "" && q.After == "" {
		v.Set("order", "desc")
	}
	if q.Page != 0 {
		v.Set("limit", strconv.Itoa(q.Page))
	}
	return v
}

// A keptText is a kept event as the server shows it.
type keptText struct {
	ID       string    `json:"id"`
	Type     string    `json:"event"`
	Data     *string   `json:"data"`
	Retry    *int64    `json:"retry"`
	Time     time.Time `json:"time"`
	Channels []string  `json:"channels"`
	Read     bool      `json:"read"`
}

func (t *keptText) event() Event {
	e := Event{ID: t.ID, Type: t.Type, NoData: t.Data == nil, Time: t.Time, Channels: t.Channels, Read: t.Read}
	if t.Data != nil {
		e.Data = *t.Data
	}
	if t.Retry != nil {
		if e.Retry = time.Duration(*t.Retry) * time.Millisecond; e.Retry == 0 {
			e.Retry = -1
		}
	}
	return e
}

// Events yields the kept events of a channel or a wildcard, page by page. An error is
// the last.
func (c *Client) Events(ctx context.Context, channel string, q *Query) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for query, more := q.values(), true; more; {
			var page struct {
				Events []keptText `json:"events"`
				More   bool       `json:"more"`
			}
			header, err := c.get(ctx, channelPath(channel, "events"), query, &page)
			if err != nil {
				yield(Event{}, err)
				return
			}
			for i := range page.Events {
				if !yield(page.Events[i].event(), nil) {
					return
				}
			}
			if more = page.More; more {
				if query, err = nextQuery(header.Get("Link")); err != nil {
					yield(Event{}, err)
					return
				}
			}
		}
	}
}

// nextQuery returns the query of the next page. Of the link nothing else counts: a
// proxy may have put the server elsewhere.
func nextQuery(link string) (url.Values, error) {
	target, _, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	u, err := url.Parse(target)
	if !ok || err != nil || u.RawQuery == "" {
		return nil, errors.New("the answer does not say where the next page is")
	}
	return u.Query(), nil
}

// Event returns the kept event with an id: of one that was used twice, the oldest.
func (c *Client) Event(ctx context.Context, channel, id string) (Event, error) {
	var t keptText
	_, err := c.get(ctx, channelPath(channel, "events"), url.Values{"id": {id}}, &t)
	return t.event(), err
}

// Marks: what a person has read. Each of these returns how many events of the channel
// are unread then.

// mostMarks is how many events a request may mark one by one.
const mostMarks = 1000

// Mark marks events of a person's channel as read.
func (c *Client) Mark(ctx context.Context, channel string, ids ...string) (unread int, err error) {
	return c.mark(ctx, channel, true, ids)
}

// Unmark marks events as unread.
func (c *Client) Unmark(ctx context.Context, channel string, ids ...string) (unread int, err error) {
	return c.mark(ctx, channel, false, ids)
}

func (c *Client) mark(ctx context.Context, channel string, read bool, ids []string) (unread int, err error) {
	if len(ids) == 0 {
		return 0, errors.New("no event is named: give at least one id")
	}
	for len(ids) > 0 && err == nil {
		some := ids[:min(len(ids), mostMarks)]
		ids = ids[len(some):]
		unread, err = c.postMarks(ctx, channel, map[string]any{"ids": some, "read": read})
	}
	return unread, err
}

// MarkUpTo marks all events up to the one with an id as read.
func (c *Client) MarkUpTo(ctx context.Context, channel, id string) (unread int, err error) {
	return c.postMarks(ctx, channel, map[string]any{"id": id})
}

func (c *Client) postMarks(ctx context.Context, channel string, document map[string]any) (int, error) {
	body, err := json.Marshal(document)
	if err != nil {
		return 0, fmt.Errorf("encode the marks: %w", err)
	}
	var answer struct {
		Unread int `json:"unread"`
	}
	_, err = c.ask(ctx, &call{method: http.MethodPost, path: channelPath(channel, "read"), body: body, media: "application/json"}, &answer)
	return answer.Unread, err
}

// Unread returns how many events of a person's channel are unread.
func (c *Client) Unread(ctx context.Context, channel string) (int, error) {
	var answer struct {
		Unread int `json:"unread"`
	}
	_, err := c.get(ctx, channelPath(channel, "unread"), nil, &answer)
	return answer.Unread, err
}
