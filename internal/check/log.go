package check

import (
	"bytes"
	"log/slog"
	"sync"
)

// A Log is what was logged, or what a process wrote, which can be read meanwhile.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write keeps what is logged.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns all of it.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Logger returns one that logs everything here.
func (l *Log) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
