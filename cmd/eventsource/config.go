package main

import (
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
)

func (m *Main) configCommand() *cobra.Command {
	check := false
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the configuration in force, without its secrets",
		Long: `Print the configuration that "eventsource serve" would have with the same files,
variables and flags, as YAML: each key, and where it was set unless it is at its default.
Secrets are masked.`,
		Example: `  eventsource config
  eventsource config --check -c new.yml         # only say whether it is right`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := m.configure(cmd.Flags())
			if err != nil {
				return err
			}
			if check {
				_, err = fmt.Fprintln(m.Stdout, "the configuration is right")
				return err
			}
			shown, err := c.show()
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(m.Stdout, shown)
			return err
		},
	}
	settingsFlags(cmd)
	cmd.Flags().BoolVar(&check, "check", false, "print nothing but whether it is right")
	return cmd
}

// show returns the configuration as YAML, with secrets masked.
func (c *config) show() (string, error) {
	var document yaml.MapSlice
	comments := yaml.CommentMap{}
	for _, k := range c.keys() {
		document = put(document, strings.Split(k.name, "."), k.value.show())
		if o, ok := c.origins[k.name]; ok {
			comments["$."+k.name] = []*yaml.Comment{yaml.HeadComment(" " + o.at(k.name))}
		}
	}
	shown, err := yaml.MarshalWithOptions(document, yaml.WithComment(comments), yaml.IndentSequence(true))
	if err != nil {
		return "", fmt.Errorf("print the configuration: %w", err)
	}
	return string(shown), nil
}

// put returns a document with a value at a path.
func put(document yaml.MapSlice, path []string, v any) yaml.MapSlice {
	if len(path) == 1 {
		return append(document, yaml.MapItem{Key: path[0], Value: v})
	}
	last := len(document) - 1
	if last < 0 || document[last].Key != path[0] {
		document, last = append(document, yaml.MapItem{Key: path[0], Value: yaml.MapSlice{}}), last+1
	}
	document[last].Value = put(document[last].Value.(yaml.MapSlice), path[1:], v)
	return document
}
