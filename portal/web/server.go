package web

import (
	"errors"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/portal/client"
)

// Options are what the pages need.
type Options struct {
	Backend *client.Client
	// AppOrigin is the origin of the session with a label, https://s-….…; it
	// says false for what is no label.
	AppOrigin func(label string) (string, bool)
	// AppsPattern is every such origin as a Content-Security-Policy names it.
	AppsPattern string
	Log         *slog.Logger
	Now         func() time.Time
	// Stopping is closed when the portal is to end: event streams, which never
	// end by themselves, end then, and browsers open them again at the next. May
	// be nil.
	Stopping <-chan struct{}
	// Bare lets the pages be made without style sheet and scripts, for tests.
	Bare bool
}

// Server makes the pages.
type Server struct {
	backend   *client.Client
	appOrigin func(string) (string, bool)
	log       *slog.Logger
	now       func() time.Time
	stopping  <-chan struct{}
	texts     map[string]catalogue
	assets    *assets
	pages     map[string]func() (*template.Template, error) // by language/page
	policy    string
	homes     homes
	// strangers send forms that are none of ours.
	strangers logx.Seldom
	// failed are pages that the backend had no answer for.
	failed logx.Seldom
}

// New returns the handler of the portal's host.
func New(o Options) (http.Handler, error) {
	s := &Server{
		backend: o.Backend, appOrigin: o.AppOrigin, log: o.Log, now: o.Now, stopping: o.Stopping,
		// A login may be followed by a redirect to an app, and browsers apply
		// form-action to where a form leads in the end.
		policy: "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; " +
			"form-action 'self' " + o.AppsPattern + "; base-uri 'none'; frame-ancestors 'none'",
	}
	var err error
	if s.texts, err = loadCatalogues(); err != nil {
		return nil, err
	}
	dist, err := fs.Sub(assetFiles, "assets/dist")
	if err != nil {
		return nil, err
	}
	if s.assets, err = loadAssets(dist); err != nil && (!o.Bare || !errors.Is(err, ErrNoAssets)) {
		return nil, err
	}
	if err := s.loadTemplates(); err != nil {
		return nil, err
	}
	return s.routes(), nil
}

// routes are all paths of the portal's host.
func (s *Server) routes() http.Handler {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.RedirectTrailingSlash, e.RedirectFixedPath, e.HandleMethodNotAllowed = false, false, true
	_ = e.SetTrustedProxies(nil) // none; nil is always valid
	e.Use(s.recover, s.headers, s.crossOrigin)
	e.NoRoute(func(c *gin.Context) {
		if c.Request.Method == http.MethodGet && s.known(c) {
			s.csrf(c) // the page has forms
		}
		s.fail(c, &client.RefusedError{What: notFound})
	})
	e.NoMethod(func(c *gin.Context) { c.AbortWithStatus(http.StatusMethodNotAllowed) }) // Allow says which

	e.GET("/robots.txt", func(c *gin.Context) { c.String(http.StatusOK, "User-agent: *\nDisallow: /\n") })
	e.GET("/healthz", func(c *gin.Context) { c.String(http.StatusOK, "ok\n") })
	e.GET(assetPrefix+":name", gin.WrapH(s.assets))
	e.HEAD(assetPrefix+":name", gin.WrapH(s.assets))

	form := e.Group("/", s.csrf)
	form.GET("/login", s.loginPage)
	form.POST("/login", s.login)
	form.GET("/login/factor", s.factorPage)
	form.POST("/login/factor", s.factor)
	form.GET("/login/enrol", s.enrolPage)
	form.POST("/login/enrol", s.enrolConfirm)
	form.POST("/logout", s.logout)
	form.POST("/prefs", s.prefs)

	in := form.Group("/", s.session)
	in.GET("/", s.dashboard)
	in.GET("/open", s.open)
	in.GET("/events", s.events)
	in.POST("/script", s.script)
	in.GET("/jobs", s.jobs)
	in.POST("/jobs", s.start)
	in.GET("/jobs/:id", s.job)
	in.GET("/jobs/:id/stop", s.stopPage)
	in.POST("/jobs/:id/stop", s.stop)
	in.GET("/jobs/:id/output", s.output)
	in.GET("/jobs/:id/metrics", s.metrics)
	in.GET("/fragments/sessions", s.sessionsFragment)
	in.GET("/fragments/jobs", s.jobsFragment)
	in.GET("/fragments/jobs/:id", s.jobFragment)
	in.GET("/fragments/cluster", s.clusterFragment)
	in.GET("/security", s.security)
	in.POST("/security/totp", s.totp)
	in.POST("/security/totp/confirm", s.totpConfirm)
	in.POST("/security/recovery", s.recovery)
	in.POST("/security/sessions/end", s.endOthers)
	in.POST("/security/sessions/:id/end", s.endSession)
	return heads(e)
}

// heads answers HEAD as GET; the server leaves the body out (RFC 9110, 9.3.2). A
// stream of events has no end to wait for.
func heads(pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead && r.URL.Path != "/events" && !strings.HasPrefix(r.URL.Path, assetPrefix) {
			r = r.Clone(r.Context())
			r.Method = http.MethodGet
		}
		pages.ServeHTTP(w, r)
	})
}
