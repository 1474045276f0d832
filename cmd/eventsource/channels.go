package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource/client"
)

// A listing is what a channels command was asked for.
type listing struct {
	prefix string
	limit  int
	json   bool
}

func (m *Main) channelsCommand() *cobra.Command {
	l := &listing{}
	cmd := &cobra.Command{
		Use:   "channels",
		Short: "List the channels of a server",
		Long:  `List the channels that a consumer follows by name or that hold events, one a line.`,
		Example: `  eventsource channels
  eventsource channels --prefix pets. --limit 10
  eventsource channels --json | jq .consumers`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("limit") && l.limit < 1 {
				return usageError{errors.New("--limit must be at least 1: leave it out to list them all")}
			}
			return m.channels(cmd, l)
		},
	}
	remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&l.prefix, "prefix", "", "list those only whose names begin with `TEXT`")
	f.IntVar(&l.limit, "limit", 0, "list the first `N` at most")
	f.BoolVar(&l.json, "json", false, "print one JSON object: channels, count, consumers, truncated")
	return cmd
}

func (m *Main) channels(cmd *cobra.Command, l *listing) error {
	c, err := m.remote(cmd)
	if err != nil {
		return err
	}
	answer := struct {
		Channels  []string `json:"channels"`
		Count     int      `json:"count"`
		Consumers int      `json:"consumers"` // connected to the server
		Truncated bool     `json:"truncated"`
	}{Channels: []string{}}
	for channel, err := range c.Channels(cmd.Context(), l.prefix) {
		if err != nil {
			return c.unlisted(err)
		}
		if len(answer.Channels) == l.limit && l.limit > 0 {
			answer.Truncated = true
			break
		}
		answer.Channels = append(answer.Channels, channel.Name)
		if !l.json {
			if _, err := fmt.Fprintln(m.Stdout, channel.Name); err != nil {
				return err
			}
		}
	}
	answer.Count = len(answer.Channels)
	if l.json {
		stats, err := c.Stats(cmd.Context())
		if err != nil {
			return c.unlisted(err)
		}
		answer.Consumers = stats.Consumers
		return json.NewEncoder(m.Stdout).Encode(answer)
	}
	if answer.Truncated {
		fmt.Fprintf(m.Stderr, "These are the first %d channels: there are others.\n", answer.Count)
	}
	return nil
}

// unlisted says why channels could not be listed.
func (c *remote) unlisted(err error) error {
	if p, ok := errors.AsType[*client.Problem](err); ok && p.Document {
		switch p.Status {
		case http.StatusUnauthorized:
			return errors.New("the server wants a token that it knows: give --token or EVENTSOURCE_AUTH_TOKEN")
		case http.StatusForbidden:
			return errors.New("the token is not an administrator's: give one that is")
		}
	}
	return c.explain(err)
}
