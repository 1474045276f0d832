package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
)

const backendRule = `there are "memory:" and "sqlite:FILE"`

// A backendURL says what keeps the events.
type backendURL struct{ to *string }

func (b backendURL) set(v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("%s is no URL; %s", described(v), backendRule)
	}
	// What follows the scheme may hold a password.
	scheme, rest, found := strings.Cut(s, ":")
	switch {
	case !found:
		return errors.New("is no URL; " + backendRule)
	case scheme == "memory" && rest != "":
		return errors.New(`nothing follows "memory:"`)
	case scheme == "sqlite":
		if _, _, err := sqliteFile(s); err != nil {
			return err
		}
	case scheme != "memory":
		return fmt.Errorf("there is no backend %q in this version; %s", scheme+":", backendRule)
	}
	*b.to = s
	return nil
}

func (b backendURL) show() any { return *b.to }

// sqliteFile returns the file that a URL names, and how it is kept.
func sqliteFile(backend string) (file string, o *sqlite.Options, err error) {
	rest, ok := strings.CutPrefix(backend, "sqlite:")
	if !ok {
		return "", nil, fmt.Errorf("it is kept in no file; %s", backendRule)
	}
	file, query, _ := strings.Cut(strings.TrimPrefix(rest, "//"), "?")
	if file == "" {
		return "", nil, errors.New("names no file; give one such as sqlite:events.db")
	}
	parameters, err := url.ParseQuery(query)
	if err != nil {
		return "", nil, errors.New("its parameters can't be read; give one such as sqlite:events.db?synchronous=normal")
	}
	o = &sqlite.Options{}
	for name, values := range parameters {
		if name != "synchronous" || len(values) != 1 || values[0] != "full" && values[0] != "normal" {
			return "", nil, errors.New("the one parameter after sqlite:FILE is ?synchronous=full or ?synchronous=normal")
		}
		o.Synchronous = values[0]
	}
	return file, o, nil
}

// openBackend returns what keeps the events; nil is memory.
func (c *config) openBackend(log *slog.Logger) (eventsource.Backend, error) {
	if c.backend == "memory:" {
		return nil, nil
	}
	file, o, err := sqliteFile(c.backend)
	if err != nil {
		return nil, err
	}
	o.Logger = log
	return sqlite.New(file, o)
}

// A ruleList is the settings of some channels, in order.
type ruleList struct {
	to *[]eventsource.ChannelSettings
}

const ruleExample = `give one such as {match: "users.*", retention: {age: 2160h}}`

func (l ruleList) set(v any) error {
	v = fromText(v)
	members, ok := v.([]any)
	if !ok && v != nil {
		return fmt.Errorf("%s is no list; %s in it", described(v), ruleExample)
	}
	var errs []error
	all := make([]eventsource.ChannelSettings, len(members))
	for i, m := range members {
		path := fmt.Sprintf("[%d]", i)
		given, ok := m.(map[string]any)
		if !ok {
			errs = append(errs, &memberError{path, fmt.Errorf("%s has no match; %s", described(m), ruleExample)})
			continue
		}
		errs = append(errs, setRule(&all[i], path, given)...)
	}
	*l.to = all
	return errors.Join(errs...)
}

// setRule takes the keys of the settings of some channels.
func setRule(to *eventsource.ChannelSettings, path string, given map[string]any) []error {
	unlimited := -1
	errs := setMembers(path, given, map[string]value{
		"match":     text{&to.Match},
		"consumers": number[int]{&to.Consumers, 1, 1<<31 - 1, &unlimited},
		"history":   nil,
		"retention": nil,
	})
	bounds := func(name string, known map[string]value) {
		members, ok := given[name].(map[string]any)
		if !ok {
			errs = append(errs, &memberError{path + "." + name, fmt.Errorf("%s has neither events nor age; give one such as {events: 1000}", described(given[name]))})
			return
		}
		errs = append(errs, setMembers(path+"."+name, members, known)...)
	}
	if given["history"] != nil {
		to.History = &eventsource.History{}
		bounds("history", map[string]value{"events": count{&to.History.Events}, "age": duration{to: &to.History.Age, none: true, zero: "0 would keep nothing; for that set events to 0"}})
	}
	if given["retention"] != nil {
		to.Retention = &eventsource.Retention{}
		bounds("retention", map[string]value{
			"events": number[int]{&to.Retention.Events, 1, 1<<31 - 1, &unlimited},
			"age":    duration{to: &to.Retention.Age, none: true, zero: `0 would retain nothing; for no bound give "none"`},
		})
	}
	return errs
}

func (l ruleList) show() any {
	all := []any{}
	for _, c := range *l.to {
		shown := yaml.MapSlice{{Key: "match", Value: c.Match}}
		bounds := func(name string, events int, age any, none any) {
			var b yaml.MapSlice
			if events != 0 {
				b = append(b, yaml.MapItem{Key: "events", Value: events})
				if events < 0 {
					b[0].Value = none
				}
			}
			if age != "0s" {
				b = append(b, yaml.MapItem{Key: "age", Value: age})
			}
			shown = append(shown, yaml.MapItem{Key: name, Value: b})
		}
		if h := c.History; h != nil {
			bounds("history", h.Events, duration{to: &h.Age}.show(), 0)
		}
		if r := c.Retention; r != nil {
			bounds("retention", r.Events, duration{to: &r.Age}.show(), "none")
		}
		switch {
		case c.Consumers > 0:
			shown = append(shown, yaml.MapItem{Key: "consumers", Value: c.Consumers})
		case c.Consumers < 0:
			shown = append(shown, yaml.MapItem{Key: "consumers", Value: "none"})
		}
		all = append(all, shown)
	}
	return all
}

func (m *Main) backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the events of a SQLite backend into a file, also while a server runs",
		Long: `Copy the file of a SQLite backend into FILE, which must not exist. A server may run on it
meanwhile: the copy has everything up to one publish, and can be served from as it is.

Which file is copied the configuration says, or --backend.`,
		Example: `  eventsource backup /backups/events.db
  eventsource backup --backend sqlite:events.db copy.db
  eventsource serve --backend sqlite:copy.db`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return m.backup(cmd, args[0]) },
	}
	cmd.Flags().StringP("config", "c", "", "read `FILE` in place of /etc/eventsource/config.yml and config.yml beside the program")
	cmd.Flags().String("backend", "", "copy what is kept in this `URL`: sqlite:FILE")
	return cmd
}

// backup copies what the backend keeps into a file.
func (m *Main) backup(cmd *cobra.Command, to string) error {
	c, err := m.read(cmd.Flags())
	if err != nil {
		return err
	}
	file, _, err := sqliteFile(c.backend)
	if err != nil {
		return usageError{fmt.Errorf("backend %s: %w", strings.SplitAfter(c.backend, ":")[0], err)}
	}
	return sqlite.Backup(cmd.Context(), file, to)
}
