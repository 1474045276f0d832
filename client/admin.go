package client

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// What administrators may ask for.

// mostListed is how many entries of a list are asked for at once.
const mostListed = 1000

// A Channel exists: a consumer follows it by name, or an event of it is kept.
type Channel struct {
	Name      string `json:"channel"`
	Consumers int    `json:"consumers"` // that follow it by name
	// Events are how many are kept, Oldest and Newest their ends, nil where none is.
	// Channels leaves them out.
	Events int  `json:"events"`
	Oldest *End `json:"oldest"`
	Newest *End `json:"newest"`
}

// An End is the first or the last of the events that are kept.
type End struct {
	ID   string    `json:"id"`
	Time time.Time `json:"time"`
}

// Channels yields the channels whose names begin with prefix, sorted. An error is the
// last. One that comes or goes meanwhile may be left out or come twice.
func (c *Client) Channels(ctx context.Context, prefix string) iter.Seq2[Channel, error] {
	return func(yield func(Channel, error) bool) {
		for page := 1; ; page++ {
			query := url.Values{"limit": {strconv.Itoa(mostListed)}, "page": {strconv.Itoa(page)}}
			if prefix != "" {
				query.Set("prefix", prefix)
			}
			var answer struct {
				Channels []Channel `json:"channels"`
				More     bool      `json:"more"`
			}
			if _, err := c.get(ctx, apiPath+"/channels", query, &answer); err != nil {
				yield(Channel{}, err)
				return
			}
			for _, one := range answer.Channels {
				if !yield(one, nil) {
					return
				}
			}
			if !answer.More {
				return
			}
		}
	}
}

// Channel returns a channel, a *Problem with the status 404 where it does not exist.
func (c *Client) Channel(ctx context.Context, name string) (Channel, error) {
	var answer Channel
	_, err := c.get(ctx, channelPath(name), nil, &answer)
	return answer, err
}

// A Removal says what Delete did.
type Removal struct {
	Channels     []string `json:"channels"`
	Disconnected int      `json:"disconnected"` // consumers
}

// Delete drops a channel's events and disconnects who follows it by name; "all" is every
// channel.
func (c *Client) Delete(ctx context.Context, channel string) (Removal, error) {
	var answer Removal
	_, err := c.ask(ctx, &call{method: http.MethodDelete, path: channelPath(channel)}, &answer)
	return answer, err
}

// A Consumer is one connection.
type Consumer struct {
	ID        string    `json:"id"`
	Channels  []string  `json:"channels"` // the names and wildcards that it follows
	Connected time.Time `json:"connected"`
	Position  string    `json:"position"` // the id of the place up to which it has everything
	Behind    uint64    `json:"behind"`   // places between that and the mark
	Subject   string    `json:"subject"`  // of its token
}

// Consumers yields those that follow a channel or a wildcard by its name, "all" being all
// of them, in the order in which they came. An error is the last.
func (c *Client) Consumers(ctx context.Context, channel string) iter.Seq2[Consumer, error] {
	return func(yield func(Consumer, error) bool) {
		query := url.Values{"limit": {strconv.Itoa(mostListed)}}
		for {
			var answer struct {
				Consumers []Consumer `json:"consumers"`
				More      bool       `json:"more"`
			}
			if _, err := c.get(ctx, channelPath(channel, "consumers"), query, &answer); err != nil {
				yield(Consumer{}, err)
				return
			}
			for _, one := range answer.Consumers {
				if !yield(one, nil) {
					return
				}
			}
			if !answer.More || len(answer.Consumers) == 0 {
				return
			}
			query.Set("after", answer.Consumers[len(answer.Consumers)-1].ID)
		}
	}
}

// Consumer returns one that follows a channel.
func (c *Client) Consumer(ctx context.Context, channel, id string) (Consumer, error) {
	var answer Consumer
	_, err := c.get(ctx, channelPath(channel, "consumers", segment(id)), nil, &answer)
	return answer, err
}

// Disconnect ends the stream of one that follows a channel.
func (c *Client) Disconnect(ctx context.Context, channel, id string) error {
	var answer struct{}
	_, err := c.ask(ctx, &call{method: http.MethodDelete, path: channelPath(channel, "consumers", segment(id))}, &answer)
	return err
}

// Stats are what a node has done and holds. Counters count from Started.
type Stats struct {
	Started       time.Time         `json:"started"`
	Consumers     int               `json:"consumers"`      // connected now
	Relayed       int               `json:"relayed"`        // streams whose events come from elsewhere than the logs, such as AMQP queues
	Replays       int               `json:"replays"`        // consumers that come, and are sent what the logs have no longer
	Channels      int               `json:"channels"`       // with a consumer by name or a kept event, or about to go
	HistoryEvents int64             `json:"history_events"` // kept, each once
	HistoryBytes  int64             `json:"history_bytes"`  // their memory, with entries and channels
	Mark          uint64            `json:"mark"`           // the place up to which every event is there
	Publishes     uint64            `json:"publishes"`      // requests and calls that published
	Published     uint64            `json:"published"`      // events of them
	Delivered     uint64            `json:"delivered"`      // events to consumers, each counted
	Sent          uint64            `json:"sent_bytes"`     // bytes that their streams took
	Connects      uint64            `json:"connects"`       // consumers that came
	Gaps          uint64            `json:"gaps"`           // that were told of
	Recalled      uint64            `json:"recalled"`       // events of Delivered that were read from the backend for one consumer
	Disconnects   map[string]uint64 `json:"disconnects"`    // consumers that went, by reason
	Refusals      map[int]uint64    `json:"refusals"`       // requests, by status
	Limited       map[string]uint64 `json:"limited"`        // requests that a limit refused, by its name
	Verified      uint64            `json:"verified"`       // JWTs that were checked and accepted
	Unverified    uint64            `json:"unverified"`     // JWTs that were checked and refused
	Draining      bool              `json:"draining"`
	Available     bool              `json:"available"` // the backend takes events
	Sources       []SourceStats     `json:"sources"`
}

// SourceStats are what a source has done, and how it is.
type SourceStats struct {
	Name       string            `json:"name"`       // its kind and number
	State      string            `json:"state"`      // "connecting", "ok" or "failing"
	Since      time.Time         `json:"since"`      // when that began
	Reason     string            `json:"reason"`     // why it is failing
	Published  uint64            `json:"published"`  // events
	Duplicates uint64            `json:"duplicates"` // what came in again and was not published again
	Connects   uint64            `json:"connects"`   // how often it was connected
	Refusals   map[string]uint64 `json:"refusals"`   // what was not published, by reason
}

// Stats returns the numbers of the node that answers.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	var answer Stats
	_, err := c.get(ctx, apiPath+"/stats", nil, &answer)
	return answer, err
}

// A Node is one running server.
type Node struct {
	Name      string    `json:"node"`
	Status    string    `json:"status"` // "ok", "draining" or "unavailable"
	Started   time.Time `json:"started"`
	Consumers int       `json:"consumers"` // connected to it
	Channels  int       `json:"channels"`  // that it has in memory
	Mark      uint64    `json:"mark"`      // the place up to which it has every event
	Version   string    `json:"version"`
}

// Nodes returns all of them.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var answer struct {
		Nodes []Node `json:"nodes"`
	}
	_, err := c.get(ctx, apiPath+"/nodes", nil, &answer)
	return answer.Nodes, err
}

// Health is the state of a node, which anybody may ask for; an administrator is told
// more.
type Health struct {
	Status   string            `json:"status"`   // "ok", "draining" or "unavailable"
	Ready    bool              `json:"ready"`    // takes publishes and consumers
	Draining bool              `json:"draining"` // shuts down
	Backend  string            `json:"backend"`  // "ok" or "unavailable"
	Reason   string            `json:"reason"`   // why it is unavailable; for administrators
	Sources  map[string]string `json:"sources"`  // "connecting", "ok" or "failing", by kind and number
}

// Health returns the state of the node that answers, also where it is not ready.
func (c *Client) Health(ctx context.Context) (Health, error) {
	r, err := c.request(ctx, &call{method: http.MethodGet, path: "/health"}, nil)
	if err != nil {
		return Health{}, err
	}
	res, err := c.send(r)
	if err != nil {
		return Health{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, mostProblem))
	if err != nil {
		return Health{}, c.unreachable(err)
	}
	var h Health
	known := res.StatusCode == http.StatusOK || res.StatusCode == http.StatusServiceUnavailable
	if json.Unmarshal(text, &h) != nil || !known || h.Status == "" {
		return Health{}, noServer(res)
	}
	return h, nil
}
