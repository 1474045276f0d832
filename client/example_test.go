package client_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/client"
)

// An application writes to a person, who reads it and marks it as read.
func Example() {
	server, err := eventsource.Open(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer server.Stop()
	web := httptest.NewServer(server.Handler())
	defer web.Close()

	c, err := client.New(web.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	// However often this has to be tried, it is published once.
	receipt, err := c.Publish(ctx, "users.ann,users.joe", client.Event{ID: "note-1", Data: "lunch?"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(receipt.IDs, receipt.Channels)
	for event, err := range c.Events(ctx, "users.ann", &client.Query{Status: "unread"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(event.ID, event.Data)
	}
	unread, err := c.MarkUpTo(ctx, "users.ann", "note-1")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(unread, "unread")
	// Output:
	// [note-1] [users.ann users.joe]
	// note-1 lunch?
	// 0 unread
}
