package eventsource

// Portable returns a copy of settings, nil being the defaults, with which every
// consumer is served by net/http, as where there is no reactor.
func Portable(settings *Settings) *Settings {
	var s Settings
	if settings != nil {
		s = *settings
	}
	s.portable = true
	return &s
}

// HasReactor says that plain HTTP/1.1 connections are served by the reactor.
const HasReactor = hasReactor

// Held returns how many channels and wildcards a server has in memory, and the
// bytes that are counted for them and their events.
func Held(s *Server) (channels int, bytes int64) {
	r := s.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.named) + len(r.wild), r.budget.held
}

// ParseNames is parseNames with the default limit.
func ParseNames(path string, wild bool) ([]string, *Problem) {
	return parseNames(path, wild, defaultLimitChannelsPerConsumer)
}

// Grants reports whether a key that is granted a name or wildcard may follow, and
// publish to, what is named; ok is false where one of them can't stand there.
func Grants(pattern, name string) (follows, publishes, ok bool) {
	k := Key{Token: "k", Publish: []string{pattern}}
	if pattern != globalName {
		k.Subscribe = k.Publish
	}
	s := Settings{Public: []string{}, Keys: []Key{k}}
	if s.Validate() != nil || validPattern(name) != nil && name != globalName {
		return false, false, false
	}
	e := s.effective()
	a := newAccess(&e, newStats())
	h, _ := k.hash()
	v := visitor{identity: a.keys[a.salted(h)]}
	follows = name != globalName && a.mayFollow(v, name) == nil
	publishes = !isWildcard(name) && a.mayPublish(v, name) == nil
	return follows, publishes, true
}

// APIOperations returns the verbs and paths of the API.
func APIOperations() (all [][2]string) {
	for _, op := range operations {
		all = append(all, [2]string{op.verb, op.path})
	}
	return all
}

// NewMemory returns the in-memory backend.
func NewMemory() Backend { return newMemory() }
