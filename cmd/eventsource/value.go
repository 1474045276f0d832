package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// A value is where a key of the configuration is kept: it reads what a file, a
// variable or a flag has for it, and shows what is in force.
type value interface {
	// set takes what YAML makes of the file's text, or the text of a variable or
	// a flag. Its error says what would be right.
	set(v any) error
	// show returns what config prints.
	show() any
}

// A memberError is about one member of a key's value, such as
// "sources[0].path".
type memberError struct {
	path string
	err  error
}

func (e *memberError) Error() string { return e.path + ": " + e.err.Error() }
func (e *memberError) Unwrap() error { return e.err }

// A text is a string.
type text struct{ to *string }

func (t text) set(v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf(`%s is no text; write it in quotes, "%v"`, described(v), v)
	}
	*t.to = s
	return nil
}

func (t text) show() any { return *t.to }

// A secret is a string that is shown to nobody.
type secret struct{ to *string }

func (s secret) set(v any) error {
	t, ok := v.(string)
	if !ok {
		return errors.New("is no text; write it in quotes")
	}
	*s.to = t
	return nil
}

func (s secret) show() any { return masked(*s.to) }

func masked(secret string) string {
	if secret == "" {
		return ""
	}
	return "********"
}

// A choice is one of a few words.
type choice struct {
	to    *string
	words []string
}

func (c choice) set(v any) error {
	if s, ok := v.(string); ok && slices.Contains(c.words, s) {
		*c.to = s
		return nil
	}
	return fmt.Errorf("%s is none of %s", described(v), strings.Join(c.words, ", "))
}

func (c choice) show() any { return *c.to }

// A toggle is true or false.
type toggle struct{ to *bool }

func (t toggle) set(v any) error {
	switch v {
	case true, "true":
		*t.to = true
	case false, "false":
		*t.to = false
	default:
		return fmt.Errorf("%s is neither true nor false", described(v))
	}
	return nil
}

func (t toggle) show() any { return *t.to }

// A number is a whole one within bounds. With none, "none" may stand for it.
type number[T int | uint] struct {
	to        *T
	low, high int64
	none      *T // what to holds for "none"
}

func (n number[T]) set(v any) error {
	if n.none != nil && v == "none" {
		*n.to = *n.none
		return nil
	}
	or := ""
	if n.none != nil {
		or = `, or "none"`
	}
	i, err := integer(v)
	if err != nil {
		return fmt.Errorf("%s is no whole number%s", described(v), or)
	}
	if i < n.low || i > n.high {
		if n.high == math.MaxInt {
			return fmt.Errorf("%d is below %d%s", i, n.low, or)
		}
		return fmt.Errorf("%d is not between %d and %d%s", i, n.low, n.high, or)
	}
	*n.to = T(i)
	return nil
}

func (n number[T]) show() any {
	if n.none != nil && *n.to == *n.none {
		return "none"
	}
	return *n.to
}

// A rate is how often something may happen in a second, or "none": 0.
type rate struct{ to *float64 }

func (r rate) set(v any) error {
	var f float64
	switch n := v.(type) {
	case float64:
		f = n
	case string:
		if n == "none" {
			*r.to = 0
			return nil
		}
		var err error
		if f, err = strconv.ParseFloat(n, 64); err != nil {
			return fmt.Errorf(`%s is no number; give one such as 100 or 0.5, or "none"`, described(v))
		}
	default:
		i, err := integer(v)
		if err != nil {
			return fmt.Errorf(`%s is no number; give one such as 100 or 0.5, or "none"`, described(v))
		}
		f = float64(i)
	}
	if !(f > 0) {
		return fmt.Errorf(`%v is not above 0; give a number such as 100 or 0.5, or "none"`, f)
	}
	*r.to = f
	return nil
}

func (r rate) show() any {
	switch f := *r.to; {
	case f == 0:
		return "none"
	case f == math.Trunc(f) && f < 1<<53:
		return int64(f)
	default:
		return f
	}
}

// A count is how many events are kept; 0 and "none" keep none.
type count struct{ to *int }

func (c count) set(v any) error {
	if v == "none" {
		*c.to = -1
		return nil
	}
	i, err := integer(v)
	switch {
	case err != nil || i > math.MaxInt32:
		return fmt.Errorf("%s is no number of events; give one such as 256, or 0 to keep none", described(v))
	case i < -1:
		return fmt.Errorf("%d is below 0, which keeps none", i)
	case i <= 0:
		*c.to = -1
	default:
		*c.to = int(i)
	}
	return nil
}

func (c count) show() any { return max(*c.to, 0) }

// A duration is a time with its unit. Where zero is given a meaning it is none:
// -1 in the settings.
type duration struct {
	to   *time.Duration
	none bool   // "none" and -1 are possible
	zero string // what is said to 0; empty: 0 is none, too
}

func (d duration) set(v any) error {
	or := ""
	if d.none {
		or = `, or "none"`
	}
	var t time.Duration
	switch i, err := integer(v); {
	case d.none && (v == "none" || err == nil && i == -1):
		*d.to = -1
		return nil
	case err == nil && i != 0:
		return fmt.Errorf("%d has no unit; give a duration such as %ds%s", i, max(i, -i), or)
	case err != nil:
		s, ok := v.(string)
		if t, err = time.ParseDuration(s); !ok || err != nil {
			return fmt.Errorf("%s is no duration; give one such as 5s, 1m30s or 250ms%s", described(v), or)
		}
	}
	switch {
	case t < 0:
		return fmt.Errorf("%v is negative; give a duration such as 5s%s", t, or)
	case t == 0 && d.zero != "":
		return errors.New(d.zero)
	case t == 0:
		t = -1
	}
	*d.to = t
	return nil
}

func (d duration) show() any {
	if *d.to < 0 {
		return "none"
	}
	s := d.to.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// A size is a number of bytes, with or without a unit.
type size[T int | int64] struct{ to *T }

var units = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1}}

func (s size[T]) set(v any) error {
	wrong := fmt.Errorf("%s is no size; give one such as 64MiB, 16KiB or 4096", described(v))
	unit := int64(1)
	if t, ok := v.(string); ok {
		t = strings.TrimSpace(t)
		for _, u := range units {
			if number, ok := strings.CutSuffix(t, u.name); ok {
				t, unit = strings.TrimSpace(number), u.bytes
				break
			}
		}
		v = t
	}
	n, err := integer(v)
	if err != nil || n > math.MaxInt64/unit || int64(T(n*unit)) != n*unit {
		return wrong
	}
	if n < 1 {
		return fmt.Errorf("%d is below 1; give a size such as 64MiB, 16KiB or 4096", n)
	}
	*s.to = T(n * unit)
	return nil
}

func (s size[T]) show() any {
	for _, u := range units[:3] {
		if n := int64(*s.to); n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return *s.to
}

// A list is texts, which a variable joins by commas. One alone needs no list.
type list struct{ to *[]string }

func (l list) set(v any) error {
	if s, ok := v.(string); ok {
		if !strings.HasPrefix(strings.TrimSpace(s), "[") {
			*l.to = splitList(s)
			return nil
		}
		v = nil
		if err := yaml.Unmarshal([]byte(s), &v); err != nil {
			return errors.New(`is no list; give one such as "a, b" or ["a", "b"]`)
		}
	}
	members, ok := v.([]any)
	if !ok {
		return fmt.Errorf(`%s is no list; give one such as ["a", "b"]`, described(v))
	}
	texts := make([]string, 0, len(members))
	for _, m := range members {
		s, ok := m.(string)
		if !ok {
			return fmt.Errorf(`%s in the list is no text; write it in quotes, "%v"`, described(m), m)
		}
		texts = append(texts, s)
	}
	*l.to = texts
	return nil
}

func (l list) show() any { return *l.to }

// An origins is one text or a list of them, joined by commas in the settings.
type origins struct{ to *string }

func (o origins) set(v any) error {
	var all []string
	if err := (list{&all}).set(v); err != nil {
		return err
	}
	*o.to = strings.Join(all, ",")
	return nil
}

func (o origins) show() any {
	if all := splitList(*o.to); len(all) > 1 {
		return all
	}
	return *o.to
}

// A dictionary is texts by name.
type dictionary struct{ to *map[string]string }

func (d dictionary) set(v any) error {
	if s, ok := v.(string); ok {
		v = nil
		if err := yaml.Unmarshal([]byte(s), &v); err != nil {
			v = s
		}
	}
	members, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%s is no set of names and values; give one such as {X-Name: value}", described(v))
	}
	texts := make(map[string]string, len(members))
	for _, k := range slices.Sorted(maps.Keys(members)) {
		s, ok := members[k].(string)
		if !ok {
			return fmt.Errorf(`%s: %s is no text; write it in quotes, "%v"`, k, described(members[k]), members[k])
		}
		texts[k] = s
	}
	*d.to = texts
	return nil
}

func (d dictionary) show() any { return *d.to }

// integer returns the whole number that v is.
func integer(v any) (int64, error) {
	switch v := v.(type) {
	case int64:
		return v, nil
	case uint64:
		if v <= math.MaxInt64 {
			return int64(v), nil
		}
	case string:
		return strconv.ParseInt(v, 10, 64)
	}
	return 0, errors.New("no whole number")
}

// described returns v as an error repeats it.
func described(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case string:
		if strings.Contains(v, "://") && strings.Contains(v, "@") {
			return "a URL" // in which a password may be
		}
		if len(v) > 64 {
			v = v[:64] + "…"
		}
		return strconv.Quote(v)
	case []any:
		return "a list"
	case map[string]any:
		return "a set of keys"
	}
	return fmt.Sprint(v)
}

// kindOf is described for what may be, or hold, a secret: of text it says no more than that.
func kindOf(v any) string {
	if _, isText := v.(string); isText {
		return "a text"
	}
	return described(v)
}

// splitList returns the members of a comma list without the white space around
// them, and without empty ones.
func splitList(s string) []string {
	members := []string{}
	for m := range strings.SplitSeq(s, ",") {
		if m = strings.TrimSpace(m); m != "" {
			members = append(members, m)
		}
	}
	return members
}
