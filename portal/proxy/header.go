package proxy

import (
	"bufio"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// Cookies of ours on an app's host. Every name with cookiePrefix is ours.
const (
	cookiePrefix = "__Host-carme"
	appCookie    = "__Host-carme-app"
	nonceCookie  = "__Host-carme-n"
)

// hop are the headers of one connection, of which the next has its own.
var hop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Authorization": true, "Proxy-Authentication-Info": true,
	"Proxy-Connection": true, "Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true, "Http2-Settings": true,
}

// notForApps are the headers of a request that an app never gets from a
// browser: what says who the user is or where the request came from is ours to
// say, and Authorization could only be ours.
var notForApps = map[string]bool{
	"Authorization": true, "Forwarded": true, "Via": true, "Proxy": true, "Expect": true, "Content-Length": true, "Host": true, "Cookie": true,
	"X-Real-Ip": true, "X-Client-Ip": true, "X-Cluster-Client-Ip": true, "True-Client-Ip": true, "Cf-Connecting-Ip": true, "X-User": true,
	"X-Username": true, "X-Rewrite-Url": true, "X-Authenticated-User": true, "X-Authenticated-Userid": true, "X-Webauth-User": true,
}

var notForAppsPrefixes = []string{"X-Forwarded", "X-Remote-", "Remote-", "X-Original-", "X-Auth-", "X-Carme-", "X-Ssl-", "Ssl-"}

// stays says whether a header of a browser's request is passed on to the app.
func stays(name string, named []string) bool {
	if hop[name] || notForApps[name] || strings.ContainsRune(name, '_') { // X_Forwarded_For is X-Forwarded-For to WSGI
		return false
	}
	for _, prefix := range notForAppsPrefixes {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return !slices.Contains(named, name)
}

// connectionNamed are the headers that Connection says belong to the
// connection, in the form of http.Header's keys.
func connectionNamed(h http.Header) []string {
	values := h["Connection"]
	if len(values) == 0 {
		return nil
	}
	var names []string
	for _, value := range values {
		for part := range strings.SplitSeq(value, ",") {
			names = append(names, http.CanonicalHeaderKey(strings.TrimSpace(part)))
		}
	}
	return names
}

// writeHead writes the head of a request for the app up to, and without, the
// headers of its framing and the empty line.
func writeHead(w *bufio.Writer, r *http.Request, g *api.Grant) {
	w.WriteString(r.Method)
	w.WriteByte(' ')
	w.WriteString(r.RequestURI)
	w.WriteString(" HTTP/1.1\r\nHost: ")
	w.WriteString(r.Host)
	w.WriteString("\r\n")
	named := connectionNamed(r.Header)
	for name, values := range r.Header {
		if !stays(name, named) {
			continue
		}
		for _, value := range values {
			field(w, name, value)
		}
	}
	cookies := 0
	for _, line := range r.Header["Cookie"] {
		for part := range strings.SplitSeq(line, ";") {
			part = strings.TrimSpace(part)
			if part == "" || oursByName(part) {
				continue
			}
			if cookies == 0 {
				w.WriteString("Cookie: ")
			} else {
				w.WriteString("; ")
			}
			w.WriteString(part)
			cookies++
		}
	}
	if cookies > 0 {
		w.WriteString("\r\n")
	}
	field(w, "X-Forwarded-For", remote(r))
	field(w, "X-Forwarded-Proto", "https")
	field(w, "X-Forwarded-Host", r.Host)
	field(w, "X-Carme-User", g.User)
	field(w, "X-Carme-Viewer", g.Viewer)
	field(w, "X-Carme-Mode", g.Mode)
}

func field(w *bufio.Writer, name, value string) {
	w.WriteString(name)
	w.WriteString(": ")
	w.WriteString(value)
	w.WriteString("\r\n")
}

// oursByName says whether a cookie, or a Set-Cookie, has a name of ours. One
// without a name, "=__Host-carme-app=x", would come back as if it had ours.
func oursByName(cookie string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(cookie, "= \t"), "=")
	name = strings.TrimSpace(name)
	return len(name) >= len(cookiePrefix) && strings.EqualFold(name[:len(cookiePrefix)], cookiePrefix)
}

func remote(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// notFromApps are the headers of an answer that would reach beyond the app's
// own origin, or change what we say about it.
var notFromApps = map[string]bool{
	"Clear-Site-Data": true, "Strict-Transport-Security": true, "Alt-Svc": true, "Public-Key-Pins": true, "Public-Key-Pins-Report-Only": true,
	"Expect-Ct": true, "Nel": true, "Report-To": true, "Set-Login": true, "Origin-Agent-Cluster": true, "Alt-Used": true,
}

// copyAnswer copies the headers of an app's answer to those for the browser.
func copyAnswer(dst, src http.Header, host string) {
	named := connectionNamed(src)
	for name, values := range src {
		if hop[name] || notFromApps[name] || len(named) > 0 && slices.Contains(named, name) {
			continue
		}
		switch name {
		case "Set-Cookie":
			values = ownCookies(values)
		case "Location", "Content-Location":
			values = []string{ownLocation(first(values), host)}
		case "Service-Worker-Allowed":
			if v := first(values); !strings.HasPrefix(v, "/") || strings.HasPrefix(v, "//") {
				continue
			}
		}
		if len(values) > 0 {
			dst[name] = values
		}
	}
	dst["Origin-Agent-Cluster"] = agentCluster
	dst["Strict-Transport-Security"] = transportSecurity
	if len(dst["Cross-Origin-Opener-Policy"]) == 0 {
		dst["Cross-Origin-Opener-Policy"] = openerPolicy
	}
	if len(dst["Cross-Origin-Resource-Policy"]) == 0 {
		dst["Cross-Origin-Resource-Policy"] = resourcePolicy
	}
	if len(dst["Referrer-Policy"]) == 0 { // the name of a session is nobody else's business
		dst["Referrer-Policy"] = referrerPolicy
	}
}

// Shared by all answers and never written to.
var (
	agentCluster      = []string{"?1"}
	transportSecurity = []string{"max-age=31536000; includeSubDomains"}
	openerPolicy      = []string{"same-origin-allow-popups"}
	resourcePolicy    = []string{"same-origin"}
	referrerPolicy    = []string{"same-origin"}
)

// ownCookies keeps an app's cookies on its own host: without Domain, and none
// with a name of ours.
func ownCookies(lines []string) []string {
	kept := make([]string, 0, len(lines))
	for _, line := range lines {
		if oursByName(line) || strings.ContainsFunc(line, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			continue
		}
		if !strings.Contains(strings.ToLower(line), "domain") {
			kept = append(kept, line)
			continue
		}
		parts := strings.Split(line, ";")
		left := slices.DeleteFunc(parts[1:], func(part string) bool {
			name, _, _ := strings.Cut(part, "=")
			return strings.EqualFold(strings.TrimSpace(name), "domain")
		})
		kept = append(kept, strings.Join(append(parts[:1], left...), ";"))
	}
	return kept
}

// ownLocation turns a redirect to where the app believes to be, its own host or
// an inner address, into one on this host.
func ownLocation(location, host string) string {
	target, err := url.Parse(location)
	if err != nil || target.Host == "" || target.Host != host && !inner(target.Hostname()) {
		return location
	}
	target.Scheme, target.Host, target.User = "", "", nil
	if out := target.String(); strings.HasPrefix(out, "/") && !strings.HasPrefix(out, "//") {
		return out
	}
	return "/"
}

// inner says whether a host is none that a browser outside should be sent to.
func inner(host string) bool {
	if strings.EqualFold(host, "localhost") || !strings.Contains(host, ".") && !strings.Contains(host, ":") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && (addr.IsLoopback() || addr.IsPrivate() || addr.IsUnspecified() || addr.IsLinkLocalUnicast())
}
