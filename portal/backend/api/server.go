package api

import (
	"context"
	"crypto/tls"
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/audit"
	"github.com/carme-hpc/carme/portal/backend/auth"
	"github.com/carme-hpc/carme/portal/backend/jobs"
	"github.com/carme-hpc/carme/portal/backend/nodes"
	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/routes"
	"github.com/carme-hpc/carme/portal/backend/signer"
	"github.com/carme-hpc/carme/portal/backend/store"
)

//go:embed openapi.yaml
var openapi []byte

const (
	bodyMax    = 64 << 10
	reportMax  = 8 << 20
	headerMax  = 32 << 10
	answerTime = 60 * time.Second
	// enrolMax is how many nodes may enrol at once; the others try again.
	enrolMax = 16
	// streamsMax is how many requests one portal may have open on a connection.
	streamsMax = 20000
)

// Server answers.
type Server struct {
	DB      *store.DB
	Auth    *auth.Service
	Jobs    *jobs.Service
	Routes  *routes.Service
	Feed    *routes.Feed
	Nodes   *nodes.Registry
	Enrol   *nodes.Enrolment
	Audit   *audit.Log
	Log     *slog.Logger
	Now     func() time.Time
	Metrics prometheus.Registerer
	// Health says what is wrong with each part; empty texts are well.
	Health func(ctx context.Context) map[string]string

	// Stopping is closed when streams should end; nil: never.
	Stopping <-chan struct{}

	limits limiter
	// enrolling bounds how many strangers make this process dial at once.
	enrolling atomic.Int32
	strangers logx.Seldom
	failed    logx.Seldom
	measured  sync.Once
	count     *prometheus.CounterVec
	took      *prometheus.HistogramVec
}

// request is one request with what is known of its sender.
type request struct {
	*http.Request

	w       http.ResponseWriter
	server  *Server
	peer    mtls.Identity // zero without a certificate
	session *auth.Session // nil without one
	token   string
	// local is the uid at the other end of the admin socket, -1 elsewhere.
	local int64
}

type localKey struct{}

// LocalContext marks connections of the admin socket (http.Server.ConnContext).
func LocalContext(ctx context.Context, c net.Conn) context.Context {
	if uid, err := signer.PeerUID(c); err == nil {
		return context.WithValue(ctx, localKey{}, int64(uid))
	}
	return ctx
}

// HTTP returns the server for a listener; conf is nil on the admin socket.
func (s *Server) HTTP(conf *tls.Config) *http.Server {
	srv := &http.Server{
		Handler: s.Handler(), TLSConfig: conf, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: headerMax, ErrorLog: logx.Connections(s.Log),
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: streamsMax},
	}
	if conf == nil {
		srv.ConnContext = LocalContext
	}
	return srv
}

// measure makes the counters: one set, whatever number of servers share them.
func (s *Server) measure() {
	s.count = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "carme_backend_requests_total", Help: "Requests by route and status."}, []string{"route", "status"})
	s.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "carme_backend_request_seconds", Help: "Time to answer, streams left out.", Buckets: []float64{.001, .005, .02, .1, .5, 2, 10},
	}, []string{"route"})
	if s.Metrics != nil {
		for _, c := range []prometheus.Collector{s.count, s.took} {
			if err := s.Metrics.Register(c); err != nil {
				s.Log.Error("counters cannot be shown", "err", err.Error())
			}
		}
	}
}

// Handler has every route.
func (s *Server) Handler() http.Handler {
	s.measured.Do(s.measure)
	mux := http.NewServeMux()
	for _, r := range table() {
		mux.HandleFunc(r.method+" "+r.path, s.serve(r))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { s.fail(w, problem.NotFound(), "") })
	return mux
}

// serve checks who asks before the handler runs.
func (s *Server) serve(rt route) http.HandlerFunc {
	name := rt.method + " " + rt.path
	return func(w http.ResponseWriter, hr *http.Request) {
		start := s.Now()
		out := &recorder{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
				s.Log.Error("handler panicked", "route", name, "panic", p, "stack", string(debug.Stack()))
				s.fail(out, errors.New("panic"), name)
			}
			s.count.WithLabelValues(name, strconv.Itoa(out.status)).Inc()
			if !rt.stream {
				s.took.WithLabelValues(name).Observe(s.Now().Sub(start).Seconds())
			}
		}()
		h := out.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		r := &request{Request: hr, w: out, server: s, local: -1}
		if err := s.admit(r, rt); err != nil {
			s.refused(r, err, name)
			s.fail(out, err, name)
			return
		}
		if !rt.stream {
			if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime)); err != nil {
				s.Log.Debug("no write deadline", "err", err.Error())
			}
		}
		size := int64(bodyMax)
		if rt.large {
			size = reportMax
		}
		hr.Body = http.MaxBytesReader(out, hr.Body, size)
		if err := rt.handle(r); err != nil {
			s.refused(r, err, name)
			s.fail(out, err, name)
		}
	}
}

// admit finds out who asks and whether the route is for them.
func (s *Server) admit(r *request, rt route) error {
	if uid, ok := r.Context().Value(localKey{}).(int64); ok {
		r.local = uid
	}
	if id, ok := mtls.PeerIdentity(r.TLS); ok {
		r.peer = id
	}
	if !s.limits.take(r.key(), s.Now()) {
		return problem.SlowDown(time.Second)
	}
	if rt.peer != "" && r.peer.Role != rt.peer {
		return problem.Forbidden()
	}
	if len(rt.states) == 0 || rt.admin && r.local >= 0 {
		return nil
	}
	tok, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return problem.NoSession()
	}
	sess, err := s.Auth.Authenticate(r.Context(), tok, rt.states...)
	if err != nil {
		return err
	}
	r.session, r.token = sess, tok
	if !rt.passive {
		s.Auth.Used(r.Context(), sess)
	}
	if rt.admin && !sess.Admin() {
		return problem.Forbidden()
	}
	if !s.limits.take("session "+sess.ID, s.Now()) {
		return problem.SlowDown(time.Second)
	}
	return nil
}

// refused notes a request for what is not the caller's: what may not be done, and
// what does not exist for who is logged in.
func (s *Server) refused(r *request, err error, route string) {
	var p *problem.Error
	if !errors.As(err, &p) || p.Status != http.StatusForbidden && (p.Status != http.StatusNotFound || r.session == nil) {
		return
	}
	who, left := "", 0
	switch {
	case r.session != nil:
		who = r.session.UserName
	case r.peer.Role != "":
		who = r.peer.String()
	default:
		var ok bool
		if left, ok = s.strangers.Turn(s.Now()); !ok {
			return
		}
	}
	s.Log.LogAttrs(r.Context(), slog.LevelInfo, "request refused", slog.String("route", route), slog.String("code", p.Body.Code),
		slog.String("who", who), slog.String("from", r.RemoteAddr), slog.Int("left_out", left))
}

// key is whom a request without a session counts for.
func (r *request) key() string {
	switch {
	case r.peer.Role != "":
		return "" // Carme's own daemons bring many users
	case r.local >= 0:
		return ""
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "?"
	}
	return "addr " + network(host)
}

// actor is who did it, for the audit log.
func (r *request) actor() string {
	if r.session != nil {
		return r.session.UserName
	}
	return "local uid " + strconv.FormatInt(r.local, 10)
}

// read decodes the body strictly.
func (r *request) read(v any) error {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return &problem.Error{Status: http.StatusUnsupportedMediaType, Body: api.Error{Code: "invalid", Message: "The body must be application/json."}}
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return &problem.Error{Status: http.StatusRequestEntityTooLarge, Body: api.Error{Code: "invalid", Message: "The body is too long."}}
		}
		return badBody()
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return badBody()
	}
	return nil
}

func badBody() error {
	return &problem.Error{Status: http.StatusBadRequest, Body: api.Error{Code: "invalid", Message: "The body is not the JSON that this path takes."}}
}

// answer writes v as JSON.
func (r *request) answer(status int, v any) error {
	r.w.Header().Set("Content-Type", "application/json")
	r.w.WriteHeader(status)
	if err := json.NewEncoder(r.w).Encode(v); err != nil {
		r.server.Log.Debug("answer not sent", "err", err.Error())
	}
	return nil
}

func (r *request) done() error {
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

// fail writes an error's answer. What is no problem.Error stays in the log.
func (s *Server) fail(w http.ResponseWriter, err error, route string) {
	var p *problem.Error
	if !errors.As(err, &p) {
		if left, ok := s.failed.Turn(s.Now()); ok {
			s.Log.Error("request failed", "route", route, "err", err.Error(), "left_out", left)
		}
		p = &problem.Error{Status: http.StatusInternalServerError, Body: api.Error{
			Code: "internal", Message: "Something went wrong here; the administrators find it in the log. Try again later.",
		}}
	}
	if rec, ok := w.(*recorder); ok && rec.wrote {
		return
	}
	if p.Body.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.Body.RetryAfter))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(p.Status)
	if err := json.NewEncoder(w).Encode(api.ErrorBody{Error: p.Body}); err != nil {
		s.Log.Debug("answer not sent", "err", err.Error())
	}
}

// recorder remembers the status.
type recorder struct {
	http.ResponseWriter

	status int
	wrote  bool
}

// WriteHeader writes the status.
func (r *recorder) WriteHeader(status int) {
	r.status, r.wrote = status, true
	r.ResponseWriter.WriteHeader(status)
}

// Write writes the body.
func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
