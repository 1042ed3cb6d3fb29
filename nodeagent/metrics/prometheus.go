package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/session"
)

// Sources are what Prometheus is told of.
type Sources struct {
	Jobs    func() []*session.Job
	Samples func() []api.NodeSample
	GPUs    func() []api.GPUSample
	// Streams returns how many are open, how often each status was answered,
	// and the bytes to and from apps.
	Streams func() (open int, answered map[string]int64, to, from int64)
	// Problem is what the self-test found.
	Problem func() string
	// Expires is when the certificate does, zero without one.
	Expires func() time.Time
}

var (
	jobLabels = []string{"job", "uid"}
	gpuLabels = []string{"uuid"}

	descJobs     = prometheus.NewDesc("carme_jobs", "Sealed jobs on the node by stage.", []string{"stage"}, nil)
	descHealthy  = prometheus.NewDesc("carme_node_ready", "1 if the node's self-test passes.", nil, nil)
	descExpires  = prometheus.NewDesc("carme_certificate_expires_seconds", "When the certificate expires, in seconds since 1970.", nil, nil)
	descStreams  = prometheus.NewDesc("carme_streams", "Open streams to apps.", nil, nil)
	descAnswered = prometheus.NewDesc("carme_streams_asked_total", "Streams asked for by outcome.", []string{"status"}, nil)
	descBytes    = prometheus.NewDesc("carme_stream_bytes_total", "Bytes carried.", []string{"direction"}, nil)
	descCPU      = prometheus.NewDesc("carme_job_cpu_percent", "CPU of the job, in percent of one core.", jobLabels, nil)
	descMemory   = prometheus.NewDesc("carme_job_memory_bytes", "Memory of the job.", jobLabels, nil)
	descRead     = prometheus.NewDesc("carme_job_read_bytes_per_second", "What the job reads from disks.", jobLabels, nil)
	descWrite    = prometheus.NewDesc("carme_job_write_bytes_per_second", "What the job writes to disks.", jobLabels, nil)
	descGPU      = prometheus.NewDesc("carme_gpu_percent", "Use of the GPU.", gpuLabels, nil)
	descGPUMem   = prometheus.NewDesc("carme_gpu_memory_bytes", "Used memory of the GPU.", gpuLabels, nil)
	descGPUPower = prometheus.NewDesc("carme_gpu_power_watts", "Power of the GPU.", gpuLabels, nil)
	descGPUJ     = prometheus.NewDesc("carme_gpu_energy_joules_total", "Energy of the GPU since its driver started.", gpuLabels, nil)
)

// withoutApp stands for the stage of a job that has no app to start.
const withoutApp = "without_app"

// Describe sends nothing: an unchecked collector, since jobs come and go.
func (s Sources) Describe(chan<- *prometheus.Desc) {}

// Collect sends everything.
func (s Sources) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	stages := map[string]int{session.StageImage: 0, session.StageApp: 0, session.StageReady: 0, withoutApp: 0}
	users := map[uint32]string{}
	for _, j := range s.Jobs() {
		stage, _ := j.Stage()
		if j.App == "" {
			stage = withoutApp
		}
		stages[stage]++
		users[j.Job] = strconv.FormatUint(uint64(j.UID), 10)
	}
	for stage, n := range stages {
		gauge(descJobs, float64(n), stage)
	}
	ready := 1.0
	if s.Problem() != "" {
		ready = 0
	}
	gauge(descHealthy, ready)
	if at := s.Expires(); !at.IsZero() {
		gauge(descExpires, float64(at.Unix()))
	}
	open, answered, to, from := s.Streams()
	gauge(descStreams, float64(open))
	for status, n := range answered {
		counter(descAnswered, float64(n), status)
	}
	counter(descBytes, float64(to), "to_app")
	counter(descBytes, float64(from), "from_app")
	const mb = 1 << 20
	for _, m := range s.Samples() {
		job, uid := strconv.FormatUint(uint64(m.Job), 10), users[m.Job]
		gauge(descCPU, m.CPU, job, uid)
		gauge(descMemory, m.MemoryMB*mb, job, uid)
		gauge(descRead, m.ReadMB*mb, job, uid)
		gauge(descWrite, m.WriteMB*mb, job, uid)
	}
	for _, g := range s.GPUs() {
		gauge(descGPU, g.Percent, g.UUID)
		gauge(descGPUMem, g.MemoryMB*mb, g.UUID)
		gauge(descGPUPower, g.PowerW, g.UUID)
		counter(descGPUJ, g.EnergyJ, g.UUID)
	}
}

// Handler answers Prometheus.
func (s Sources) Handler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(s)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// Serve answers Prometheus at an address until ctx ends.
func (s Sources) Serve(ctx context.Context, address string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for Prometheus: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.Handler())
	const limit = 10 * time.Second
	server := &http.Server{Handler: mux, ReadTimeout: limit, WriteTimeout: limit, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answer Prometheus: %w", err)
	}
	return nil
}
