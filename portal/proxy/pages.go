package proxy

import (
	"bytes"
	_ "embed" // page.html and page.css
	"html/template"
	"net/http"
	"strconv"
	"strings"
)

//go:embed page.html
var pageSource string

//go:embed page.css
var pageStyle []byte

var pageTemplate = template.Must(template.New("page").Parse(pageSource))

// page is one thing that can be wrong between a browser and an app.
type page struct {
	status  int
	refresh int // seconds until the browser tries again, 0 for never
	again   bool
	clear   bool
	en, de  [2]string // title and text
}

var (
	pageWaiting = page{
		status: http.StatusServiceUnavailable, refresh: 2,
		en: [2]string{"Your app is starting", "The job runs, and the app in it will answer in a moment. This page looks again by itself."},
		de: [2]string{"Die Anwendung startet", "Der Job läuft, die Anwendung darin antwortet gleich. Diese Seite schaut von selbst wieder nach."},
	}
	pageEnded = page{
		status: http.StatusNotFound,
		en:     [2]string{"There is no session here", "The job has ended, or the session is not yours. The portal lists your sessions and says why one ended."},
		de:     [2]string{"Hier ist keine Sitzung", "Der Job ist zu Ende, oder die Sitzung gehört Ihnen nicht. Das Portal zeigt Ihre Sitzungen und sagt, warum eine zu Ende ist."},
	}
	pageForbidden = page{
		status: http.StatusForbidden,
		en:     [2]string{"You may not open this session", "It belongs to somebody else."},
		de:     [2]string{"Sie dürfen diese Sitzung nicht öffnen", "Sie gehört jemand anderem."},
	}
	pageForeign = page{
		status: http.StatusForbidden, again: true,
		en: [2]string{"This request came from another page", "Only the session's own pages may do that. If you followed a link, open the session again."},
		de: [2]string{"Diese Anfrage kam von einer fremden Seite", "Nur die Seiten der Sitzung selbst dürfen das. Falls Sie einem Link gefolgt sind, öffnen Sie die Sitzung erneut."},
	}
	pageAway = page{
		status: http.StatusServiceUnavailable, refresh: 5,
		en: [2]string{"Carme does not answer right now", "Your job goes on. This page tries again every few seconds."},
		de: [2]string{"Carme antwortet gerade nicht", "Ihr Job läuft weiter. Diese Seite versucht es alle paar Sekunden erneut."},
	}
	pageNode = page{
		status: http.StatusBadGateway, refresh: 5,
		en: [2]string{"The node cannot be reached", "Your job goes on, but the way to its node is cut. This page tries again every few seconds."},
		de: [2]string{"Der Knoten ist nicht erreichbar", "Ihr Job läuft weiter, aber der Weg zu seinem Knoten ist unterbrochen. Diese Seite versucht es alle paar Sekunden erneut."},
	}
	pageBroken = page{
		status: http.StatusBadGateway, again: true,
		en: [2]string{"The app gave no proper answer", "It may have crashed. Its log is on the job's page in the portal."},
		de: [2]string{"Die Anwendung hat nicht richtig geantwortet", "Vielleicht ist sie abgestürzt. Das Protokoll steht im Portal auf der Seite des Jobs."},
	}
	pageBusy = page{
		status: http.StatusServiceUnavailable, refresh: 5,
		en: [2]string{"Too many connections", "This session has as many connections open as it may. Close some of its tabs."},
		de: [2]string{"Zu viele Verbindungen", "Diese Sitzung hat so viele Verbindungen offen, wie sie darf. Schließen Sie einige ihrer Tabs."},
	}
	pageLogin = page{
		status: http.StatusForbidden, again: true,
		en: [2]string{"Please open the session again", "The way to this session was good for one moment and one browser only. Opening it again makes a new one."},
		de: [2]string{"Bitte öffnen Sie die Sitzung noch einmal", "Der Weg zu dieser Sitzung galt nur einen Moment und nur für einen Browser. Beim Öffnen entsteht ein neuer."},
	}
	pageCookies = page{
		status: http.StatusForbidden, again: true, clear: true,
		en: [2]string{"Your browser did not keep a cookie", "Allow cookies for this address. If they are allowed, another page may have pushed them out: clear them and log in again."},
		de: [2]string{"Ihr Browser hat ein Cookie nicht behalten", "Erlauben Sie Cookies für diese Adresse. Sind sie erlaubt, hat vielleicht eine andere Seite sie verdrängt: Löschen Sie alle und melden Sie sich neu an."},
	}
	pageCookieFlood = page{
		status: http.StatusRequestHeaderFieldsTooLarge, again: true, clear: true,
		en: [2]string{"There were too many cookies", "Another session's page may have piled them up. They have been removed; try again. If that does not help, clear all cookies, which logs you out everywhere."},
		de: [2]string{"Es waren zu viele Cookies", "Vielleicht hat die Seite einer anderen Sitzung sie angehäuft. Sie wurden entfernt; versuchen Sie es erneut. Hilft das nicht, löschen Sie alle Cookies, was Sie überall abmeldet."},
	}
)

var buttons = map[string]struct{ again, home, clear string }{
	"en": {"Try again", "To the portal", "Clear all cookies, log out everywhere"},
	"de": {"Erneut versuchen", "Zum Portal", "Alle Cookies löschen, überall abmelden"},
}

// problem shows a person what is wrong, and tells a script by status.
func (p *Proxy) problem(w http.ResponseWriter, r *http.Request, what page) {
	if what.refresh > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(what.refresh))
	}
	if !isPage(r) {
		p.status(w, r, what.status, what.en[0])
		return
	}
	lang, text := "en", what.en
	if german(r.Header.Get("Accept-Language")) {
		lang, text = "de", what.de
	}
	fields := map[string]any{
		"Lang": lang, "Title": text[0], "Text": text[1], "Refresh": what.refresh, "Clear": what.clear,
		"Portal": p.names.PortalOrigin(), "Home": buttons[lang].home, "ClearText": buttons[lang].clear, "Again": "",
	}
	if what.again {
		fields["Again"] = buttons[lang].again
	}
	var out bytes.Buffer
	if err := pageTemplate.Execute(&out, fields); err != nil {
		p.log.ErrorContext(r.Context(), "page: cannot be made", "error", err)
	}
	hurry(w)
	h := w.Header()
	ownHeaders(h)
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Vary", "Accept-Language")
	w.WriteHeader(what.status)
	_, _ = w.Write(out.Bytes()) // the browser is gone or not
}

func (p *Proxy) status(w http.ResponseWriter, _ *http.Request, status int, text string) {
	refuse(w, text, status)
}

func ownHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self' https:; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h["Strict-Transport-Security"] = transportSecurity
	h["Cross-Origin-Opener-Policy"] = openerPolicy
	h["Cross-Origin-Resource-Policy"] = resourcePolicy
	h["Origin-Agent-Cluster"] = agentCluster
}

// german says whether German comes before English in a browser's wishes.
func german(accept string) bool {
	for part := range strings.SplitSeq(strings.ToLower(accept), ",") {
		switch part = strings.TrimSpace(part); {
		case strings.HasPrefix(part, "de"):
			return true
		case strings.HasPrefix(part, "en"):
			return false
		}
	}
	return false
}

func serveStyle(w http.ResponseWriter, r *http.Request) {
	hurry(w)
	ownHeaders(w.Header())
	w.Header().Set("Cache-Control", "max-age=3600")
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	if r.Method == http.MethodGet {
		_, _ = w.Write(pageStyle) // the browser is gone or not
	}
}
