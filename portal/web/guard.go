package web

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
)

// Cookies of the portal's host.
const (
	cookieSession = "__Host-carme"
	cookieDevice  = "__Host-carme-device"
	cookieForm    = "__Host-carme-form" // what forms before the login are bound to
	cookieLang    = "__Host-carme-lang"
	cookieTheme   = "__Host-carme-theme"
)

const (
	deviceFor = 400 * 24 * time.Hour // the longest that browsers keep a cookie
	bodyMax   = 64 << 10
	keyToken  = "token"
	keyMe     = "me"
	keyCSRF   = "csrf"
)

func (s *Server) cookie(c *gin.Context, name, value string, age time.Duration) {
	cookie := &http.Cookie{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(age.Seconds())}
	if value == "" {
		cookie.MaxAge = -1
	}
	http.SetCookie(c.Writer, cookie)
}

func cookieValue(r *http.Request, name string) string {
	found, err := r.Cookie(name)
	if err != nil || len(found.Value) > 1024 {
		return ""
	}
	return found.Value
}

// recover turns a panic of ours into a page and a line in the log.
func (s *Server) recover(c *gin.Context) {
	defer func() {
		if what := recover(); what != nil {
			if what == http.ErrAbortHandler { //nolint:errorlint // it is the very value
				panic(what)
			}
			s.log.ErrorContext(c.Request.Context(), "page: panic", "path", c.Request.URL.Path, "panic", what, "stack", string(debug.Stack()))
			c.AbortWithStatus(http.StatusInternalServerError)
		}
	}()
	c.Next()
}

// headers are on every answer of the portal's host.
func (s *Server) headers(c *gin.Context) {
	h := c.Writer.Header()
	h.Set("Content-Security-Policy", s.policy)
	// Not for names below: they may be the site's own, and need not speak TLS.
	h.Set("Strict-Transport-Security", "max-age=31536000")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Origin-Agent-Cluster", "?1")
	h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()")
	h.Set("Cache-Control", "no-store")
	c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, bodyMax)
	c.Next()
}

var errInTheClear = errors.New("the page came without TLS")

// crossOrigin refuses what another page sent, a session's on the same site
// included, before anything else looks at it.
func (s *Server) crossOrigin(c *gin.Context) {
	err := new(http.CrossOriginProtection).Check(c.Request)
	// The library compares hosts: a page of the same host in the clear, which
	// anybody on the way can write, would pass in a browser without Sec-Fetch.
	if origin := c.GetHeader("Origin"); err == nil && c.Request.Method == http.MethodPost && strings.HasPrefix(origin, "http://") {
		err = errInTheClear
	}
	if err != nil {
		if left, ok := s.strangers.Turn(s.now()); ok {
			s.log.InfoContext(c.Request.Context(), "form: from another page", "path", c.FullPath(), "error", err, "from", source(c.Request), "left_out", left)
		}
		s.fail(c, &client.RefusedError{What: foreignForm})
	}
}

// csrf binds forms to the session, or before there is one to a cookie of this
// browser.
func (s *Server) csrf(c *gin.Context) {
	bound := cookieValue(c.Request, cookieSession)
	if bound == "" {
		bound = cookieValue(c.Request, cookieForm)
	}
	if bound == "" {
		random := make([]byte, 32)
		_, _ = rand.Read(random) // never fails
		bound = base64.RawURLEncoding.EncodeToString(random)
		s.cookie(c, cookieForm, bound, 24*time.Hour)
	}
	bindForms(c, bound)
	if c.Request.Method != http.MethodPost {
		return
	}
	if subtle.ConstantTimeCompare([]byte(c.PostForm("csrf")), []byte(csrfToken(c))) != 1 {
		if left, ok := s.strangers.Turn(s.now()); ok {
			s.log.InfoContext(c.Request.Context(), "form: without its token", "path", c.FullPath(), "from", source(c.Request), "left_out", left)
		}
		if c.FullPath() == "/login/enrol" && s.known(c) { // the page of the codes, loaded again
			s.page(c, http.StatusForbidden, "error", view{
				Title: s.text(c, "recovery.gone"), Me: me(c), Data: errorData{Title: s.text(c, "recovery.gone"), Text: s.text(c, "recovery.gone.text")},
			})
			c.Abort()
			return
		}
		s.fail(c, &client.RefusedError{What: foreignForm})
	}
}

// bindForms says what the forms of this answer are bound to. The cookie's value
// cannot be told from the token.
func bindForms(c *gin.Context, bound string) {
	sum := sha256.Sum256([]byte("carme forms\x00" + bound))
	c.Set(keyCSRF, base64.RawURLEncoding.EncodeToString(sum[:]))
}

func csrfToken(c *gin.Context) string { return c.GetString(keyCSRF) }

// session lets in who is logged in. The backend says so, every time.
func (s *Server) session(c *gin.Context) {
	token := cookieValue(c.Request, cookieSession)
	if token == "" {
		s.toLogin(c, "/login", false)
		return
	}
	c.Set(keyToken, token)
	if quickPath(c.FullPath()) { // asks the backend for something else at once
		return
	}
	me, err := s.backend.Me(c.Request.Context(), token)
	if err != nil {
		s.fail(c, err)
		return
	}
	c.Set(keyMe, &me)
}

// known finds out who is logged in, for a page that is shown to anybody, and says
// whether somebody is.
func (s *Server) known(c *gin.Context) bool {
	token := cookieValue(c.Request, cookieSession)
	if token == "" {
		return false
	}
	me, err := s.backend.Me(c.Request.Context(), token)
	if err != nil { // then it is shown as to anybody
		return false
	}
	c.Set(keyMe, &me)
	return true
}

// quickPath says whether a path needs no name on its answer.
func quickPath(path string) bool {
	switch path {
	case "/", "/open", "/events", "/jobs/:id/output", "/jobs/:id/metrics":
		return true
	}
	return strings.HasPrefix(path, "/fragments/")
}

func token(c *gin.Context) string { return c.GetString(keyToken) }

func me(c *gin.Context) *api.Me {
	found, _ := c.Get(keyMe)
	known, _ := found.(*api.Me)
	return known
}

// toLogin sends a person to a page of the login and back afterwards; who was logged in
// is told that this has ended.
func (s *Server) toLogin(c *gin.Context, page string, ended bool) {
	next := "/"
	if c.Request.Method == http.MethodGet && !strings.HasPrefix(c.Request.URL.Path, "/fragments/") {
		next = c.Request.URL.RequestURI()
	}
	query := url.Values{}
	if ended {
		query.Set("ended", "1")
	}
	if next != "/" {
		query.Set("next", next)
	}
	to := strings.TrimSuffix(page+"?"+query.Encode(), "?")
	switch {
	case c.GetHeader("HX-Request") != "":
		c.Header("HX-Redirect", to)
		c.AbortWithStatus(http.StatusOK)
	case c.FullPath() == "/events" || strings.HasSuffix(c.FullPath(), "/output") || strings.HasSuffix(c.FullPath(), "/metrics"):
		c.AbortWithStatus(http.StatusUnauthorized)
	default:
		c.Redirect(http.StatusSeeOther, to)
		c.Abort()
	}
}

// nextPath is a path on this host, whatever was asked for.
func nextPath(next string) string {
	path, ok := ownPath(next)
	if !ok || strings.HasPrefix(path, "/login") || strings.HasPrefix(path, "/fragments") || path == "/events" {
		return "/"
	}
	return next
}

// ownPath is the path of a text that leads to this host and can be read as
// nothing else: browsers take a backslash for a slash.
func ownPath(text string) (path string, ok bool) {
	if len(text) > 2048 || !strings.HasPrefix(text, "/") || strings.HasPrefix(text, "//") ||
		strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == '\\' || r >= 0x7f }) {
		return "", false
	}
	target, err := url.Parse(text)
	if err != nil || target.Host != "" || target.Scheme != "" || target.User != nil || strings.HasPrefix(target.Path, "//") {
		return "", false
	}
	return target.Path, true
}

// source is the address of the browser. No header is believed.
func source(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

func agent(r *http.Request) string {
	text := r.UserAgent()
	if len(text) > 256 {
		text = text[:256]
	}
	return strings.ToValidUTF8(text, "")
}

func theme(r *http.Request) string {
	switch chosen := cookieValue(r, cookieTheme); chosen {
	case "light", "dark":
		return chosen
	}
	return "auto"
}

// prefs keeps the choice of language and colours.
func (s *Server) prefs(c *gin.Context) {
	if lang := c.PostForm("lang"); lang == "en" || lang == "de" {
		s.cookie(c, cookieLang, lang, deviceFor)
	}
	switch chosen := c.PostForm("theme"); chosen {
	case "light", "dark":
		s.cookie(c, cookieTheme, chosen, deviceFor)
	case "auto":
		s.cookie(c, cookieTheme, "", 0)
	}
	to := c.PostForm("next")
	if path, ok := ownPath(to); !ok || !strings.HasPrefix(path, "/login") {
		to = nextPath(to)
	}
	c.Redirect(http.StatusSeeOther, to)
}
