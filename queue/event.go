package queue

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/intake"
)

// eventOf returns the event that a delivery is, or why it is none.
func (q *Queues) eventOf(d *amqp.Delivery, most int64) (eventsource.Event, *eventsource.RefusedError) {
	refused := func(reason string, err error) (eventsource.Event, *eventsource.RefusedError) {
		return eventsource.Event{}, &eventsource.RefusedError{Reason: reason, Err: err}
	}
	switch {
	case len(d.Body) == 0:
		return refused(eventsource.RefusedEmpty, errors.New("there is no payload"))
	case int64(len(d.Body)) > most:
		return refused(eventsource.RefusedTooLarge, fmt.Errorf("%d bytes are above limits.body, which is %d", len(d.Body), most))
	case !utf8.Valid(d.Body):
		return refused(eventsource.RefusedNotUTF8, errors.New("the payload is not valid UTF-8"))
	}
	e := eventsource.Event{Data: string(d.Body), Type: q.event.Text(func(variable string) string { return valueOf(d, variable) })}
	if validID(d.MessageId) {
		e.ID = d.MessageId
	}
	return e, nil
}

// validID reports whether an AMQP message-id can come back as a browser's last id.
func validID(s string) bool {
	const most = 255
	return s != "" && len(s) <= most && checkText(s) == nil && strings.Trim(s, " ") == s
}

// parseType reads the template of the events' type.
func parseType(s string) (intake.Template, error) {
	t, err := intake.Parse(s, intake.Variables{Names: []string{"type", "routing_key", "app_id", "header:"}})
	if err != nil {
		return t, err
	}
	if err := eventsource.CheckType(t.Text(func(string) string { return "x" })); err != nil {
		return t, errors.New(strings.TrimPrefix(err.Error(), "event: "))
	}
	return t, nil
}

// valueOf returns what stands for a variable in the template of the type.
func valueOf(d *amqp.Delivery, variable string) string {
	switch variable {
	case "type":
		return d.Type
	case "routing_key":
		return d.RoutingKey
	case "app_id":
		return d.AppId
	}
	name, _ := strings.CutPrefix(variable, "header:")
	if v := d.Headers[name]; v != nil {
		return fmt.Sprint(v)
	}
	return ""
}
