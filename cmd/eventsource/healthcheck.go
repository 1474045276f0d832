package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource/client"
)

func (m *Main) healthcheckCommand() *cobra.Command {
	var (
		base, name string
		timeout    time.Duration
	)
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a server whether it is ready; for HEALTHCHECK in a container",
		Long: `Ask the server that runs with the same files, variables and flags for /health. The
exit status is 0 when it is ready, 1 when it is not or does not answer. With TLS its
certificate may be for any name, unless --url is given.`,
		Example: `  eventsource healthcheck
  eventsource healthcheck --url http://events.example.org`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if base == "" {
				// Not the files that it names, which a server that runs may do without.
				c, err := m.read(cmd.Flags())
				if err != nil {
					return err
				}
				if base, err = c.healthURL(); err != nil {
					return err
				}
				if name = "localhost"; len(c.tls.domains) > 0 {
					name = c.tls.domains[0]
				}
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("no answer in %v", timeout))
			defer cancel()
			return m.healthcheck(ctx, base, name)
		},
	}
	settingsFlags(cmd)
	cmd.Flags().StringVar(&base, "url", "", "ask the server at this `URL`, whatever is configured")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "give up after `DURATION`")
	return cmd
}

// healthURL returns where the configured server answers to this machine.
func (c *config) healthURL() (string, error) {
	address, scheme := c.address(), c.tls.scheme()
	if c.operations != "" {
		var err error
		if address, err = operationsAddress(c.operations); err != nil {
			return "", &configError{[]string{c.message("operations", err)}}
		}
		scheme = "http"
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
	return scheme + "://" + net.JoinHostPort(host, port), nil
}

// healthcheck asks the server at base. With a name, which is what TLS asks it for, it
// is the one on this machine, whose certificate may be for any name.
func (m *Main) healthcheck(ctx context.Context, base, name string) error {
	sender := &http.Client{}
	if name != "" {
		own := http.DefaultTransport.(*http.Transport).Clone()
		own.TLSClientConfig = &tls.Config{ServerName: name, InsecureSkipVerify: true}
		defer own.CloseIdleConnections()
		sender.Transport = own
	}
	c, err := newRemote(base, "", sender)
	if err != nil {
		return err
	}
	h, err := c.Health(ctx)
	if p, ok := errors.AsType[*client.Problem](err); ok {
		return fmt.Errorf("/health answered %d %s and no document of this server", p.Status, p.Title)
	}
	if err != nil {
		return c.explain(err)
	}
	if !h.Ready {
		return fmt.Errorf("the server is not ready: %s", h.Status)
	}
	_, err = fmt.Fprintln(m.Stdout, h.Status)
	return err
}
