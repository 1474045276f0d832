package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/admin"
	"github.com/railsmechanic/eventsource/queue"
)

const defaultQueuePath = "/queue"

// A queuesConfig is where AMQP queues are served, and which.
type queuesConfig struct {
	queue.Config
	path string
}

// checkQueues returns what is wrong with the queues, where there are any.
func (c *config) checkQueues() []string {
	if len(c.queues.Nodes) == 0 {
		return nil
	}
	var wrong []string
	if err := c.checkQueuePath(); err != nil {
		wrong = append(wrong, c.message("queues.path", err))
	}
	for _, err := range split(c.queues.Validate()) {
		name, detail, _ := strings.Cut(err.Error(), ": ")
		err = errors.New(detail)
		if i := strings.IndexByte(name, '['); i >= 0 {
			name, err = name[:i], &memberError{name[i:], err}
		}
		wrong = append(wrong, c.message("queues."+name, err))
	}
	return wrong
}

// checkQueuePath reports why the queues can't be served where they are said to be.
func (c *config) checkQueuePath() error {
	path := c.queues.path
	name, ok := strings.CutPrefix(path, "/")
	switch {
	case !ok:
		return fmt.Errorf("%q does not begin with /; give one such as %s", path, defaultQueuePath)
	case name == "":
		return nil // in place of the short page
	case slices.ContainsFunc(c.settings.Sources, func(s eventsource.Source) bool {
		e, ok := s.(eventsource.Endpoint)
		return ok && e.Path() == path
	}):
		return fmt.Errorf("%q is a source's; give another", path)
	}
	if err := eventsource.CheckName(strings.ReplaceAll(name, "/", ".")); err != nil {
		return fmt.Errorf("%q can't be it: %w; give one such as %s", path, err, defaultQueuePath)
	}
	return nil
}

// openQueues has a server serve the queues, nil where there are none.
func (c *config) openQueues(srv *eventsource.Server, log *slog.Logger) (*queue.Queues, error) {
	if len(c.queues.Nodes) == 0 {
		return nil, nil
	}
	c.queues.Logger = log
	q, err := queue.Open(c.queues.Config)
	if err != nil {
		return nil, err
	}
	srv.HandleRelay(c.queues.path, q)
	return q, nil
}

// A brokers is a list of URLs, whose passwords are shown to nobody.
type brokers struct{ to *[]string }

func (b brokers) set(v any) error {
	if err := list(b).set(v); err != nil {
		return errors.New(`is no list of URLs; give one such as ["amqp://guest:guest@localhost:5672/"]`)
	}
	return nil
}

func (b brokers) show() any {
	shown := make([]string, len(*b.to))
	for i, node := range *b.to {
		shown[i] = maskedURL(node)
	}
	return shown
}

// An expiry is a duration, or a number of seconds, or "none".
type expiry struct{ to *time.Duration }

func (e expiry) set(v any) error {
	if seconds, err := integer(v); err == nil && seconds > 0 && seconds < 1<<32 {
		v = fmt.Sprintf("%ds", seconds)
	}
	return duration{to: e.to, none: true, zero: `0 would have a queue go with its consumer; give a duration such as 30m, or a number of seconds`}.set(v)
}

func (e expiry) show() any { return duration{to: e.to, none: true}.show() }

// A responseHeaders is headers by name, each with a value.
type responseHeaders struct{ to *http.Header }

func (h responseHeaders) set(v any) error {
	var all map[string]string
	if err := (dictionary{&all}).set(v); err != nil {
		return err
	}
	*h.to = http.Header{}
	for name, value := range all {
		h.to.Set(name, value)
	}
	return nil
}

func (h responseHeaders) show() any {
	all := map[string]string{}
	for name := range *h.to {
		all[name] = h.to.Get(name)
	}
	return all
}

var (
	queueConnectedMetric   = metric("queue_node_connected", "1 while the connection to a broker of queues is up, by the node's number in the configuration.", "node", "url")
	queueConsumersMetric   = metric("queue_consumers", "Consumers that have a queue, by the node that serves them.", "node", "url")
	queueRoomMetric        = metric("queue_room", "How many consumers a node can serve; 0 while it is not connected.", "node", "url")
	queueEventsMetric      = metric("queue_events_total", "Events of queues that were sent and acknowledged.")
	queueBytesMetric       = metric("queue_bytes_total", "Bytes of their payloads.")
	queueRedeliveredMetric = metric("queue_redelivered_total", "Deliveries that came again, since an earlier consumer did not take all of it.")
	queueRefusedMetric     = metric("queue_payloads_refused_total", "Payloads of queues that make no event, by reason.", "reason")
	queueTurnedMetric      = metric("queue_turned_away_total", "Requests for queues that were not served, by reason.", "reason")
	queueEndedMetric       = metric("queue_ended_total", "Streams of queues that ended, by reason.", "reason")
)

// A queueCollector shows queues' counters to Prometheus.
type queueCollector struct{ queues *queue.Queues }

var _ prometheus.Collector = queueCollector{}

// Describe sends every description.
func (c queueCollector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect sends every value as it is now.
func (c queueCollector) Collect(out chan<- prometheus.Metric) {
	s := c.queues.Stats()
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for _, n := range s.Nodes {
		number := fmt.Sprint(n.Number)
		send(queueConnectedMetric, prometheus.GaugeValue, oneIf(n.Connected), number, n.URL)
		send(queueConsumersMetric, prometheus.GaugeValue, float64(n.Consumers), number, n.URL)
		send(queueRoomMetric, prometheus.GaugeValue, float64(n.Room), number, n.URL)
	}
	send(queueEventsMetric, prometheus.CounterValue, float64(s.Events))
	send(queueBytesMetric, prometheus.CounterValue, float64(s.Bytes))
	send(queueRedeliveredMetric, prometheus.CounterValue, float64(s.Redelivered))
	for d, counts := range map[*prometheus.Desc]map[string]uint64{
		queueRefusedMetric: s.Refused, queueTurnedMetric: s.Turned, queueEndedMetric: s.Ended,
	} {
		for reason, n := range counts {
			send(d, prometheus.CounterValue, float64(n), reason)
		}
	}
}

// upstream is how the brokers are, for the status page.
func upstream(queues *queue.Queues) []admin.Upstream {
	var all []admin.Upstream
	for _, n := range queues.Stats().Nodes {
		state := "failing"
		switch {
		case n.Connected:
			state = "ok"
		case n.Reason == "":
			state = "connecting"
		}
		all = append(all, admin.Upstream{Name: n.URL, State: state, Since: n.Since, Reason: n.Reason,
			Numbers: map[string]uint64{"consumers": uint64(n.Consumers), "places": uint64(n.Room)}})
	}
	return all
}
