package eventsource_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/railsmechanic/eventsource"
)

// Whatever comes as a token, it is accepted only when it is signed with the secret
// by HS256, and refused with 401 otherwise.
func FuzzToken(f *testing.F) {
	valid := granted(f, claims{"iss": "us", "eventsource": claims{"subscribe": []string{"a.*"}, "admin": true}})
	parts := strings.Split(valid, ".")
	for _, seed := range []string{
		valid, "", ".", "..", "...", parts[0] + "." + parts[1] + ".", parts[0] + ".." + parts[2],
		segment(`{"alg":"none"}`) + "." + parts[1] + ".", segment(`{"alg":null}`) + "." + parts[1] + "." + parts[2],
		segment(`{"alg":"HS256","alg":"none"}`) + "." + parts[1] + "." + parts[2], segment(`[]`) + "." + segment(`{}`) + ".",
		segment(`{"alg":"HS256","crit":["b64"],"b64":false}`) + "." + parts[1] + "." + parts[2],
		granted(f, claims{"exp": 1e300}), granted(f, claims{"exp": -1}), granted(f, claims{"nbf": "x"}), granted(f, claims{"aud": claims{}}),
		granted(f, claims{"iss": []int{1}}), granted(f, claims{"eventsource": claims{"publish": []any{nil}}}), granted(f, claims{"sub": nil}),
	} {
		f.Add(seed)
	}
	issuers := []eventsource.Issuer{{Key: secret, Issuer: "us"}, {Key: public(signers()["RS256"])}, {Key: append([]byte("x"), secret...)}}
	f.Fuzz(func(t *testing.T, token string) {
		got, err := eventsource.Inspect(t.Context(), token, issuers)
		if err != nil {
			if p, ok := errors.AsType[*eventsource.Problem](err); !ok || p.Status != 401 {
				t.Errorf("refused with %v", err)
			}
			if got.Subject != "" || got.Admin || got.Subscribe != nil || got.Publish != nil {
				t.Errorf("it was refused, and yet grants %+v", got)
			}
			return
		}
		signed, signature, _ := cutLast(token, ".")
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(signed))
		b, err := base64.RawURLEncoding.DecodeString(signature)
		if err != nil || !hmac.Equal(b, mac.Sum(nil)) || got.Header["alg"] != "HS256" || got.Claims["iss"] != "us" {
			t.Errorf("accepted is %q, which nobody has signed", token)
		}
	})
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// Whatever the claim holds, it grants what it says as lists of names and wildcards,
// or the token is refused.
func FuzzGrantsClaim(f *testing.F) {
	for _, seed := range []string{`{}`, `null`, `[]`, `"x"`, `{"subscribe":["a","b.*"],"publish":["all"],"admin":true}`, `{"subscribe":"a"}`,
		`{"publish":[1]}`, `{"admin":"yes"}`, `{"subscribe":["all"]}`, `{"subscribe":["@me"]}`, `{"Subscribe":["a"]}`, `{"subscribe":[]}`, `{"subscribe":null}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, claim string) {
		var v any
		if json.Unmarshal([]byte(claim), &v) != nil {
			return
		}
		got, err := eventsource.Inspect(t.Context(), granted(t, claims{"eventsource": v}), []eventsource.Issuer{{Key: secret}})
		members, _ := v.(map[string]any)
		if err != nil {
			if v == nil || members != nil && members["subscribe"] == nil && members["publish"] == nil && members["admin"] == nil {
				t.Errorf("%s is refused: %v", claim, err)
			}
			return
		}
		list := func(member string) (names []string) {
			all, _ := members[member].([]any)
			for _, m := range all {
				names = append(names, m.(string))
			}
			return names
		}
		admin, _ := members["admin"].(bool)
		if !equal(got.Subscribe, list("subscribe")) || !equal(got.Publish, list("publish")) || got.Admin != admin {
			t.Errorf("%s grants %+v", claim, got)
		}
	})
}

func equal(a, b []string) bool {
	return strings.Join(a, " ") == strings.Join(b, " ") && len(a) == len(b)
}

// Who is granted a name or wildcard may follow and publish to exactly what stands
// below it, as a matcher finds it that looks at one token after the other.
func FuzzGrants(f *testing.F) {
	for _, seed := range [][2]string{{"a.*", "a.b"}, {"a.*", "a"}, {"a.*", "ab.c"}, {"*", "a"}, {"a", "a"}, {"a.b", "a.b.c"}, {"users.*", "users.x"},
		{"*", "users.x"}, {"users", "users"}, {"a.*", "a.*"}, {"a.*", "a.b.*"}, {"a.b.*", "a.*"}, {"*", "*"}, {"users.a", "users.*"}, {"all", "all"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.ContainsAny(name, ",/") {
			return // several, and another way to write a dot
		}
		follows, publishes, ok := eventsource.Grants(pattern, name)
		if !ok {
			return
		}
		covered := matches(strings.Split(pattern, "."), strings.Split(name, "."))
		wildcard := name == "*" || strings.HasSuffix(name, ".*")
		private := strings.HasPrefix(name, "users.")
		if want := covered && name != "*" && name != "all" && (!private || strings.HasPrefix(pattern, "users.")); follows != want {
			t.Errorf("who is granted %q may follow %q: %v", pattern, name, follows)
		}
		if want := covered && !wildcard && (name != "all" || pattern == "all"); publishes != want {
			t.Errorf("who is granted %q may publish to %q: %v", pattern, name, publishes)
		}
	})
}

// matches reports whether everything that name stands for is below pattern.
func matches(pattern, name []string) bool {
	switch {
	case pattern[0] == "*" && len(pattern) == 1:
		return len(name) > 0
	case len(pattern) == 0 || len(name) == 0:
		return len(pattern) == len(name)
	case pattern[0] != name[0]:
		return false
	case len(pattern) == 1 || len(name) == 1:
		return len(pattern) == len(name)
	}
	return matches(pattern[1:], name[1:])
}
