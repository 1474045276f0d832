// Command embed has the server inside of a program with a mux of its own: it
// publishes a tick a second and serves a page that follows them.
//
//	go run ./examples/embed
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/examples/page"
)

func main() {
	address := flag.String("address", "localhost:8080", "listen on this `ADDRESS`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	// Channels are below /events, the rest of the paths is the program's.
	es, err := eventsource.Open(&eventsource.Settings{BasePath: "/events", Logger: slog.Default()})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/events/", es.Handler())
	mux.HandleFunc("GET /{$}", servePage)

	go tick(ctx, es)

	server := &http.Server{Addr: *address, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		wait, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// The streams end first: the HTTP server would wait for them.
		if err := errors.Join(es.Shutdown(wait), server.Shutdown(wait)); err != nil {
			log.Print(err)
		}
	}()
	fmt.Printf("Open http://%s\n", *address)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	es.Stop() // waits until it has shut down
}

// tick publishes the time until ctx ends.
func tick(ctx context.Context, es *eventsource.Server) {
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-time.After(time.Second):
			event := eventsource.Event{Type: "tick", Data: now.Format(time.TimeOnly)}
			if _, err := es.Publish(ctx, "ticks", event); err != nil {
				log.Print(err)
			}
		}
	}
}

// servePage serves the page, with what it follows in the query.
func servePage(w http.ResponseWriter, r *http.Request) {
	if r.URL.RawQuery == "" {
		http.Redirect(w, r, "/?server=/events&channel=ticks&types=tick", http.StatusFound)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(page.HTML)
}
