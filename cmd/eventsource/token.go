package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource"
)

// A tokenRequest is a JWT that is asked for.
type tokenRequest struct {
	grants  grantFlags
	subject string
	expires string
	issuer  string // which of several
	keyFile string
	kid     string
}

func (m *Main) tokenCommand() *cobra.Command {
	var t tokenRequest
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make a JWT that the configured server accepts",
		Long: `Make a JWT, signed by the key of "jwt" in the configuration, and print it. It bears the
issuer and the audience that the configuration asks for. Whoever has it may do what it
grants until it expires: it can't be taken back alone.

Where the configuration has only a public key, --key-file gives the private one.`,
		Example: `  eventsource token --subject joe --subscribe 'news.*'
  eventsource token --publish news.today --expires 10m
  eventsource token --key-file issuer.pem --admin
  eventsource token inspect < token.txt         # what it holds, and whether it is accepted`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token, err := m.token(cmd, &t)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(m.Stdout, token)
			return err
		},
	}
	settingsFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&t.subject, "subject", "", "who it is for: `NAME` may follow users.NAME")
	f.StringVar(&t.expires, "expires", "1h", "after this `DURATION`; none is never, if the configuration allows it")
	f.StringVar(&t.issuer, "issuer", "", "sign it for this one of several: its `NAME`, or its place from 1")
	f.StringVar(&t.keyFile, "key-file", "", "sign it with the private key, or the secret, in `FILE`")
	f.StringVar(&t.kid, "kid", "", "say that this `KEY` of a jwks_url signed it")
	t.grants.add(cmd)
	cmd.AddCommand(m.tokenInspectCommand())
	return cmd
}

// token makes a token, and has the server's own rules look at it.
func (m *Main) token(cmd *cobra.Command, t *tokenRequest) (string, error) {
	k := eventsource.Key{Token: "a token", Subscribe: t.grants.subscribe, Publish: t.grants.publish}
	if err := (&eventsource.Settings{Keys: []eventsource.Key{k}}).Validate(); err != nil {
		return "", grantError(err)
	}
	lifetime := time.Duration(0)
	if t.expires != "none" {
		var err error
		if lifetime, err = time.ParseDuration(t.expires); err != nil || lifetime < time.Second {
			return "", usageError{fmt.Errorf("--expires: %q is no duration of a second or more; give one such as 1h or 30m", t.expires)}
		}
	}
	c, err := m.configure(cmd.Flags())
	if err != nil {
		return "", err
	}
	i, err := c.jwt.pick(t.issuer)
	if err != nil {
		return "", err
	}
	configured, is, signer := c.jwt.all[i], c.settings.Issuers[i], c.signers[i]
	if lifetime == 0 && !is.NoExpiry {
		return "", usageError{errors.New("--expires: the server wants tokens that expire; give a duration, or set jwt.require_expiry to false")}
	}
	if t.keyFile != "" {
		content, err := os.ReadFile(t.keyFile)
		if err != nil {
			return "", usageError{fmt.Errorf("--key-file: %w", err)}
		}
		public, private, err := readKey(content, is.GetAlgorithm())
		switch {
		case err != nil:
			return "", usageError{fmt.Errorf("--key-file: %s %w", t.keyFile, err)}
		case private == nil:
			return "", usageError{fmt.Errorf("--key-file: %s has no private key, and only such a one signs", t.keyFile)}
		}
		signer = private
		if configured.jwksURL != "" {
			is.Key, is.Keys = public, nil // the set is the server's to read
		}
	}
	if signer == nil {
		what := "the configuration has only a public key, which can't sign; give the private one as --key-file"
		if configured.jwksURL != "" {
			what = "the configuration has only a jwks_url, whose private keys are the issuer's: get a token from it, or give one of these keys as --key-file, with its --kid"
		}
		return "", usageError{errors.New(what)}
	}
	token, err := t.sign(&is, signer, lifetime)
	if err != nil {
		return "", err
	}
	if _, err := eventsource.Inspect(cmd.Context(), token, []eventsource.Issuer{is}); err != nil {
		return "", fmt.Errorf("the server would not accept this token: %s", reason(err))
	}
	return token, nil
}

// pick returns which issuer is meant.
func (j *jwtConfigs) pick(name string) (int, error) {
	var names []string
	for i, c := range j.all {
		shown := c.issuer
		if shown == "" {
			shown = strconv.Itoa(i + 1)
		}
		if name != "" && (name == c.issuer || name == strconv.Itoa(i+1)) {
			return i, nil
		}
		names = append(names, shown)
	}
	switch {
	case len(j.all) == 0:
		return 0, usageError{errors.New(`the configuration has no "jwt" to sign for; "eventsource keys secret" makes a secret for jwt.key, "eventsource keys" a key that is no JWT`)}
	case name != "":
		return 0, usageError{fmt.Errorf("--issuer: there is no %q; there is: %s", name, strings.Join(names, ", "))}
	case len(j.all) > 1:
		return 0, usageError{fmt.Errorf("there are several issuers; give one as --issuer: %s", strings.Join(names, ", "))}
	}
	return 0, nil
}

// sign returns the token.
func (t *tokenRequest) sign(is *eventsource.Issuer, signer any, lifetime time.Duration) (string, error) {
	algorithm := is.GetAlgorithm()
	if algorithm == "" {
		return "", usageError{errors.New("the key is of a kind, or too short a one, that signs no JWTs")}
	}
	now := time.Now()
	claims := jwt.MapClaims{"iat": now.Unix()}
	if lifetime > 0 {
		claims["exp"] = now.Add(lifetime).Unix()
	}
	if t.subject != "" {
		claims[is.SubjectClaim] = t.subject
	}
	if is.Issuer != "" {
		claims["iss"] = is.Issuer
	}
	if len(is.Audience) > 0 {
		claims["aud"] = is.Audience[0]
	}
	grants := map[string]any{}
	if len(t.grants.subscribe) > 0 {
		grants["subscribe"] = t.grants.subscribe
	}
	if len(t.grants.publish) > 0 {
		grants["publish"] = t.grants.publish
	}
	if t.grants.admin {
		grants["admin"] = true
	}
	if len(grants) > 0 {
		claims["eventsource"] = grants
	}
	token := jwt.NewWithClaims(jwt.GetSigningMethod(algorithm), claims)
	if t.kid != "" {
		token.Header["kid"] = t.kid
	}
	signed, err := token.SignedString(signer)
	if err != nil {
		return "", usageError{fmt.Errorf("the key can't sign by %s: %w", algorithm, err)}
	}
	return signed, nil
}

func (m *Main) tokenInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect [TOKEN]",
		Short: "Show what a JWT holds, and whether the configured server accepts it",
		Long: `Show what a JWT holds, and whether the configured server would accept it now. Without an
argument, or with -, it is read from standard input, which keeps it out of the process list.
The exit status is 0 when it is accepted, 1 when it is refused.`,
		Example: `  eventsource token inspect < token.txt
  eventsource token | eventsource token inspect`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return m.inspect(cmd, args) },
	}
	settingsFlags(cmd)
	return cmd
}

func (m *Main) inspect(cmd *cobra.Command, args []string) error {
	c, err := m.configure(cmd.Flags())
	if err != nil {
		return err
	}
	text := ""
	if len(args) == 1 && args[0] != "-" {
		text = strings.TrimSpace(args[0])
	} else if text, err = m.readToken(); err != nil {
		return err
	}
	log, _ := m.logger(c)
	sets := newKeySets(log)
	defer sets.close()
	if err := sets.open(c); err != nil {
		return err
	}
	token, refused := eventsource.Inspect(cmd.Context(), text, c.settings.Issuers)
	if refused != nil && len(c.settings.Issuers) == 0 {
		refused = errors.New(`the configuration has no "jwt"`)
	}
	var out strings.Builder
	if token.Header == nil {
		refused = errors.New("it is no JWT: that is three parts in base64url, joined by dots")
	} else {
		describe(&out, token, time.Now().Truncate(time.Second))
	}
	if refused == nil {
		describeGrants(&out, token)
		fmt.Fprintln(&out, "Accepted")
	} else {
		fmt.Fprintf(&out, "Refused: %s\n", reason(refused))
	}
	if _, err := fmt.Fprint(m.Stdout, out.String()); err != nil {
		return err
	}
	if refused != nil {
		return errReported
	}
	return nil
}

// reason returns why the library refuses a token.
func reason(err error) string {
	if p, ok := errors.AsType[*eventsource.Problem](err); ok {
		return p.Detail
	}
	return err.Error()
}

// describe says what a token holds, whoever signed it.
func describe(out *strings.Builder, t *eventsource.Token, now time.Time) {
	for _, part := range []struct {
		name string
		of   map[string]any
	}{{"Header", t.Header}, {"Claims", t.Claims}} {
		b, err := json.MarshalIndent(part.of, "", "  ")
		if err != nil { // it was JSON
			b = []byte(err.Error())
		}
		fmt.Fprintf(out, "%s: %s\n", part.name, b)
	}
	claims := map[string]func() (*jwt.NumericDate, error){
		"iat": jwt.MapClaims(t.Claims).GetIssuedAt, "nbf": jwt.MapClaims(t.Claims).GetNotBefore, "exp": jwt.MapClaims(t.Claims).GetExpirationTime,
	}
	for _, c := range []struct{ claim, past, future string }{
		{"iat", "Issued", "Issued"}, {"nbf", "Valid since", "Valid from"}, {"exp", "Expired", "Expires"},
	} {
		at, err := claims[c.claim]()
		if err != nil || at == nil {
			continue
		}
		words := c.past
		if at.After(now) {
			words = c.future
		}
		fmt.Fprintf(out, "%s: %s, %s\n", words, at.UTC().Format(time.RFC3339), distanceInTime(at.Sub(now)))
	}
}

// distanceInTime says how far away a time is.
func distanceInTime(d time.Duration) string {
	format := "in %s"
	if d < 0 {
		d, format = -d, "%s ago"
	}
	d = d.Round(time.Second)
	for _, unit := range []struct {
		name string
		of   time.Duration
	}{{"day", 24 * time.Hour}, {"hour", time.Hour}, {"minute", time.Minute}, {"second", time.Second}} {
		if n := int64(d / unit.of); n >= 2 || n == 1 && d%unit.of == 0 {
			name := unit.name
			if n > 1 {
				name += "s"
			}
			return fmt.Sprintf(format, fmt.Sprintf("%d %s", n, name))
		}
	}
	return "now"
}

// describeGrants says what an accepted token allows.
func describeGrants(out *strings.Builder, t *eventsource.Token) {
	if t.Subject != "" {
		fmt.Fprintf(out, "Subject: %s\n", strconv.Quote(t.Subject))
	}
	for _, g := range []struct {
		may string
		of  []string
	}{{"follow", t.Subscribe}, {"publish to", t.Publish}} {
		if len(g.of) > 0 {
			fmt.Fprintf(out, "May %s: %s\n", g.may, strings.Join(slices.Sorted(slices.Values(g.of)), ", "))
		}
	}
	if t.Admin {
		fmt.Fprintln(out, "May administer")
	}
}
