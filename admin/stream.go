package admin

import (
	"context"
	"net/http"
	"time"

	"github.com/railsmechanic/eventsource"
)

// period is how often those who look get a document.
const period = time.Second

// documentType is the type of the stream's events.
const documentType = "status"

// A stream brings the document to who looks, at once and then each second.
type stream struct{ *Pages }

var _ eventsource.Relay = stream{}

// Admit has only administrators look.
func (s stream) Admit(*http.Request) (string, error) { return "", nil }

// Relay sends each document until the watcher goes.
func (s stream) Relay(ctx context.Context, r *http.Request, out *eventsource.Stream) error {
	s.enter()
	defer s.leave()
	for l := s.look(); ctx.Err() == nil; l = s.last() {
		// Asked for each: a reload may have taken the right away.
		if err := out.Send(eventsource.Event{Type: documentType, Data: l.text(s.knows(r))}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-l.next:
		}
	}
	return nil
}

// enter counts a watcher; with the first the documents begin.
func (p *Pages) enter() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers++; p.watchers == 1 {
		p.stop = make(chan struct{})
		go p.tick(p.stop)
	}
}

// leave counts it no longer; with the last they end.
func (p *Pages) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers--; p.watchers == 0 {
		close(p.stop)
		p.followed.stop()
	}
}

// tick makes a document each period until stop is closed.
func (p *Pages) tick(stop <-chan struct{}) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		p.making.Lock()
		p.renew()
		p.making.Unlock()
	}
}
