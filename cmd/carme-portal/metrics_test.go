package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
	"github.com/carme-hpc/carme/portal/proxy"
)

func TestMetrics_tell_Prometheus_of_proxy_certificate_and_process(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	stats := func() proxy.Stats { return proxy.Stats{Requests: 7, Open: 3} }
	stop, err := serveMetrics(context.Background(), addr, counters(stats, mtlstest.New(t).Open(t, mtls.RolePortal, "web")), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\ncarme_portal_app_requests_total 7\n", "\ncarme_portal_websockets 3\n", "\ncarme_portal_certificate_expires_seconds 1.", "\nprocess_resident_memory_bytes "} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
