package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cephmirror/admin"
	"cephmirror/host/supervise"
)

// collector turns the plugin's counters into metrics with the names that
// Ceph's exporter gives them.
type collector struct {
	counters admin.Metrics
	status   func() supervise.Status
	budget   time.Duration
}

// Describe implements prometheus.Collector. It sends nothing: which metrics
// there are depends on the plugin.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	put := func(name, help string, labels, values []string, kind prometheus.ValueType, v float64) {
		m, err := prometheus.NewConstMetric(prometheus.NewDesc(name, help, labels, nil), kind, v, values...)
		if err == nil { // a name or label out of the ordinary is left out
			out <- m
		}
	}
	st := c.status()
	up := 0.0
	if st.State == supervise.Running {
		up = 1
	}
	put("cephmirror_plugin_up", "Whether the plugin runs.", nil, nil, prometheus.GaugeValue, up)
	put("cephmirror_plugin_restarts", "How often the plugin was started again.", nil, nil, prometheus.CounterValue, float64(st.Restarts))

	ctx, cancel := context.WithTimeout(context.Background(), c.budget)
	defer cancel()
	loggers, err := c.counters.Loggers(ctx)
	if err != nil {
		return
	}
	for _, l := range loggers {
		var labels, values []string
		for _, p := range l.Labels {
			labels, values = append(labels, metricName(p.Name)), append(values, strings.ToValidUTF8(p.Value, "\ufffd"))
		}
		for _, n := range l.Counters {
			name := "ceph_" + metricName(l.Name) + "_" + metricName(n.Name)
			switch n.Type {
			case admin.CounterU64:
				put(name, n.Description, labels, values, prometheus.CounterValue, float64(n.U64))
			case admin.GaugeU64:
				put(name, n.Description, labels, values, prometheus.GaugeValue, float64(n.U64))
			case admin.GaugeSeconds:
				put(name, n.Description, labels, values, prometheus.GaugeValue, n.Value)
			case admin.AverageSeconds:
				put(name+"_sum", n.Description+" Total", labels, values, prometheus.CounterValue, n.Sum)
				put(name+"_count", n.Description+" Count", labels, values, prometheus.CounterValue, float64(n.Count))
			}
		}
	}
}

func metricName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, s)
}

// metricsAddress lets a port alone mean the loopback.
func metricsAddress(setting string) string {
	if !strings.Contains(setting, ":") {
		return net.JoinHostPort("127.0.0.1", setting)
	}
	return setting
}

// serveMetrics opens the endpoint. The returned function closes it.
func serveMetrics(address string, c *collector) (stop func(), err error) {
	listener, err := net.Listen("tcp", metricsAddress(address))
	if err != nil {
		return nil, fmt.Errorf("metrics_listen: %w", err)
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(c); err != nil {
		return nil, errors.Join(fmt.Errorf("metrics: %w", err), listener.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	server := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener)
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close()
		}
		<-ended
	}, nil
}
