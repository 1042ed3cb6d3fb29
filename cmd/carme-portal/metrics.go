package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/portal/proxy"
)

// counters is what Prometheus gets to see: the proxy's counts, the end of the own
// certificate, and the process.
func counters(stats func() proxy.Stats, own *mtls.Store) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	counter := func(name, help string, value func(proxy.Stats) int64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value(stats())) }))
	}
	gauge := func(name, help string, value func(proxy.Stats) int64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value(stats())) }))
	}
	counter("carme_portal_app_requests_total", "Requests for sessions' hosts.", func(s proxy.Stats) int64 { return s.Requests })
	counter("carme_portal_app_refused_total", "Of them, refused.", func(s proxy.Stats) int64 { return s.Refused })
	counter("carme_portal_websockets_total", "Websockets opened.", func(s proxy.Stats) int64 { return s.Websockets })
	gauge("carme_portal_websockets", "Websockets open.", func(s proxy.Stats) int64 { return s.Open })
	gauge("carme_portal_routes", "Viewers' ways to apps in use.", func(s proxy.Stats) int64 { return s.Routes })
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "carme_portal_certificate_expires_seconds", Help: "When the certificate for backend and agents expires, in seconds since 1970.",
	}, func() float64 { return float64(own.Leaf().NotAfter.Unix()) }))
	return r
}

// serveMetrics serves the counters for Prometheus, if an address is given.
func serveMetrics(ctx context.Context, addr string, registry *prometheus.Registry, log *slog.Logger) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, Handler: mux}
	go func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			log.ErrorContext(ctx, "metrics: server ended", "error", err)
		}
	}()
	return func() { _ = server.Close() }, nil
}
