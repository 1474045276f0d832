package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func (m *Main) channelsCommand() *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "channels",
		Short: "List the channels of a server",
		Long:  `List the channels that a consumer follows by name or that hold events, one a line.`,
		Example: `  eventsource channels
  eventsource channels --json | jq .consumers`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return m.channels(cmd, asJSON) },
	}
	clientFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object: channels, count, consumers, truncated")
	return cmd
}

func (m *Main) channels(cmd *cobra.Command, asJSON bool) error {
	c, err := m.client(cmd)
	if err != nil {
		return err
	}
	res, err := c.do(cmd.Context(), http.MethodHead, channelPath("all"), nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden: // an answer to HEAD has no detail
		return errors.New("the token is not an administrator's: give one that is")
	default:
		return refusal(res)
	}
	listed, ok := strings.CutPrefix(res.Header.Get("X-Available-Channels"), "[")
	if !ok {
		return errors.New("the answer has no X-Available-Channels: is an EventSource server at this URL?")
	}
	names := splitList(strings.TrimSuffix(listed, "]"))
	number := func(header string, otherwise int) int {
		if n, err := strconv.Atoi(res.Header.Get(header)); err == nil {
			return n
		}
		return otherwise
	}
	answer := struct {
		Channels  []string `json:"channels"`
		Count     int      `json:"count"`
		Consumers int      `json:"consumers"`
		Truncated bool     `json:"truncated"`
	}{names, number("X-Channel-Count", len(names)), number("X-Consumer-Count", 0),
		res.Header.Get("X-Available-Channels-Truncated") == "true"}
	if asJSON {
		return json.NewEncoder(m.Stdout).Encode(answer)
	}
	for _, name := range names {
		if _, err := fmt.Fprintln(m.Stdout, name); err != nil {
			return err
		}
	}
	if answer.Truncated {
		fmt.Fprintf(m.Stderr, "These are the first %d of %d channels: the server's list ends here.\n", len(names), answer.Count)
	}
	return nil
}
