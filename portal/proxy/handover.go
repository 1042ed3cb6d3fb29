package proxy

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
)

const (
	ownPrefix  = "/.carme/"
	pathCome   = ownPrefix + "cb"
	pathClear  = ownPrefix + "clear"
	pathStyle  = ownPrefix + "page.css"
	nonceBytes = 32
	nonceFor   = 10 * time.Minute
	// arrived is the nonce cookie's value just after a hand-over: a refusal
	// then is not answered by another one, or they would go round in circles.
	arrived    = "arrived"
	arrivedFor = 10 * time.Second
	pathMax    = 1024
)

// isOwnPath says whether a path is the portal's on an app's host.
func isOwnPath(path string) bool { return strings.HasPrefix(path, ownPrefix) }

// ownPath answers on the portal's own paths.
func (p *Proxy) ownPath(w http.ResponseWriter, r *http.Request, label string) {
	switch {
	case r.URL.Path == pathCome && r.Method == http.MethodGet:
		p.come(w, r, label)
	case r.URL.Path == pathClear && r.Method == http.MethodPost:
		p.clear(w, r)
	case r.URL.Path == pathStyle && safe(r.Method):
		serveStyle(w, r)
	default:
		p.status(w, r, http.StatusNotFound, "there is no such page")
	}
}

// setCookie sets a cookie of ours on the app's host; an empty value removes it.
func setCookie(w http.ResponseWriter, name, value string, age time.Duration) {
	c := &http.Cookie{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(age.Seconds())}
	if value == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// enter sends a browser without a good cookie to the portal, with the hash of a
// nonce that stays here: only this browser can use what the portal gives out.
func (p *Proxy) enter(w http.ResponseWriter, r *http.Request) {
	if !isPage(r) {
		p.status(w, r, http.StatusUnauthorized, "log in again: reload the page")
		return
	}
	kept := cookie(r, nonceCookie)
	if kept == arrived {
		p.problem(w, r, pageLogin)
		return
	}
	nonce, _, _ := strings.Cut(kept, ".")
	if !validNonce(nonce) { // two tabs at once share one
		random := make([]byte, nonceBytes)
		_, _ = rand.Read(random) // never fails
		nonce = base64.RawURLEncoding.EncodeToString(random)
	}
	path := r.RequestURI
	if len(path) > pathMax {
		path = "/"
	}
	setCookie(w, nonceCookie, nonce+"."+base64.RawURLEncoding.EncodeToString([]byte(path)), nonceFor)
	label, _ := p.names.Label(r.Host)
	sum := sha256.Sum256([]byte(nonce))
	query := url.Values{"host": {label}, "n": {hex.EncodeToString(sum[:])}}
	lead(w, r, p.names.PortalOrigin()+"/open?"+query.Encode())
}

func validNonce(nonce string) bool {
	raw, err := base64.RawURLEncoding.DecodeString(nonce)
	return err == nil && len(raw) == nonceBytes
}

// come is where the portal sends the browser back to, with a one-time code.
func (p *Proxy) come(w http.ResponseWriter, r *http.Request, label string) {
	kept := cookie(r, nonceCookie)
	nonce, path, _ := strings.Cut(kept, ".")
	if !validNonce(nonce) {
		if cookie(r, appCookie) != "" { // the other tab was faster
			lead(w, r, "/")
			return
		}
		p.problem(w, r, pageCookies)
		return
	}
	code := r.URL.Query().Get("code")
	redeemed, err := p.backend.Redeem(r.Context(), api.Redeem{Host: label, Code: code, Nonce: nonce})
	if err != nil {
		setCookie(w, nonceCookie, "", 0)
		if client.Code(err) == client.CodeUnavailable {
			p.problem(w, r, pageAway)
			return
		}
		p.counts.refused.Add(1)
		if left, ok := p.strangers.Turn(p.now()); ok {
			p.log.InfoContext(r.Context(), "hand-over: refused", "host", label, "error", err, "from", remote(r), "left_out", left)
		}
		p.problem(w, r, pageLogin)
		return
	}
	setCookie(w, appCookie, redeemed.Token, time.Duration(redeemed.ExpiresIn)*time.Second)
	setCookie(w, nonceCookie, arrived, arrivedFor)
	lead(w, r, rememberedPath(path))
}

// rememberedPath is the path that a browser came for, never one that leads to
// another host.
func rememberedPath(encoded string) string {
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	path := string(raw)
	if err != nil || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.HasPrefix(path, ownPrefix) ||
		strings.ContainsFunc(path, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '\\' }) {
		return "/"
	}
	return path
}

// cookiePathMax is the longest Path that browsers take, in bytes (RFC 6265bis
// 5.6).
const cookiePathMax = 1024

// longMax is how many requests with too long a head get an answer that helps at
// the same time: each holds a megabyte.
const longMax = 32

// removeMax bounds the headers that remove cookies, in bytes: browsers take
// 256 KB of them in all.
const removeMax = 200 << 10

// tooLong answers a request whose head is too long to pass on: a sibling's page
// can pile up cookies for all hosts below the apps domain. Each is removed by
// name, where a sibling can have put it.
func (p *Proxy) tooLong(w http.ResponseWriter, r *http.Request) {
	if p.long.Add(1) > longMax {
		p.long.Add(-1)
		refuse(w, "the request has too long a head", http.StatusRequestHeaderFieldsTooLarge)
		return
	}
	defer p.long.Add(-1)
	var names []string
	seen := map[string]bool{}
	for _, one := range r.Cookies() {
		if !seen[one.Name] && !oursByName(one.Name) {
			seen[one.Name] = true
			names = append(names, one.Name)
		}
	}
	for _, line := range removals(names, cookiePaths(r.URL.EscapedPath()), cookieDomains(p.names.Apps)) {
		w.Header().Add("Set-Cookie", line)
	}
	p.problem(w, r, pageCookieFlood)
}

// removals are the lines that remove cookies, as many as browsers take. There
// could be millions: a stranger chooses both how many names and how many paths.
func removals(names, paths, domains []string) []string {
	var lines []string
	size := 0
	for _, path := range paths {
		for _, name := range names {
			for _, domain := range domains {
				line := name + "=; Domain=" + domain + "; Path=" + path + "; Max-Age=0; Secure"
				if size += len(line); size > removeMax {
					return lines
				}
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// cookieDomains are those for which a page below the apps domain can set
// cookies, as far as can be told without the list of public suffixes.
func cookieDomains(apps string) []string {
	var all []string
	for domain := apps; strings.Contains(domain, "."); _, domain, _ = strings.Cut(domain, ".") {
		all = append(all, domain)
	}
	return all
}

// cookiePaths are those that a cookie sent with a path can have been set for,
// the widest first.
func cookiePaths(path string) []string {
	all := []string{"/"}
	path = path[:min(len(path), cookiePathMax)]
	path, _, _ = strings.Cut(path, ";") // none can have been set with it
	for at := 1; at < len(path); at++ {
		if path[at] == '/' {
			all = append(all, path[:at], path[:at+1])
		}
	}
	if len(path) > 1 && !strings.HasSuffix(path, "/") {
		all = append(all, path)
	}
	return all
}

// clear removes every cookie of the whole site, and with them the login.
func (p *Proxy) clear(w http.ResponseWriter, r *http.Request) {
	if !admissible(r, "https://"+r.Host, false) {
		p.problem(w, r, pageForeign)
		return
	}
	w.Header().Set("Clear-Site-Data", `"cookies"`)
	lead(w, r, p.names.PortalOrigin()+"/")
}

// lead sends a browser on, by GET.
func lead(w http.ResponseWriter, r *http.Request, to string) {
	hurry(w)
	ownHeaders(w.Header())
	http.Redirect(w, r, to, http.StatusSeeOther)
}
