package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource"
)

// A client talks to a server.
type client struct {
	base  *url.URL // with the server's base path, for what is a channel
	token string
	http  *http.Client
}

// clientFlags gives a command the flags that say which server it talks to.
func clientFlags(cmd *cobra.Command) {
	cmd.Flags().String("url", "", "talk to the server at this `URL`, with its base path (EVENTSOURCE_URL, or http://localhost:8080)")
	cmd.Flags().String("token", "", "send this `TOKEN`; EVENTSOURCE_AUTH_TOKEN keeps it out of the process list")
}

// client returns what a command's flags and the environment say.
func (m *Main) client(cmd *cobra.Command) (*client, error) {
	pick := func(flag, name, otherwise string) string {
		if f := cmd.Flags().Lookup(flag); f.Changed {
			return f.Value.String()
		}
		if v := m.getenv(name); v != "" {
			return v
		}
		return otherwise
	}
	return newClient(pick("url", "EVENTSOURCE_URL", "http://localhost:8080"), pick("token", "EVENTSOURCE_AUTH_TOKEN", ""))
}

func newClient(base, token string) (*client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		// What was given may hold a password.
		return nil, usageError{errors.New("--url: no URL such as http://localhost:8080")}
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath, u.RawQuery, u.Fragment = "", "", ""
	// Redirects would turn a POST into a GET and take the token elsewhere.
	return &client{base: u, token: strings.TrimSpace(token), http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// request makes one for a path below the server's URL.
func (c *client) request(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Request, error) {
	u := *c.base
	u.Path += path
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	if c.token != "" {
		r.Header.Set("Auth-Token", c.token)
	}
	r.Header.Set("User-Agent", "eventsource/"+readBuild().Version)
	return r, nil
}

// do sends a request.
func (c *client) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	r, err := c.request(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	return c.send(r)
}

// send sends a request. Its errors say which server could not be reached.
func (c *client) send(r *http.Request) (*http.Response, error) {
	res, err := c.http.Do(r)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return res, nil
}

// unreachable says which server did not answer, without what a URL may hold of
// secrets.
func (c *client) unreachable(err error) error {
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

// refusal returns why the server refused: the detail of its problem document,
// or what else there is to say. It reads the body.
func refusal(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	var p eventsource.Problem
	if err == nil && json.Unmarshal(body, &p) == nil && p.Detail != "" {
		return errors.New(p.Detail)
	}
	switch {
	case res.StatusCode == http.StatusBadRequest && bytes.HasPrefix(body, []byte("Client sent an HTTP request to an HTTPS server")):
		return errors.New("the server speaks TLS: give a URL that begins with https://")
	case res.StatusCode == http.StatusUnauthorized:
		return errors.New("the server wants a token that it knows: give --token or EVENTSOURCE_AUTH_TOKEN")
	case res.StatusCode == http.StatusForbidden:
		return errors.New("the token is not for this: give one that is")
	case res.StatusCode >= 300 && res.StatusCode < 400:
		return fmt.Errorf("the server answered %s: give the URL that it redirects to, %s", res.Status, res.Header.Get("Location"))
	}
	return fmt.Errorf("the server answered %s: is an EventSource server at this URL?", res.Status)
}

// channelPath returns the path of one or more channels.
func channelPath(channels ...string) string { return "/" + strings.Join(channels, ",") }
