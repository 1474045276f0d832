package intake_test

import (
	"context"
	"testing"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/check"
	"github.com/railsmechanic/eventsource/internal/intake"
	"github.com/railsmechanic/eventsource/internal/sourcetest"
)

// TestMain fails the package when goroutines are left over.
func TestMain(m *testing.M) {
	check.Main(m)
}

// A hose is a source that takes what a test hands it.
type hose struct {
	intake *intake.Intake
	tasks  chan func(context.Context, *intake.Flow) error
	ended  chan struct{} // has a value when a Run has returned
}

// Run does what the test hands over, with one flow for each Run.
func (h *hose) Run(ctx context.Context, feed *eventsource.Feed) error {
	defer func() {
		select {
		case h.ended <- struct{}{}:
		default:
		}
	}()
	flow := h.intake.Flow(ctx, feed)
	defer flow.Close()
	feed.Connected()
	for {
		select {
		case <-ctx.Done():
			return nil
		case task := <-h.tasks:
			if err := task(ctx, flow); err != nil {
				return err
			}
		}
	}
}

// do has the source do something, and waits for that.
func (h *hose) do(task func(*intake.Flow) error) error {
	done := make(chan error, 1)
	h.tasks <- func(_ context.Context, f *intake.Flow) error {
		err := task(f)
		done <- err
		return err
	}
	return <-done
}

// take has the source take arrivals.
func (h *hose) take(t testing.TB, arrivals ...intake.Arrival) {
	t.Helper()
	if err := h.do(func(f *intake.Flow) error { return f.Take(arrivals...) }); err != nil {
		t.Fatal(err)
	}
}

// open returns a hose, and the server that it feeds.
func open(t testing.TB, settings *eventsource.Settings, c intake.Config) (*hose, *eventsource.Server) {
	t.Helper()
	in, err := intake.New(c, intake.Variables{Names: []string{"name", "id", "type", "channel", "event"}, Wildcards: -1})
	if err != nil {
		t.Fatal(err)
	}
	h := &hose{intake: in, tasks: make(chan func(context.Context, *intake.Flow) error), ended: make(chan struct{}, 1)}
	settings.Sources = []eventsource.Source{h}
	srv, err := eventsource.Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, srv) })
	return h, srv
}

// What the tests of several packages share.
var eventually, follow, shutdown = check.Eventually, sourcetest.Follow, sourcetest.Shutdown
