// Package client talks to an EventSource server: it publishes, reads what is kept,
// marks what a person has read, and shows and ends what an administrator may. It uses
// the server's management API, which docs/api.md describes, and the standard library
// only. To follow channels, any client of Server-Sent Events will do.
//
// A refusal of the server is a *Problem, a server that does not answer an
// *UnreachableError.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	apiPath = "/api/v1"

	// mostAnswer bounds what is read of an answer, mostProblem of a refusal.
	mostAnswer  = 64 << 20
	mostProblem = 64 << 10

	defaultAttempts = 3
	// mostWait is the longest wait between two attempts, whatever the server says.
	mostWait = 10 * time.Second
)

// Options are what New can do without.
type Options struct {
	// Token says who asks: AuthToken, a key, or a JWT. Empty: none is sent.
	Token string
	// Attempts is how often a publish is tried, when the server did not answer or
	// refused it with what will pass: a key that it sends along has it published
	// once all the same. 0 is 3; 1 is once, and without a key.
	Attempts int
	// HTTPClient sends the requests. It follows no redirects, whatever it says, since
	// they would take the token elsewhere. nil: one of its own.
	HTTPClient *http.Client
	// UserAgent is sent as such; empty: Go's own.
	UserAgent string
}

// A Client talks to one server. It is safe for concurrent use.
type Client struct {
	// Set when made.
	base     *url.URL // without a slash at the end; with the base path of channels
	options  Options
	http     *http.Client
	attempts int

	mu  sync.Mutex
	api *url.URL // nil: not found yet
}

// New returns a client of the server at a URL such as http://localhost:8080, with its
// base path, where it has one.
func New(base string, options *Options) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("no URL such as http://localhost:8080") // what was given may hold a password
	}
	c := &Client{base: &url.URL{Scheme: u.Scheme, User: u.User, Host: u.Host, Path: strings.TrimRight(u.Path, "/")}}
	if options != nil {
		c.options = *options
	}
	c.options.Token = strings.TrimSpace(c.options.Token)
	if strings.ContainsFunc(c.options.Token, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, errors.New("the token has control characters, which can't come in a header")
	}
	if c.attempts = c.options.Attempts; c.attempts < 1 {
		c.attempts = defaultAttempts
	}
	sender := http.Client{}
	if c.options.HTTPClient != nil {
		sender = *c.options.HTTPClient
	}
	sender.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http = &sender
	if c.base.Path == "" {
		c.api = c.base
	}
	return c, nil
}

// root returns the URL below which the server has its API and its health. The base path
// of channels does not move them, a proxy that puts the whole server below a path does:
// the server is asked once which it is.
func (c *Client) root(ctx context.Context) (*url.URL, error) {
	c.mu.Lock()
	found := c.api
	c.mu.Unlock()
	if found != nil {
		return found, nil
	}
	top := *c.base
	top.Path = ""
	found = &top
	var home struct {
		OpenAPI string `json:"openapi"`
	}
	_, err := c.ask(ctx, &call{method: http.MethodGet, root: c.base, path: apiPath, public: true}, &home)
	switch _, refused := errors.AsType[*Problem](err); {
	case err != nil && !refused:
		return nil, err
	case err == nil && home.OpenAPI != "":
		found = c.base
	}
	c.mu.Lock()
	c.api = found
	c.mu.Unlock()
	return found, nil
}

// A call is a request.
type call struct {
	method string
	root   *url.URL // nil: where the API is
	path   string   // below root, escaped
	query  url.Values
	body   []byte
	media  string // of body
	key    string // idempotency key
	public bool   // goes without a token
	status int    // the only one that is no refusal; 0: any of 2xx
}

// segment is a part of a path.
func segment(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E") // a cleaning proxy's to undo; ids go as a parameter
	}
	return url.PathEscape(s)
}

// request makes the HTTP request of a call.
func (c *Client) request(ctx context.Context, k *call, body io.Reader) (*http.Request, error) {
	root := k.root
	if root == nil {
		var err error
		if root, err = c.root(ctx); err != nil {
			return nil, err
		}
	}
	u := *root
	path, err := url.PathUnescape(k.path)
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", err)
	}
	u.RawPath = u.EscapedPath() + k.path
	u.Path += path
	u.RawQuery = k.query.Encode()
	r, err := http.NewRequestWithContext(ctx, k.method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", withoutURL(err))
	}
	if k.media != "" {
		r.Header.Set("Content-Type", k.media)
	}
	switch {
	case k.key != "":
		r.Header.Set("Idempotency-Key", k.key)
	case k.status == 0 && k.media != linesType:
		// All but a publish may be repeated. This has net/http do so where a connection
		// that it kept turns out to be closed, and sends nothing.
		r.Header["Idempotency-Key"] = nil
	}
	if c.options.Token != "" && !k.public {
		r.Header.Set("Auth-Token", c.options.Token)
	}
	if c.options.UserAgent != "" {
		r.Header.Set("User-Agent", c.options.UserAgent)
	}
	return r, nil
}

// send sends a request.
func (c *Client) send(r *http.Request) (*http.Response, error) {
	res, err := c.http.Do(r)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return res, nil
}

// ask sends a call and decodes the answer into v, which may be nil. A refusal is a
// *Problem.
func (c *Client) ask(ctx context.Context, k *call, v any) (http.Header, error) {
	var body io.Reader
	if k.body != nil {
		body = bytes.NewReader(k.body)
	}
	r, err := c.request(ctx, k, body)
	if err != nil {
		return nil, err
	}
	res, err := c.send(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return nil, ReadProblem(res)
	}
	if k.status != 0 && res.StatusCode != k.status {
		return nil, noServer(res)
	}
	text, err := c.read(res, mostAnswer)
	if err != nil {
		return nil, err
	}
	if raw, ok := v.(*json.RawMessage); ok {
		if !json.Valid(text) {
			return nil, noServer(res)
		}
		*raw = text
		return res.Header, nil
	}
	if err := json.Unmarshal(text, v); err != nil {
		return nil, noServer(res)
	}
	return res.Header, nil
}

// read reads an answer up to so many bytes.
func (c *Client) read(res *http.Response, most int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(res.Body, most+1))
	if err != nil {
		return nil, c.unreachable(fmt.Errorf("the answer did not come whole: %w", err))
	}
	if int64(len(text)) > most {
		return nil, fmt.Errorf("the answer is longer than %d bytes", most)
	}
	return text, nil
}

// An UnreachableError is why a server did not answer. Whether it did what it was asked
// for is not known.
type UnreachableError struct {
	URL string // of the server, without what it may hold of secrets
	Err error
}

// Error says which server it is.
func (e *UnreachableError) Error() string { return fmt.Sprintf("can't reach %s: %v", e.URL, e.Err) }

// Unwrap returns what went wrong.
func (e *UnreachableError) Unwrap() error { return e.Err }

func (c *Client) unreachable(err error) error {
	u := url.URL{Scheme: c.base.Scheme, Host: c.base.Host, Path: c.base.Path}
	return &UnreachableError{u.String(), withoutURL(err)}
}

// withoutURL returns what is wrong without the URL, which may hold a password.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
