package eventsource

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

const (
	globalName   = "all" // reaches every consumer on every channel
	personalName = "@me" // stands for users.{subject}
	// personalPrefix begins the channels of persons, which are private.
	personalPrefix = "users."
	maxName        = 255 // bytes

	nameRule     = "a channel name is 1 to 255 bytes of A-Z a-z 0-9 - _ ~ : @ + | in tokens joined by . or /"
	reservedRule = "the first tokens all, api, admin, debug, health, metrics, favicon.ico and @me are reserved"
)

// nameByte says which bytes a token may hold.
var nameByte = func() (ok [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~:@+|" {
		ok[c] = true
	}
	return ok
}()

// CheckName reports why no event can be published to a channel of this name, nil when one
// can be. "all" and "@me", which are no channel's own, are refused like other reserved names.
func CheckName(name string) error { return validName(name) }

// validName reports why name is no channel that events can be published to and
// followed on. "all" is not one.
func validName(name string) error {
	if len(name) == 0 || len(name) > maxName {
		return fmt.Errorf("a channel name of %d bytes: %s", len(name), nameRule)
	}
	token := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			if token == 0 {
				return fmt.Errorf("%q has an empty token: %s", name, nameRule)
			}
			token = 0
		case nameByte[c]:
			token++
		default:
			return fmt.Errorf("%q holds %q: %s", name, c, nameRule)
		}
	}
	if token == 0 {
		return fmt.Errorf("%q has an empty token: %s", name, nameRule)
	}
	if reserved(name) {
		return fmt.Errorf("%q is reserved: %s", name, reservedRule)
	}
	return nil
}

// CheckChannel reports why events can't be published to a channel, or to several joined
// by commas: what would be right. "all" is one.
func CheckChannel(channel string) error {
	names, p := parseNames(channel, false, len(channel)+1)
	switch {
	case p != nil:
		return p
	case slices.Contains(names, personalName):
		return errors.New("@me stands for the subject of a request's token: name the channel")
	}
	return nil
}

// reserved reports whether the first token of name is the server's own.
func reserved(name string) bool {
	first, _, _ := strings.Cut(name, ".")
	switch first {
	case globalName, personalName, "api", "admin", "debug", "health", "metrics":
		return true
	case "favicon":
		return name == "favicon.ico" || strings.HasPrefix(name, "favicon.ico.")
	}
	return false
}

// validPattern reports why p is neither a name nor a wildcard: "*", or a name
// with a last token "*".
func validPattern(p string) error {
	if p == "*" {
		return nil
	}
	name, wild := strings.CutSuffix(p, ".*")
	if wild && len(p) > maxName {
		return fmt.Errorf("a wildcard of %d bytes: %s", len(p), nameRule)
	}
	return validName(name)
}

// private reports whether a channel, or what a wildcard stands for, is of persons
// only.
func private(name string) bool { return strings.HasPrefix(name, personalPrefix) }

// isWildcard reports whether a valid pattern stands for the channels below it.
func isWildcard(p string) bool { return strings.HasSuffix(p, "*") }

// covers reports whether a valid pattern holds everything that name, a name or
// a wildcard, stands for.
func covers(pattern, name string) bool {
	if !isWildcard(pattern) {
		return pattern == name
	}
	return strings.HasPrefix(name, pattern[:len(pattern)-1]) && len(name) >= len(pattern)
}

// parseNames returns the names that a path below the base path, or a Go call,
// joins by commas, each once, in order. With wild, wildcards may stand among
// them. "all" and "@me" come back as they are.
func parseNames(path string, wild bool, limit int) ([]string, *Problem) {
	return appendNames(nil, path, wild, limit)
}

// appendNames is parseNames into names, which is empty.
func appendNames(names []string, path string, wild bool, limit int) ([]string, *Problem) {
	if n := strings.Count(path, ",") + 1; n > limit {
		return nil, newProblem(http.StatusBadRequest,
			fmt.Sprintf("%d channels in one request: at most %d may be joined by commas", n, limit))
	}
	for more := true; more; {
		var part string
		part, path, more = strings.Cut(path, ",")
		name := strings.ReplaceAll(part, "/", ".")
		if name != globalName && name != personalName {
			if err := validName(name); err != nil {
				isPattern := validPattern(name) == nil
				if isPattern && !wild {
					return nil, newProblem(http.StatusNotFound,
						fmt.Sprintf("%q is a wildcard, which can only be followed: name the channel itself", name))
				}
				if !isPattern {
					return nil, newProblem(http.StatusNotFound, clip(err.Error()))
				}
			}
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// clip bounds what a refusal repeats of a request.
func clip(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
