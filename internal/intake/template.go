package intake

import (
	"fmt"
	"strconv"
	"strings"
)

// A Template is text with variables in braces, such as "details.{1}". Two braces stand
// for one. The zero value is the empty text.
type Template struct {
	text  string
	parts []part
}

// A part is text, or else a variable.
type part struct{ text, variable string }

// Variables are those that a template may have.
type Variables struct {
	// Names are those with a name. One that ends in a colon is followed by a name, as
	// "header:" is in {header:X-A}.
	Names []string
	// Wildcards is how many are numbers from 1, for what wildcards stand for; -1: any
	// number.
	Wildcards int
}

// has reports whether there is a variable.
func (v Variables) has(variable string) bool {
	for _, name := range v.Names {
		if variable == name && !strings.HasSuffix(name, ":") || strings.HasSuffix(name, ":") && strings.HasPrefix(variable, name) && variable != name {
			return true
		}
	}
	n, err := strconv.Atoi(variable)
	return err == nil && n >= 1 && (n <= v.Wildcards || v.Wildcards < 0) && strconv.Itoa(n) == variable
}

// String lists them.
func (v Variables) String() string {
	var all []string
	for _, name := range v.Names {
		if strings.HasSuffix(name, ":") {
			name += "NAME"
		}
		all = append(all, "{"+name+"}")
	}
	for n := range v.Wildcards {
		all = append(all, fmt.Sprintf("{%d}", n+1))
	}
	if v.Wildcards < 0 {
		all = append(all, "{1} and so on")
	}
	return strings.Join(all, ", ")
}

// Parse reads a template that may have variables.
func Parse(text string, known Variables) (Template, error) {
	t := Template{text: text}
	for rest := text; rest != ""; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			t.add(rest)
			break
		}
		t.add(rest[:i])
		brace := rest[i : i+1]
		rest = rest[i+1:]
		if strings.HasPrefix(rest, brace) {
			t.add(brace)
			rest = rest[1:]
			continue
		}
		if brace == "}" {
			return Template{}, fmt.Errorf("%q: a } stands alone; write }} for one", text)
		}
		variable, after, closed := strings.Cut(rest, "}")
		switch {
		case !closed:
			return Template{}, fmt.Errorf("%q: {%s is not closed; write {{ for one {", text, variable)
		case !known.has(variable):
			return Template{}, fmt.Errorf("%q: there is no {%s} here; there are %s", text, variable, known)
		}
		t.parts = append(t.parts, part{variable: variable})
		rest = after
	}
	return t, nil
}

// add appends text.
func (t *Template) add(text string) {
	if text == "" {
		return
	}
	if n := len(t.parts); n > 0 && t.parts[n-1].variable == "" {
		t.parts[n-1].text += text
		return
	}
	t.parts = append(t.parts, part{text: text})
}

// Text returns the template with what value says in place of its variables.
func (t *Template) Text(value func(variable string) string) string {
	if text, ok := t.fixed(); ok {
		return text
	}
	if len(t.parts) == 1 {
		return value(t.parts[0].variable)
	}
	var b strings.Builder
	for _, p := range t.parts {
		if p.variable == "" {
			b.WriteString(p.text)
		} else {
			b.WriteString(value(p.variable))
		}
	}
	return b.String()
}

// fixed returns the text of a template without variables.
func (t *Template) fixed() (string, bool) {
	switch {
	case len(t.parts) == 0:
		return "", true
	case len(t.parts) == 1 && t.parts[0].variable == "":
		return t.parts[0].text, true
	}
	return "", false
}

// Wildcards returns what each wildcard of a pattern matched in a name, token by token:
// one stands for a whole token, and the last, if it is rest, for all that are left. It
// reports false where the name does not match.
func Wildcards(pattern, name, separator, one, rest string) ([]string, bool) {
	var found []string
	patterns, names := strings.Split(pattern, separator), strings.Split(name, separator)
	for i, p := range patterns {
		switch {
		case p == rest && rest != "" && i == len(patterns)-1:
			if i > len(names) {
				return nil, false
			}
			return append(found, strings.Join(names[i:], separator)), true
		case i >= len(names):
			return nil, false
		case p == one:
			found = append(found, names[i])
		case p != names[i]:
			return nil, false
		}
	}
	return found, len(patterns) == len(names)
}
