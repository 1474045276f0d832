package amqp

// Match returns what the wildcards of a binding stand for in a routing key.
func Match(pattern, key string) ([]string, bool) {
	b := parseBinding(pattern)
	return b.match(key)
}
