package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource"
)

func (m *Main) healthcheckCommand() *cobra.Command {
	var (
		base    string
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a server whether it is ready; for HEALTHCHECK in a container",
		Long: `Ask the server that runs with the same files, variables and flags for /health. The
exit status is 0 when it is ready, 1 when it is not or does not answer.`,
		Example: `  eventsource healthcheck
  eventsource healthcheck --url http://events.example.org`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if base == "" {
				c, err := m.configure(cmd.Flags())
				if err != nil {
					return err
				}
				if base, err = c.healthURL(); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("no answer in %v", timeout))
			defer cancel()
			return m.healthcheck(ctx, base)
		},
	}
	settingsFlags(cmd)
	cmd.Flags().StringVar(&base, "url", "", "ask the server at this `URL`, whatever is configured")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "give up after `DURATION`")
	return cmd
}

// healthURL returns where the configured server answers to this machine.
func (c *config) healthURL() (string, error) {
	address := c.address()
	if c.operations != "" {
		address = c.operations
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if n, err := strconv.Atoi(port); err == nil && n == 0 {
		return "", usageError{errors.New("port 0 is any free one, which only the server knows: give --url")}
	}
	switch ip := net.ParseIP(host); {
	case ip == nil || !ip.IsUnspecified():
	case ip.To4() != nil:
		host = "127.0.0.1"
	default:
		host = "::1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// healthcheck asks the server at base.
func (m *Main) healthcheck(ctx context.Context, base string) error {
	c, err := newClient(base, "")
	if err != nil {
		return err
	}
	res, err := c.do(ctx, http.MethodGet, "/health", nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read /health: %w", err)
	}
	var h eventsource.Health
	if err := json.Unmarshal(body, &h); err != nil {
		return fmt.Errorf("/health answered %s and no document of this server", res.Status)
	}
	if res.StatusCode != http.StatusOK || !h.Ready {
		return fmt.Errorf("the server is not ready: %s", h.Status)
	}
	_, err = fmt.Fprintln(m.Stdout, h.Status)
	return err
}
