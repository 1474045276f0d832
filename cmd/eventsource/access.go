package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/railsmechanic/eventsource"
)

// fromText returns what YAML makes of the text of a variable.
func fromText(v any) any {
	s, ok := v.(string)
	if !ok {
		return v
	}
	var parsed any
	if err := yaml.Unmarshal([]byte(s), &parsed); err != nil {
		return s
	}
	return parsed
}

// setMembers has the members below path that are given read by the values of their
// names, and returns what is wrong. What is empty is left as it was.
func setMembers(path string, given map[string]any, known map[string]value) []error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(given)) {
		member := path + "." + name
		switch to, ok := known[name]; {
		case !ok:
			errs = append(errs, &memberError{member, fmt.Errorf("unknown key; the nearest one is %q", nearest(name, slices.Sorted(maps.Keys(known))))})
		case given[name] == nil || to == nil:
		default:
			err := to.set(given[name])
			if below, ok := errors.AsType[*memberError](err); ok {
				errs = append(errs, &memberError{member + below.path, below.err})
			} else if err != nil {
				errs = append(errs, &memberError{member, err})
			}
		}
	}
	return errs
}

// A keyList is the keys in order. What is said of it holds nothing that was given,
// which may be a token.
type keyList struct{ to *[]eventsource.Key }

func (l keyList) set(v any) error {
	v = fromText(v)
	members, ok := v.([]any)
	if !ok && v != nil {
		return errors.New(`is no list; give one such as [{token: "…", publish: ["news.*"]}]`)
	}
	var errs []error
	all := make([]eventsource.Key, len(members))
	for i, m := range members {
		path := fmt.Sprintf("[%d]", i)
		given, ok := m.(map[string]any)
		if !ok {
			errs = append(errs, &memberError{path, errors.New(`is no key; give one such as {token: "…", publish: ["news.*"]}`)})
			continue
		}
		k := &all[i]
		errs = append(errs, setMembers(path, given, map[string]value{
			"token":     secret{&k.Token},
			"subscribe": list{&k.Subscribe},
			"publish":   list{&k.Publish},
			"admin":     toggle{&k.Admin},
		})...)
	}
	*l.to = all
	return errors.Join(errs...)
}

func (l keyList) show() any {
	all := []any{}
	for i, k := range *l.to {
		all = append(all, yaml.MapSlice{
			{Key: "token", Value: fmt.Sprint(masked(k.Token), i+1)}, // no two may be the same
			{Key: "subscribe", Value: orEmpty(k.Subscribe)},
			{Key: "publish", Value: orEmpty(k.Publish)},
			{Key: "admin", Value: k.Admin},
		})
	}
	return all
}

// orEmpty returns a list that is shown as one.
func orEmpty(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

// A jwtConfig is who signs JWTs, as it is configured.
type jwtConfig struct {
	algorithm     string
	key           string // one of the three
	keyFile       string
	jwksURL       string
	issuer        string
	audience      []string
	subjectClaim  string
	leeway        time.Duration
	requireExpiry bool
}

// A jwtConfigs is who signs JWTs, in order.
type jwtConfigs struct {
	all    []jwtConfig
	single bool // it is one set and no list
}

// member returns the path of one of them.
func (j *jwtConfigs) member(i int) string {
	if j.single {
		return ""
	}
	return fmt.Sprintf("[%d]", i)
}

// configured returns the path of what the library calls by this one, "[0].key".
func (j *jwtConfigs) configured(path string) string {
	for i, c := range j.all {
		if member, ok := strings.CutPrefix(path, fmt.Sprintf("[%d]", i)); ok {
			if member == ".key" && c.keyFile != "" {
				member = ".key_file"
			}
			return j.member(i) + member
		}
	}
	return path
}

// An issuerList reads jwtConfigs. What is said of it holds nothing that was given,
// which may be a secret.
type issuerList struct{ to *jwtConfigs }

func (l issuerList) set(v any) error {
	*l.to = jwtConfigs{}
	const right = "give one such as {key_file: issuer.pem, audience: events}"
	var members []any
	switch v := fromText(v).(type) {
	case map[string]any:
		if len(v) > 0 {
			members = []any{v}
		}
		l.to.single = true
	case []any:
		members = v
	case nil:
		l.to.single = true
	default:
		return errors.New("is no set of keys and no list of them; " + right)
	}
	var errs []error
	l.to.all = make([]jwtConfig, len(members))
	for i, m := range members {
		path := l.to.member(i)
		given, ok := m.(map[string]any)
		if !ok {
			errs = append(errs, &memberError{path, errors.New("is no set of keys; " + right)})
			continue
		}
		errs = append(errs, l.to.all[i].set(path, given)...)
	}
	return errors.Join(errs...)
}

// set takes the keys of one issuer.
func (j *jwtConfig) set(path string, given map[string]any) []error {
	j.subjectClaim, j.requireExpiry = "sub", true
	errs := setMembers(path, given, map[string]value{
		"algorithm":      text{&j.algorithm},
		"key":            secret{&j.key},
		"key_file":       text{&j.keyFile},
		"jwks_url":       secret{&j.jwksURL},
		"issuer":         text{&j.issuer},
		"audience":       list{&j.audience},
		"subject_claim":  text{&j.subjectClaim},
		"leeway":         duration{to: &j.leeway},
		"require_expiry": toggle{&j.requireExpiry},
	})
	j.leeway = max(j.leeway, 0)
	if len(errs) > 0 {
		return errs
	}
	var from []string
	for name, v := range map[string]string{"key": j.key, "key_file": j.keyFile, "jwks_url": j.jwksURL} {
		if v != "" {
			from = append(from, name)
		}
	}
	slices.Sort(from)
	switch len(from) {
	case 0:
		errs = append(errs, &memberError{path, errors.New("has no key to check signatures with; give key, key_file or jwks_url")})
	case 1:
	default:
		errs = append(errs, &memberError{path + "." + from[1], fmt.Errorf("there is %s, too; give one of them", from[0])})
	}
	if j.subjectClaim == "" {
		errs = append(errs, &memberError{path + ".subject_claim", errors.New(`is empty; give a claim such as sub`)})
	}
	return errs
}

func (l issuerList) show() any {
	all := []any{}
	for _, j := range l.to.all {
		shown := yaml.MapSlice{}
		add := func(key string, v any, has bool) {
			if has {
				shown = append(shown, yaml.MapItem{Key: key, Value: v})
			}
		}
		add("algorithm", j.algorithm, j.algorithm != "")
		add("key", masked(j.key), j.key != "")
		add("key_file", j.keyFile, j.keyFile != "")
		add("jwks_url", maskedURL(j.jwksURL), j.jwksURL != "")
		add("issuer", j.issuer, j.issuer != "")
		add("audience", j.audience, len(j.audience) > 0)
		add("subject_claim", j.subjectClaim, true)
		add("leeway", j.leeway.String(), true)
		add("require_expiry", j.requireExpiry, true)
		all = append(all, shown)
	}
	switch {
	case !l.to.single:
		return all
	case len(all) == 0:
		return map[string]string{}
	}
	return all[0]
}

// maskedURL returns a URL without what may be secret of it.
func maskedURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return masked(s)
	}
	hidden := u.User != nil
	u.User, u.RawQuery, u.Fragment = nil, masked(u.RawQuery), ""
	shown := u.String()
	if scheme, rest, ok := strings.Cut(shown, "://"); ok && hidden {
		return scheme + "://" + masked("user") + "@" + rest
	}
	return shown
}

// open returns the issuer for the library, with the key that signs for it where
// that is at hand. The keys of a jwks_url are none until keySets has opened it.
func (j *jwtConfig) open() (is eventsource.Issuer, signer any, err error) {
	is = eventsource.Issuer{
		Algorithm: j.algorithm, Issuer: j.issuer, Audience: j.audience, SubjectClaim: j.subjectClaim,
		Leeway: j.leeway, NoExpiry: !j.requireExpiry,
	}
	switch {
	case j.jwksURL != "":
		u, err := url.Parse(j.jwksURL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return is, nil, &memberError{".jwks_url", errors.New("is no URL such as https://login.example.org/jwks.json")}
		}
		is.Name = j.jwksURL
		is.Keys = noKeys
	case j.keyFile != "":
		content, err := os.ReadFile(j.keyFile)
		if err != nil {
			return is, nil, &memberError{".key_file", err}
		}
		if is.Key, signer, err = readKey(content, j.algorithm); err != nil {
			return is, nil, &memberError{".key_file", fmt.Errorf("%s %w", j.keyFile, err)}
		}
	case strings.HasPrefix(j.key, pemPrefix):
		if is.Key, signer, err = readPEM([]byte(j.key)); err != nil {
			return is, nil, &memberError{".key", err}
		}
	default:
		is.Key, signer = []byte(j.key), []byte(j.key)
	}
	return is, signer, nil
}

// noKeys are the keys of a set that was not opened.
func noKeys(context.Context, string, string) ([]crypto.PublicKey, error) {
	return nil, eventsource.ErrUnavailable
}

const pemPrefix = "-----BEGIN"

// readKey returns what checks signatures, and what signs if it is there, of a file
// for an algorithm ("": any).
func readKey(content []byte, algorithm string) (public, signer any, err error) {
	trimmed := strings.TrimSpace(string(content))
	switch {
	case strings.HasPrefix(algorithm, "HS"):
		return []byte(trimmed), []byte(trimmed), nil
	case !strings.HasPrefix(trimmed, pemPrefix) && algorithm == "":
		return nil, nil, errors.New("is no PEM file; if it is a secret, give algorithm: HS256")
	}
	return readPEM(content)
}

// readPEM returns the first key of a PEM text (RFC 7468), and what signs if that is
// a private one. Its error goes on where the name of the text ends.
func readPEM(content []byte) (public, signer any, err error) {
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			return nil, nil, errors.New("holds no key; give a PEM text with a public key, a certificate or a private key")
		}
		var key any
		switch block.Type {
		case "PUBLIC KEY":
			key, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			key, err = x509.ParsePKCS1PublicKey(block.Bytes)
		case "CERTIFICATE":
			var c *x509.Certificate
			if c, err = x509.ParseCertificate(block.Bytes); err == nil {
				key = c.PublicKey
			}
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, nil, errEncrypted
			}
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, nil, errEncrypted
			}
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, nil, errEncrypted
		default: // such as EC PARAMETERS
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("holds a broken %s: %w", block.Type, err)
		}
		switch k := key.(type) {
		case *rsa.PrivateKey:
			return &k.PublicKey, k, nil
		case *ecdsa.PrivateKey:
			return &k.PublicKey, k, nil
		case ed25519.PrivateKey:
			return k.Public(), k, nil
		case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey:
			return k, nil, nil
		}
		return nil, nil, fmt.Errorf("holds a key of a kind that signs no JWTs, %T", key)
	}
}

var errEncrypted = errors.New("holds a private key that is encrypted; give it as plain text, or its public half")

// A prefixes is addresses and networks.
type prefixes struct{ to *[]netip.Prefix }

func (p prefixes) set(v any) error {
	var texts []string
	if err := (list{&texts}).set(v); err != nil {
		return err
	}
	*p.to = nil
	var errs []error
	for i, s := range texts {
		prefix, err := netip.ParsePrefix(s)
		if a, notAddress := netip.ParseAddr(s); notAddress == nil && a.Zone() == "" {
			a = a.Unmap()
			prefix, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			errs = append(errs, &memberError{fmt.Sprintf("[%d]", i), fmt.Errorf("%s is no address and no network; give one such as 10.0.0.1 or 10.0.0.0/8", described(s))})
			continue
		}
		*p.to = append(*p.to, prefix.Masked())
	}
	return errors.Join(errs...)
}

func (p prefixes) show() any {
	texts := []string{}
	for _, prefix := range *p.to {
		if prefix.IsSingleIP() {
			texts = append(texts, prefix.Addr().String())
		} else {
			texts = append(texts, prefix.String())
		}
	}
	return texts
}
