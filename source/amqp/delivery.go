package amqp

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource/internal/intake"
)

// An inbox has what the library brings, so that it can be published together. The broker
// bounds it: it sends no more than Prefetch ahead.
type inbox struct {
	// Set when made.
	ready chan struct{} // has a value when something came
	ended chan struct{} // closed when nothing comes any more

	mu   sync.Mutex
	came []amqp.Delivery
}

func newInbox(from <-chan amqp.Delivery) *inbox {
	in := &inbox{ready: make(chan struct{}, 1), ended: make(chan struct{})}
	go in.fill(from)
	return in
}

func (in *inbox) fill(from <-chan amqp.Delivery) {
	defer close(in.ended)
	for d := range from {
		in.mu.Lock()
		in.came = append(in.came, d)
		in.mu.Unlock()
		signal(in.ready)
	}
}

// take appends what came to a slice, at most so many.
func (in *inbox) take(to []delivery, most int) []delivery {
	in.mu.Lock()
	defer in.mu.Unlock()
	n := min(len(in.came), most)
	for i := range in.came[:n] {
		to = append(to, delivery{Delivery: in.came[i]})
	}
	left := copy(in.came, in.came[n:])
	clear(in.came[left:])
	if in.came = in.came[:left]; left > 0 {
		signal(in.ready)
	}
	return to
}

// signal leaves a value, if none is there.
func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// over reports whether nothing comes any more.
func (in *inbox) over() bool {
	select {
	case <-in.ended:
		return true
	default:
		return false
	}
}

// A delivery is something that came in.
type delivery struct {
	amqp.Delivery
	source   *Source
	queue    string
	acks     *acks
	streamed bool // it has an offset
	offset   int64
	repeated bool // it was published before the break

	matched bool
	found   []string // what the wildcards of the binding stand for, once matched
}

// readOffset reads the place in a stream, if it comes from one.
func (d *delivery) readOffset(ctx context.Context, l *link) (err error) {
	offset, said := d.Headers["x-stream-offset"].(int64)
	if !said {
		return nil
	}
	if d.streamed, err = l.streams(ctx, &d.source.config); d.streamed {
		d.offset = offset
	}
	return err
}

// arrival returns the delivery as what the intake takes. What has an id of its
// publisher's is known by that, also when the publisher sends it twice; else the offset
// says what it is.
func (d *delivery) arrival() intake.Arrival {
	a := intake.Arrival{Data: d.Body, Value: d.value, Again: d.Redelivered}
	switch {
	case d.MessageId != "":
		a.Key = "id " + d.MessageId
	case d.streamed:
		a.Key = fmt.Sprintf("offset %d %d", d.source.place.age(), d.offset)
	}
	acks, tag := d.acks, d.DeliveryTag
	a.Done = func(err error) { acks.settle(tag, err != nil) }
	return a
}

const header = "header:"

// variables are those of templates.
func variables(wildcards int, stream bool) intake.Variables {
	v := intake.Variables{Names: []string{"name", "exchange", "queue", "type", "message_id", "app_id", header}, Wildcards: wildcards}
	if stream {
		v.Names = append(v.Names, "offset")
	}
	return v
}

// value returns what stands for a variable.
func (d *delivery) value(variable string) string {
	switch variable {
	case "name":
		return d.RoutingKey
	case "exchange":
		return d.Exchange
	case "queue":
		return d.queue
	case "type":
		return d.Type
	case "message_id":
		return d.MessageId
	case "app_id":
		return d.AppId
	case "offset":
		if !d.streamed {
			return ""
		}
		return strconv.FormatInt(d.offset, 10)
	}
	if name, ok := strings.CutPrefix(variable, header); ok {
		return text(d.Headers[name])
	}
	n, _ := strconv.Atoi(variable)
	if found := d.wildcards(); n <= len(found) {
		return found[n-1]
	}
	return ""
}

// wildcards returns what those of the first binding that matches stand for.
func (d *delivery) wildcards() []string {
	if d.matched {
		return d.found
	}
	d.matched = true
	for i := range d.source.bindings {
		if found, ok := d.source.bindings[i].match(d.RoutingKey); ok {
			d.found = found
			break
		}
	}
	return d.found
}

// text returns a header's value that is text, a number, true or false.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	case float32:
		return strconv.FormatFloat(float64(v), 'f', -1, 32)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case bool, int, int8, int16, int32, int64, uint8, uint16, uint32, uint64:
		return fmt.Sprint(v)
	}
	return ""
}
