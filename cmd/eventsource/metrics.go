package main

import (
	"encoding/json"
	"net/http"
	"runtime"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/queue"
)

// A collector shows a server's counters to Prometheus.
type collector struct{ server *eventsource.Server }

var _ prometheus.Collector = collector{}

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("eventsource_"+name, help, labels, nil)
}

var (
	consumersMetric   = metric("consumers", "Consumers that are connected.")
	channelsMetric    = metric("channels", "Channels that a consumer follows by name or that hold events.")
	historyMetric     = metric("history_events", "Events that are kept for consumers that come back.")
	bytesMetric       = metric("history_bytes", "Memory of the kept events, with entries and channels.")
	markMetric        = metric("mark", "Seq up to which this node has every event.")
	drainingMetric    = metric("draining", "1 while the server shuts down.")
	availableMetric   = metric("backend_available", "1 while the backend takes events.")
	publishesMetric   = metric("publishes_total", "Requests and calls that published.")
	publishedMetric   = metric("events_published_total", "Events that were published.")
	deliveredMetric   = metric("events_delivered_total", "Events that were sent, counted for each consumer.")
	sentMetric        = metric("sent_bytes_total", "Bytes that were sent to consumers.")
	connectsMetric    = metric("connects_total", "Consumers that came.")
	gapsMetric        = metric("gaps_total", "Gaps that consumers were told of.")
	recalledMetric    = metric("events_recalled_total", "Events of those sent that were read from the backend for one consumer.")
	replaysMetric     = metric("replays", "Consumers that are sent what the logs have no longer.")
	disconnectsMetric = metric("disconnects_total", "Consumers that went, by reason.", "reason")
	refusalsMetric    = metric("refusals_total", "Requests that were refused, by status.", "status")
	limitedMetric     = metric("limited_total", "Requests that a limit refused, by its name.", "limit")
	verifiedMetric    = metric("tokens_verified_total", "JWTs that were checked, by result; one that is remembered is not checked again.", "result")
	relayedMetric     = metric("relayed_consumers", "Streams whose events come from elsewhere than the logs, such as AMQP queues.")
	sourceUpMetric    = metric("source_connected", "1 while a source is connected, by its kind and number.", "source")
	sourceConnects    = metric("source_connects_total", "How often a source was connected.", "source")
	sourcePublished   = metric("source_events_total", "Events that a source published.", "source")
	sourceDuplicates  = metric("source_duplicates_total", "What came in again from a source and was not published again.", "source")
	sourceRefusals    = metric("source_refusals_total", "What came in from a source and was not published, by reason.", "source", "reason")
	startedMetric     = metric("start_time_seconds", "When the server was opened, in Unix time.")
)

// Describe sends every description.
func (c collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect sends every value as it is now.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.server.Stats()
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for d, v := range map[*prometheus.Desc]float64{
		consumersMetric: float64(s.Consumers),
		channelsMetric:  float64(s.Channels),
		historyMetric:   float64(s.HistoryEvents),
		bytesMetric:     float64(s.HistoryBytes),
		markMetric:      float64(s.Mark),
		drainingMetric:  oneIf(s.Draining),
		availableMetric: oneIf(s.Available),
		replaysMetric:   float64(s.Replays),
		relayedMetric:   float64(s.Relayed),
		startedMetric:   float64(s.Started.UnixMilli()) / 1000,
	} {
		send(d, prometheus.GaugeValue, v)
	}
	for d, v := range map[*prometheus.Desc]uint64{
		publishesMetric: s.Publishes,
		publishedMetric: s.Published,
		deliveredMetric: s.Delivered,
		sentMetric:      s.Sent,
		connectsMetric:  s.Connects,
		gapsMetric:      s.Gaps,
		recalledMetric:  s.Recalled,
	} {
		send(d, prometheus.CounterValue, float64(v))
	}
	for reason, n := range s.Disconnects {
		send(disconnectsMetric, prometheus.CounterValue, float64(n), reason)
	}
	for status, n := range s.Refusals {
		send(refusalsMetric, prometheus.CounterValue, float64(n), strconv.Itoa(status))
	}
	for limit, n := range s.Limited {
		send(limitedMetric, prometheus.CounterValue, float64(n), limit)
	}
	for _, src := range s.Sources {
		send(sourceUpMetric, prometheus.GaugeValue, oneIf(src.State == "ok"), src.Name)
		send(sourceConnects, prometheus.CounterValue, float64(src.Connects), src.Name)
		send(sourcePublished, prometheus.CounterValue, float64(src.Published), src.Name)
		send(sourceDuplicates, prometheus.CounterValue, float64(src.Duplicates), src.Name)
		for reason, n := range src.Refusals {
			send(sourceRefusals, prometheus.CounterValue, float64(n), src.Name, reason)
		}
	}
	send(verifiedMetric, prometheus.CounterValue, float64(s.Verified), "accepted")
	send(verifiedMetric, prometheus.CounterValue, float64(s.Unverified), "refused")
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// metricsPage is what Prometheus reads: the server, the Go runtime and the
// process.
func metricsPage(srv *eventsource.Server, queues *queue.Queues) http.Handler {
	b := readBuild()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "eventsource_build_info",
		Help:        "1, with what the program was built from.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "goversion": b.Go},
	})
	info.Set(1)
	r := prometheus.NewRegistry()
	r.MustRegister(collector{srv}, info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if queues != nil {
		r.MustRegister(queueCollector{queues})
	}
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// varsPage is what expvar shows, but for the command line, which may hold a
// token.
func varsPage(srv *eventsource.Server, queues *queue.Queues) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		vars := struct {
			EventSource eventsource.Stats `json:"eventsource"`
			Queues      *queue.Stats      `json:"queues,omitempty"`
			Goroutines  int               `json:"goroutines"`
			Memory      runtime.MemStats  `json:"memstats"`
		}{EventSource: srv.Stats(), Goroutines: runtime.NumGoroutine()}
		if queues != nil {
			st := queues.Stats()
			vars.Queues = &st
		}
		runtime.ReadMemStats(&vars.Memory)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.Encode(vars) // a reader that went is nobody to tell
	})
}
