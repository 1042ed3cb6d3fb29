package web

import (
	"cmp"
	"errors"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
)

const codeForeign = "foreign_form"

var (
	notFound    = api.Error{Code: client.CodeNotFound}
	foreignForm = api.Error{Code: codeForeign}
)

type errorData struct {
	Title, Text string
	Again       string // what can be asked for once more
	Away        bool
}

// fail answers with what went wrong, and lets no further handler answer.
func (s *Server) fail(c *gin.Context, err error) {
	defer c.Abort()
	code := client.Code(err)
	texts := s.texts[chooseLanguage(c.Request)]
	data := errorData{}
	if c.Request.Method == http.MethodGet {
		data.Again = c.Request.URL.RequestURI()
	}
	status := http.StatusInternalServerError
	switch code {
	case client.CodeNoSession:
		if strings.HasPrefix(c.FullPath(), "/login/") {
			// It may be a full one that is no longer at this step. A sibling's page,
			// or any link, leads here: it must not log anybody out.
			c.Redirect(http.StatusSeeOther, nextPath(cmp.Or(c.PostForm("next"), c.Query("next"))))
			return
		}
		if step, ok := stepPages[stepOf(err)]; ok { // the logo, a bookmark, a second tab
			s.toLogin(c, step, false)
			return
		}
		s.cookie(c, cookieSession, "", 0)
		s.toLogin(c, "/login", true)
		return
	case client.CodeNotFound:
		status = http.StatusNotFound
		data.Title, data.Text = texts.text("error.notfound"), texts.text("error.notfound.text")
	case client.CodeForbidden:
		status = http.StatusForbidden
		data.Title, data.Text = texts.text("error.forbidden"), texts.text("error.forbidden.text")
	case codeForeign:
		status = http.StatusForbidden
		data.Title, data.Text = texts.text("error.foreign"), texts.text("error.foreign.text")
	case client.CodeUnavailable:
		status = http.StatusServiceUnavailable
		data.Title, data.Text, data.Away = texts.text("error.away"), texts.text("error.away.text"), true
		c.Header("Retry-After", "5")
	default:
		data.Title, data.Text = texts.text("error.internal"), s.say(c, err)
		data.Away = true
		if known, ok := errors.AsType[*client.RefusedError](err); ok && known.Status >= 400 && known.Status < 500 {
			status = http.StatusUnprocessableEntity
		}
	}
	if status >= http.StatusInternalServerError {
		if left, ok := s.failed.Turn(s.now()); ok {
			s.log.WarnContext(c.Request.Context(), "page: failed", "path", c.FullPath(), "error", err, "left_out", left)
		}
	}
	s.page(c, status, "error", view{Title: data.Title, Me: me(c), Data: data})
}

// stepPages are where a login goes on that is not complete.
var stepPages = map[string]string{api.SessionPending: "/login/factor", api.SessionEnrol: "/login/enrol"}

// stepOf is what a login waits for, or empty.
func stepOf(err error) string {
	if known, ok := errors.AsType[*client.RefusedError](err); ok {
		return known.What.Step
	}
	return ""
}

// say is an error as a person reads it: in their language if it is a known one,
// else as the backend says it.
func (s *Server) say(c *gin.Context, err error) string {
	texts := s.texts[chooseLanguage(c.Request)]
	known, ok := errors.AsType[*client.RefusedError](err)
	if !ok {
		return texts.text("say.internal")
	}
	if known.What.Code == client.CodeSlowDown {
		return texts.number("say.slow_down", max(1, known.What.RetryAfter))
	}
	if known.What.Words != nil {
		return said(texts, known.What.Words.Code, known.What.Words.Args, known.What.Message)
	}
	if len(known.What.Fields) > 0 {
		return texts.text("say.fields")
	}
	if text, ok := texts["say."+known.What.Code]; ok {
		return text
	}
	if known.What.Message == "" {
		return texts.text("say.internal")
	}
	return known.What.Message
}
