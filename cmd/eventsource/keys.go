package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource"
)

// keyPrefix begins the tokens that "eventsource keys" makes, so that people, and
// programs that look for secrets that got out, know what they see.
const keyPrefix = "es_"

// A grantFlags is what a token that is made shall allow.
type grantFlags struct {
	subscribe, publish []string
	admin              bool
}

// add gives a command the flags.
func (g *grantFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&g.subscribe, "subscribe", nil, "let it follow these `CHANNELS` and wildcards, joined by commas")
	f.StringSliceVar(&g.publish, "publish", nil, "let it publish to these `CHANNELS` and wildcards; all must be named")
	f.BoolVar(&g.admin, "admin", false, "let it administer")
}

func (m *Main) keysCommand() *cobra.Command {
	var grants grantFlags
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make a key for the configuration",
		Long: `Make a key: a token of 256 random bits, which is for whoever shall use it, and its hash,
which is for the configuration. Nothing is kept; send the server SIGHUP once the lines are
in its configuration.`,
		Example: `  eventsource keys --subscribe 'news.*' --publish news.today
  eventsource keys hash < token.txt             # the hash of a token that is there already
  eventsource keys secret                       # a secret that signs JWTs`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			token := keyPrefix + randomText(32)
			k := eventsource.Key{Token: eventsource.HashToken(token), Subscribe: grants.subscribe, Publish: grants.publish, Admin: grants.admin}
			if err := (&eventsource.Settings{Keys: []eventsource.Key{k}}).Validate(); err != nil {
				return grantError(err)
			}
			lines, err := yaml.MarshalWithOptions(map[string]any{"keys": []any{yaml.MapSlice{
				{Key: "token", Value: k.Token}, {Key: "subscribe", Value: orEmpty(k.Subscribe)},
				{Key: "publish", Value: orEmpty(k.Publish)}, {Key: "admin", Value: k.Admin},
			}}}, yaml.IndentSequence(true))
			if err != nil {
				return fmt.Errorf("print the key: %w", err)
			}
			_, err = fmt.Fprintf(m.Stdout, "Token, for who shall use it; it is shown this once:\n  %s\nIts hash:\n  %s\nFor the configuration:\n\n%s", token, k.Token, lines)
			return err
		},
	}
	grants.add(cmd)
	cmd.AddCommand(m.keysHashCommand(), m.keysSecretCommand())
	return cmd
}

func (m *Main) keysHashCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "hash",
		Short:   "Print the hash of a token that is read from standard input",
		Long:    `Print the hash of a token, read from standard input, as a key in the configuration has it.`,
		Example: `  eventsource keys hash < token.txt`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			token, err := m.readToken()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(m.Stdout, eventsource.HashToken(token))
			return err
		},
	}
}

func (m *Main) keysSecretCommand() *cobra.Command {
	algorithm := ""
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Make a secret that signs JWTs and checks them",
		Long: `Make a secret for an algorithm, which is for jwt.key in the configuration and for who signs
JWTs with it.`,
		Example: `  eventsource keys secret > /etc/eventsource/jwt.secret
  eventsource keys secret --algorithm HS512`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			bytes, ok := map[string]int{"HS256": 32, "HS384": 48, "HS512": 64}[algorithm]
			if !ok {
				return usageError{fmt.Errorf("--algorithm: %q is none of HS256, HS384, HS512", algorithm)}
			}
			_, err := fmt.Fprintln(m.Stdout, randomText(bytes))
			return err
		},
	}
	cmd.Flags().StringVar(&algorithm, "algorithm", "HS256", "make it long enough for this `ALGORITHM`: HS256, HS384 or HS512")
	return cmd
}

// randomText returns so many random bytes as text that is safe in URLs.
func randomText(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// readToken reads a token from standard input, which keeps it out of the process
// list.
func (m *Main) readToken() (string, error) {
	if isTerminal(m.Stdin) {
		fmt.Fprintln(m.Stderr, "Type the token, then Enter and Ctrl-D:")
	}
	b, err := io.ReadAll(io.LimitReader(m.Stdin, 64<<10))
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", usageError{errors.New("standard input has no token")}
	}
	return token, nil
}

// grantError says which flag what the library refuses of keys[0] came from.
func grantError(err error) error {
	name, detail, _ := strings.Cut(split(err)[0].Error(), ": ")
	member, _, _ := strings.Cut(strings.TrimPrefix(name, "keys[0]."), "[")
	return usageError{fmt.Errorf("--%s: %s", member, detail)}
}
