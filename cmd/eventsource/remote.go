package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource/client"
)

// A remote is the server that a command talks to.
type remote struct {
	*client.Client
	base  *url.URL // with the server's base path, for what is a channel
	token string
	http  *http.Client
}

// remoteFlags gives a command the flags that say which server it talks to.
func remoteFlags(cmd *cobra.Command) {
	cmd.Flags().String("url", "", "talk to the server at this `URL`, with its base path (EVENTSOURCE_URL, or http://localhost:8080)")
	cmd.Flags().String("token", "", "send this `TOKEN`; EVENTSOURCE_AUTH_TOKEN keeps it out of the process list")
}

// remote returns what a command's flags and the environment say.
func (m *Main) remote(cmd *cobra.Command) (*remote, error) {
	pick := func(flag, name, otherwise string) string {
		if f := cmd.Flags().Lookup(flag); f.Changed {
			return f.Value.String()
		}
		if v := m.getenv(name); v != "" {
			return v
		}
		return otherwise
	}
	return newRemote(pick("url", "EVENTSOURCE_URL", "http://localhost:8080"), pick("token", "EVENTSOURCE_AUTH_TOKEN", ""), &http.Client{})
}

// newRemote returns the server at a URL, asked by sender.
func newRemote(base, token string, sender *http.Client) (*remote, error) {
	// Redirects would turn a POST into a GET and take the token elsewhere.
	sender.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c, err := client.New(base, &client.Options{Token: token, Attempts: 1, HTTPClient: sender, UserAgent: "eventsource/" + readBuild().Version})
	if err != nil {
		return nil, usageError{fmt.Errorf("--url: %w", err)}
	}
	u, err := url.Parse(base)
	if err != nil {
		return nil, usageError{errors.New("--url: it can't be read")} // what was given may hold a password
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath, u.RawQuery, u.Fragment = "", "", ""
	return &remote{Client: c, base: u, token: strings.TrimSpace(token), http: sender}, nil
}

// follow makes the request for a stream.
func (c *remote) follow(ctx context.Context, channels []string, query url.Values) (*http.Request, error) {
	u := *c.base
	u.Path += "/" + strings.Join(channels, ",")
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	if c.token != "" {
		r.Header.Set("Auth-Token", c.token)
	}
	r.Header.Set("User-Agent", "eventsource/"+readBuild().Version)
	return r, nil
}

// unreachable says which server did not answer, without what a URL may hold of
// secrets.
func (c *remote) unreachable(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if untrusted(err) {
		return fmt.Errorf("can't trust %s: %w: if the certificate is your own, name its file in SSL_CERT_FILE", redacted(c.base), err)
	}
	return fmt.Errorf("can't reach %s: %w", redacted(c.base), err)
}

// untrusted reports whether err says that a server's certificate is not accepted,
// which no repeat changes.
func untrusted(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// explain returns an error of the client as this program tells it.
func (c *remote) explain(err error) error {
	if u, ok := errors.AsType[*client.UnreachableError](err); ok {
		return c.unreachable(u.Err)
	}
	p, ok := errors.AsType[*client.Problem](err)
	switch {
	case !ok || p.Document:
		return err
	case p.Status == http.StatusUnauthorized:
		return errors.New("the server wants a token that it knows: give --token or EVENTSOURCE_AUTH_TOKEN")
	case p.Status == http.StatusForbidden:
		return errors.New("the token is not for this: give one that is")
	}
	return err
}

// refusal returns why the server refused a stream. It reads the body.
func (c *remote) refusal(res *http.Response) error { return c.explain(client.ReadProblem(res)) }
