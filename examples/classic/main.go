// Command classic uses nothing but the classic interface. Follow it with
//
//	go run ./examples/classic
//	curl -N http://localhost:8080/updates
package main

import (
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/railsmechanic/eventsource"
)

func main() {
	settings := &eventsource.Settings{
		Timeout:         30 * time.Second,
		Host:            "127.0.0.1",
		Port:            8080,
		CorsAllowOrigin: "*",
		CorsAllowMethod: []string{"GET", "POST"},
		Logger:          slog.Default(), // not classic: without it the library is silent
	}
	es := eventsource.New(settings)

	go func() {
		for n := 1; ; n++ {
			time.Sleep(time.Second)
			event := fmt.Sprintf(`{"id": %d, "event": "my-event", "data": "Hello World!"}`, n)
			es.SendMessage(strings.NewReader(event), "updates")
			if n%5 == 0 {
				log.Printf("channels %v; %d of %d consumers follow updates",
					es.Channels(), es.ConsumerCount("updates"), es.ConsumerCountAll())
			}
		}
	}()
	go func() {
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, os.Interrupt)
		<-interrupted
		es.Stop()
	}()

	log.Printf("serving on http://%s:%d", settings.GetHost(), settings.GetPort())
	es.Run()
}
