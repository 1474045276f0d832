package redis

import "time"

// AskAfter has a source ask Redis for a sign of life after that silence.
func AskAfter(s *Source, silence time.Duration) { s.pingAfter = silence }

// Match returns what the wildcards of a pattern stand for in a name.
func Match(pattern, name string) ([]string, bool) {
	g := compile(pattern)
	return g.match(name)
}
