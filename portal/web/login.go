package web

import (
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
)

type loginData struct{ Next, Username string }

type factorData struct {
	Next     string
	Recovery bool
}

type enrolData struct {
	Next, Secret, QRText, Action string
	QR, URI                      template.URL
}

type recoveryData struct {
	User, Host string // whose they are and where, for those who print them
	Codes      []string
	Next       string
}

func (s *Server) text(c *gin.Context, key string) string {
	return s.texts[chooseLanguage(c.Request)].text(key)
}

func (s *Server) bad(c *gin.Context, err error) *notice {
	return &notice{Kind: "bad", Text: s.say(c, err)}
}

func (s *Server) loginPage(c *gin.Context) {
	v := view{Title: s.text(c, "login.title"), Data: loginData{Next: nextPath(c.Query("next"))}}
	if c.Query("ended") != "" {
		v.Notice = &notice{Kind: "busy", Text: s.text(c, "login.ended")}
	}
	s.page(c, http.StatusOK, "login", v)
}

func (s *Server) login(c *gin.Context) {
	next, username := nextPath(c.PostForm("next")), strings.TrimSpace(c.PostForm("username"))
	answer, err := s.backend.Login(c.Request.Context(), api.Login{
		Username: username, Password: c.PostForm("password"), Source: source(c.Request),
		Device: cookieValue(c.Request, cookieDevice), Agent: agent(c.Request),
	})
	if err != nil {
		status := http.StatusServiceUnavailable
		switch client.Code(err) {
		case client.CodeLoginRefused, client.CodeSlowDown, client.CodeInvalid:
			status = http.StatusUnauthorized
		}
		s.page(c, status, "login", view{Title: s.text(c, "login.title"), Notice: s.bad(c, err), Data: loginData{Next: next, Username: username}})
		return
	}
	s.leave(c)
	s.entered(c, answer, next)
}

// leave ends the login that the browser had before, if any: nobody would see that
// it still is.
func (s *Server) leave(c *gin.Context) {
	before := cookieValue(c.Request, cookieSession)
	if before == "" {
		return
	}
	if err := s.backend.Logout(c.Request.Context(), before); err != nil && client.Code(err) != client.CodeNoSession {
		s.log.WarnContext(c.Request.Context(), "login: the one before could not be ended", "error", err)
	}
}

// entered keeps the session of a step of the login, in a cookie with a new
// value each time, and goes on to the next step.
func (s *Server) entered(c *gin.Context, answer api.LoginAnswer, next string) {
	s.keep(c, answer)
	query := ""
	if next != "/" {
		query = "?next=" + url.QueryEscape(next)
	}
	switch answer.State {
	case api.SessionPending:
		c.Redirect(http.StatusSeeOther, "/login/factor"+query)
	case api.SessionEnrol:
		c.Redirect(http.StatusSeeOther, "/login/enrol"+query)
	default:
		c.Redirect(http.StatusSeeOther, next)
	}
}

func (s *Server) keep(c *gin.Context, answer api.LoginAnswer) {
	s.cookie(c, cookieSession, answer.Token, time.Duration(answer.ExpiresIn)*time.Second)
	if answer.Device != "" {
		s.cookie(c, cookieDevice, answer.Device, deviceFor)
	}
	bindForms(c, answer.Token)
}

func (s *Server) factorPage(c *gin.Context) {
	if cookieValue(c.Request, cookieSession) == "" {
		s.toLogin(c, "/login", false)
		return
	}
	s.page(c, http.StatusOK, "factor", view{
		Title: s.text(c, "factor.title"), Data: factorData{Next: nextPath(c.Query("next")), Recovery: c.Query("recovery") != ""},
	})
}

// digits is a code as people type it, with a space in the middle.
func digits(text string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, text)
}

func (s *Server) factor(c *gin.Context) {
	next := nextPath(c.PostForm("next"))
	in := api.Factor{Recovery: strings.TrimSpace(c.PostForm("recovery")), Source: source(c.Request)}
	if in.Recovery == "" {
		in.Code = digits(c.PostForm("code"))
	}
	answer, err := s.backend.Factor(c.Request.Context(), cookieValue(c.Request, cookieSession), in)
	switch client.Code(err) {
	case "":
		s.entered(c, answer, next)
	case client.CodeFactorRefused, client.CodeSlowDown, client.CodeInvalid:
		said := s.bad(c, err)
		if in.Recovery != "" && client.Code(err) == client.CodeFactorRefused {
			said.Text = s.text(c, "say.recovery_refused") // there is no next one to wait for
		}
		s.page(c, http.StatusUnauthorized, "factor", view{
			Title: s.text(c, "factor.title"), Notice: said, Data: factorData{Next: next, Recovery: in.Recovery != ""},
		})
	default:
		s.fail(c, err)
	}
}

// picture is a PNG as the address of an image, empty for anything else.
func picture(text string) template.URL {
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil || !strings.HasPrefix(string(data), "\x89PNG") {
		return ""
	}
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(data)) //nolint:gosec // a picture cannot act
}

// authenticator is a link that authenticator apps open, empty for anything else.
func authenticator(text string) template.URL {
	if !strings.HasPrefix(text, "otpauth://totp/") {
		return ""
	}
	return template.URL(text) //nolint:gosec // no browser runs what is behind that scheme
}

func enrolment(in api.Enrolment, next, action string) enrolData {
	text := base64.StdEncoding.EncodeToString(in.QR)
	return enrolData{Next: next, Secret: in.Secret, QRText: text, QR: picture(text), URI: authenticator(in.URI), Action: action}
}

// again is the same enrolment once more, after a wrong code: what was scanned
// stays good.
func again(c *gin.Context, next, action string) enrolData {
	return enrolData{Next: next, Secret: c.PostForm("secret"), QRText: c.PostForm("qr"), QR: picture(c.PostForm("qr")), URI: authenticator(c.PostForm("uri")), Action: action}
}

func (s *Server) enrolPage(c *gin.Context) {
	if cookieValue(c.Request, cookieSession) == "" {
		s.toLogin(c, "/login", false)
		return
	}
	in, err := s.backend.Enrol(c.Request.Context(), cookieValue(c.Request, cookieSession))
	if err != nil {
		s.fail(c, err)
		return
	}
	s.page(c, http.StatusOK, "enrol", view{Title: s.text(c, "enrol.title"), Wide: true, Data: enrolment(in, nextPath(c.Query("next")), "/login/enrol")})
}

func (s *Server) enrolConfirm(c *gin.Context) {
	next := nextPath(c.PostForm("next"))
	answer, err := s.backend.EnrolConfirm(c.Request.Context(), cookieValue(c.Request, cookieSession), api.Confirm{
		Code: digits(c.PostForm("code")), Source: source(c.Request),
	})
	switch client.Code(err) {
	case "":
	case client.CodeFactorRefused, client.CodeSlowDown, client.CodeInvalid:
		s.page(c, http.StatusUnauthorized, "enrol", view{Title: s.text(c, "enrol.title"), Wide: true, Notice: s.bad(c, err), Data: again(c, next, "/login/enrol")})
		return
	default:
		s.fail(c, err)
		return
	}
	s.keep(c, answer)
	s.page(c, http.StatusOK, "recovery", view{Title: s.text(c, "recovery.title"), Wide: true, Once: true, Data: recoveryData{User: answer.User.Name, Host: c.Request.Host, Codes: answer.RecoveryCodes, Next: next}})
}

func (s *Server) logout(c *gin.Context) {
	if token := cookieValue(c.Request, cookieSession); token != "" {
		if err := s.backend.Logout(c.Request.Context(), token); err != nil && client.Code(err) != client.CodeNoSession {
			s.fail(c, err) // the session still is: do not say that it ended
			return
		}
	}
	s.cookie(c, cookieSession, "", 0)
	c.Redirect(http.StatusSeeOther, "/login")
}
