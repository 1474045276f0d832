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
