//go:build integration

package integration

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// carry gives a browser a visitor's cookies for an address.
func (b *browser) carry(v *visitor, target string) {
	b.t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		b.t.Fatal(err)
	}
	yes := true
	for _, c := range v.client.Jar.Cookies(u) {
		if c.Name == nonceCookie {
			continue // of a hand-over that is done, and here it would last
		}
		_, err := chromedp.Call(b.ctx, network.SetCookie, network.SetCookieParams{
			Name: c.Name, Value: c.Value, URL: target, Path: "/", Secure: &yes, HTTPOnly: &yes, SameSite: network.CookieSameSiteLax,
		})
		if err != nil {
			b.t.Fatalf("give the browser %s: %v", c.Name, err)
		}
	}
}

// page is the address at which a mirror shows a page.
func (o opened) page(html string) string {
	return o.origin + "/reply?" + url.Values{"h": {"Content-Type: text/html"}, "body": {html}}.Encode()
}

// lured is alice's browser on a page of mallory's, which is a sibling of alice's
// own session: as if mallory had invited her, or as if a notebook of her own
// turned against her.
func (s site) lured(t *testing.T) (b *browser, alice *visitor, hers, evil opened) {
	t.Helper()
	alice, mallory, hers, evil := s.neighbours(t)
	if s.own == nil {
		b = open(t)
	} else {
		key := sha256.Sum256(s.own.RawSubjectPublicKeyInfo)
		b = open(t, chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])))
	}
	b.carry(alice, s.url())
	b.carry(alice, hers.origin)
	b.carry(mallory, evil.origin)
	b.do(goTo(hers.origin + "/who"))
	if text := ask[string](b, "document.body.innerText"); !strings.HasPrefix(text, "alice in job") {
		t.Fatalf("alice's own browser shows %q", text)
	}
	b.do(goTo(evil.page("<h1>hello</h1>")))
	if text := ask[string](b, "document.body.innerText"); text != "hello" {
		t.Fatalf("mallory's page shows %q", text)
	}
	return b, alice, hers, evil
}

// every attempt of a hostile page: it notes what it wins and what is refused.
const hostile = `
const hers = HERS, portal = PORTAL;
window.out = []; window.left = 0;
const attempt = (what, promise) => { left++; Promise.race([promise, new Promise((_, no) => setTimeout(no, 6000))]).then(v => out.push("won " + what + ": " + String(v).slice(0, 200)), () => out.push("refused " + what)).finally(() => left--); };
const load = (tag, attributes) => new Promise((yes, no) => { const e = document.createElement(tag); e.onload = () => yes("loaded"); e.onerror = no; Object.assign(e, attributes); document.body.append(e); });
const framed = url => new Promise((yes, no) => { const f = document.createElement("iframe"); f.onload = () => { try { yes(f.contentDocument.body.innerText || no()) } catch (e) { no(e) } }; f.src = url; document.body.append(f); });
const posted = (url, fields, type) => new Promise((yes, no) => { const f = document.createElement("iframe"); f.name = "f" + Math.random(); document.body.append(f);
	const form = document.createElement("form"); form.method = "post"; form.action = url; form.target = f.name; form.enctype = type;
	for (const k in fields) { const i = document.createElement("input"); i.name = k; i.value = fields[k]; form.append(i); }
	f.onload = () => { try { if (f.contentWindow.location.href !== "about:blank") yes(f.contentDocument.body.innerText) } catch (e) { no(e) } }; document.body.append(form); form.submit(); });
for (const [name, base] of [["app", hers], ["portal", portal]]) {
	const paths = name === "app" ? ["/stolen", "/who"] : ["/security", "/jobs", "/login", "/login/enrol", "/events"];
	for (const path of paths) {
		attempt(name + " fetch " + path, fetch(base + path, {credentials: "include"}).then(r => r.text()));
		attempt(name + " fetch with a header " + path, fetch(base + path, {credentials: "include", headers: {"X-Evil": "1"}}).then(r => r.text()));
		attempt(name + " fetch no-cors " + path, fetch(base + path, {credentials: "include", mode: "no-cors"}).then(r => r.text()).then(t => t || Promise.reject()));
		attempt(name + " image " + path, load("img", {src: base + path + "?img"}));
		attempt(name + " script " + path, load("script", {src: base + path + "?script"}));
		attempt(name + " style " + path, load("link", {rel: "stylesheet", href: base + path + "?style"}));
		attempt(name + " module " + path, import(base + path + "?module"));
		attempt(name + " frame " + path, framed(base + path + "?frame"));
		attempt(name + " events " + path, new Promise((yes, no) => { const e = new EventSource(base + path + "?events", {withCredentials: true}); e.onmessage = e.onopen = () => yes("open"); e.onerror = no; }));
		for (const method of ["PUT", "DELETE", "PATCH"]) attempt(name + " " + method + " " + path, fetch(base + path, {method, credentials: "include"}).then(r => r.text()));
		for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
			attempt(name + " form " + type + " " + path, posted(base + path, {csrf: "x", code: "1"}, type));
		attempt(name + " post " + path, fetch(base + path, {method: "POST", credentials: "include", mode: "no-cors", body: "x=1"}).then(r => r.text()).then(t => t || Promise.reject()));
		navigator.sendBeacon(base + path + "?beacon", "x=1");
	}
	attempt(name + " websocket", new Promise((yes, no) => { const w = new WebSocket(base.replace("https", "wss") + "/ws"); w.onmessage = m => yes(m.data); w.onopen = () => yes("open"); w.onerror = no; }));
}
attempt("portal logout", fetch(portal + "/logout", {method: "POST", credentials: "include", mode: "no-cors", headers: {"Content-Type": "application/x-www-form-urlencoded"}, body: "csrf=x"}).then(r => r.text()).then(t => t || Promise.reject()));
attempt("domain", new Promise((yes, no) => { document.domain = location.hostname.replace(/^[^.]*\./, ""); window.originAgentCluster ? no() : yes(document.domain); }));
attempt("service worker", navigator.serviceWorker.register(hers + "/sw.js"));
attempt("shared cookie", new Promise((yes, no) => document.cookie.includes("carme") ? yes(document.cookie) : no()));
"started"
`

func TestAttack_W14_a_siblings_page_reads_nothing_and_does_nothing(t *testing.T) {
	inBothLayouts(t, site.siblings)
}

// inBothLayouts runs an attack where portal and apps have one registrable domain,
// and where they have two.
func inBothLayouts(t *testing.T, attack func(site, *testing.T)) {
	t.Helper()
	for name, where := range map[string]func(*testing.T) site{
		"portal and apps on one registrable domain":  func(*testing.T) site { return firstSite },
		"portal and apps on two registrable domains": secondSite,
	} {
		t.Run(name, func(t *testing.T) { attack(where(t), t) })
	}
}

// widest is the widest domain for which an app's page may set cookies: that of the
// portal too, if it shares it.
func (s site) widest() string {
	_, parent, _ := strings.Cut(s.apps, ".")
	if strings.Contains(parent, ".") && strings.HasSuffix(s.host, "."+parent) {
		return parent
	}
	return s.apps
}

func (s site) siblings(t *testing.T) {
	t.Helper()
	b, alice, hers, _ := s.lured(t)
	before := alice.seen(hers)
	quote := func(text string) string {
		data, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	ask[string](b, strings.NewReplacer("HERS", quote(hers.origin), "PORTAL", quote(s.url())).Replace("{"+hostile+"}"))
	eventually(t, time.Minute, "the end of the attempts", func() bool { return ask[bool](b, "left === 0") })
	out := lines(ask[string](b, "out.join('\\n')"))
	if len(out) < 70 {
		t.Errorf("only %d attempts", len(out))
	}
	for _, o := range out {
		if strings.HasPrefix(o, "won") {
			t.Error(o)
		}
	}
	if after := alice.seen(hers); after != before {
		t.Errorf("alice's app got\n%s", strings.TrimPrefix(after, before))
	}
	if !alice.in() {
		t.Error("alice was logged out")
	}
	// A window of its own shows alice her app, and mallory's page nothing of it.
	b.forgive()
	ask[bool](b, `window.w = window.open(`+quote(hers.origin+"/who")+`), true`)
	eventually(t, 20*time.Second, "what an opener sees", func() bool {
		return ask[string](b, `(() => { if (!window.w || w.closed) return "severed"; try { return w.document.body ? "won " + w.document.body.innerText : "" } catch { return "refused" } })()`) != ""
	})
	if got := ask[string](b, `(() => { if (!window.w || w.closed) return "severed"; try { return "won " + w.location.href } catch { return "refused" } })()`); strings.HasPrefix(got, "won https") {
		t.Errorf("the opener reads %s", got)
	}
	b.do(goTo(s.url()+"/jobs"), appears("#jobtable")) // the browser is still logged in
	b.forgive()
}

func TestAttack_W20_parts_of_pages_stay_out_of_the_browsers_cache(t *testing.T) {
	b := open(t)
	b.login("bob")
	eventually(t, time.Minute, "a part of the page that is not sent again", func() bool {
		return ask[bool](b, `htmx.trigger(document.body, "carme:cluster"), performance.getEntriesByType("resource").some(e => e.name.endsWith("/fragments/cluster") && e.responseStatus === 304)`)
	})
	if text := b.text("#cluster"); !strings.Contains(text, "free") {
		t.Errorf("the part is gone: %q", text)
	}
	cached := ask[string](b, `performance.getEntriesByType("resource").filter(e => e.name.includes("/fragments/") && e.deliveryType === "cache").map(e => e.name).join(" ")`)
	if cached != "" {
		t.Errorf("from the cache came %s", cached)
	}
}

// secondSite is another portal beside the first, whose pages and apps are not
// one site to a browser.
func secondSite(t *testing.T) site {
	t.Helper()
	s := site{host: "portal.localhost", apps: "apps.localhost", port: "9443"}
	const dir = "/var/lib/it-portal"
	undo(t, login, "kill $(cat "+dir+"/pid); rm -rf "+dir)
	sh(t, login, "rm -rf "+dir+" && mkdir -p "+dir)
	// The testbed's CA is bound to the first portal's names.
	cert := forged(t, "", "", func(c *x509.Certificate) { c.DNSNames = []string{s.host, "*." + s.apps} })
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if s.own, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		t.Fatal(err)
	}
	place(t, login, dir+"/web.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	place(t, login, dir+"/web.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	sh(t, login, "sed -e 's/^listen:.*/listen: \":"+s.port+"\"/' -e 's/^portal_host:.*/portal_host: "+s.host+"/' -e 's/^apps_domain:.*/apps_domain: "+s.apps+"/' "+
		"-e 's/^public_port:.*/public_port: "+s.port+"/' -e 's/^metrics_listen:.*//' -e 's#[^ ]*web.crt#"+dir+"/web.crt#' -e 's#[^ ]*web.key#"+dir+"/web.key#' /etc/carme/portal.yaml >"+dir+"/portal.yaml && "+
		"chown carme-portal "+dir+"/web.key && chmod 600 "+dir+"/web.key")
	run(t, "docker", "exec", "-d", container(login), "sh", "-c", "echo $$ >"+dir+"/pid; "+
		"exec setpriv --reuid carme-portal --regid carme-portal --init-groups carme-portal --config "+dir+"/portal.yaml >"+dir+"/log 2>&1").ok(t)
	v := s.visit(t, "nobody")
	defer func() {
		if t.Failed() {
			t.Log(sh(t, login, "cat "+dir+"/portal.yaml "+dir+"/log"))
		}
	}()
	eventually(t, 20*time.Second, "the second portal", func() bool {
		r, err := v.try("GET", "/login", "")
		return err == nil && r.code == 200
	})
	return s
}

func TestAttack_W14_cookies_tossed_by_a_sibling_change_nobodys_session(t *testing.T) {
	inBothLayouts(t, site.tossed)
}

func (s site) tossed(t *testing.T) {
	t.Helper()
	b, _, hers, _ := s.lured(t)
	for _, domain := range []string{s.apps, "." + s.apps, s.widest(), "localhost", hers.host(), s.host} {
		for _, name := range []string{portalCookie, appCookie, nonceCookie, "__HOST-carme", "__host-carme-app", "=" + portalCookie, "=" + appCookie, " " + appCookie, appCookie + " ", "\t" + portalCookie, "__Host-carme-lang", "_xsrf"} {
			for _, path := range []string{"/", "/who", "/.carme"} {
				ask[string](b, `document.cookie = `+string(must(json.Marshal(name+"=evil; Domain="+domain+"; Path="+path+"; Secure"))))
			}
		}
	}
	b.forgive()
	b.do(goTo(hers.origin + "/who"))
	if text := ask[string](b, "document.body.innerText"); !strings.HasPrefix(text, "alice in job") {
		t.Errorf("alice's app shows %q", text)
	}
	b.do(goTo(hers.origin + "/echo"))
	if text := strings.ToLower(ask[string](b, "document.body.innerText")); strings.Contains(text, "__host-carme") || !strings.Contains(text, "x-carme-user: alice") {
		t.Errorf("alice's app gets %s", text)
	}
	b.do(goTo(s.url()+"/security"), appears("#totp-code"))
	// Without her app's cookie alice comes in again, by the portal.
	_, err := chromedp.Call(b.ctx, network.DeleteCookies, network.DeleteCookiesParams{Name: appCookie, URL: hers.origin})
	if err != nil {
		t.Fatal(err)
	}
	b.do(goTo(hers.origin + "/who"))
	if text := ask[string](b, "document.body.innerText"); !strings.HasPrefix(text, "alice in job") {
		t.Errorf("after coming in again it shows %q", text)
	}
}

func must(data []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return data
}

func TestAttack_W14_cookies_evicted_or_piled_up_by_a_sibling_leave_a_way_out(t *testing.T) {
	inBothLayouts(t, site.flooded)
}

func (s site) flooded(t *testing.T) {
	t.Helper()
	b, alice, hers, evil := s.lured(t)
	// Many small ones push the others out: alice logs in again, and that is all.
	ask[bool](b, `(() => { for (let i = 0; i < 600; i++) document.cookie = "e" + i + "=1; Domain=`+s.widest()+`; Path=/; Secure"; return true })()`)
	b.do(goTo(hers.origin + "/who"))
	at := ask[string](b, "location.href + ' ' + document.body.innerText.slice(0, 300)")
	if !strings.Contains(at, "alice in job") && !strings.HasPrefix(at, s.url()+"/login") {
		t.Errorf("after the eviction alice is at %s", at)
	}
	t.Logf("after the eviction: %.120s", at)
	if s.widest() == s.apps && !strings.Contains(at, "alice in job") {
		t.Error("the portal's cookie is out of reach of the apps' domain, and alice has to log in")
	}
	// Large ones: her host shows a page with a button, which works.
	b.carry(alice, s.url())
	b.carry(alice, hers.origin)
	b.do(goTo(evil.page("<h1>again</h1>")))
	ask[bool](b, `(() => { for (const p of ["/", "/who", "/.carme"]) for (let i = 0; i < 60; i++) document.cookie = "p" + i + "=" + "a".repeat(3900) + "; Domain=`+s.apps+`; Secure; Path=" + p; return true })()`)
	b.carry(alice, s.url())
	b.carry(alice, hers.origin)
	b.forgive()
	b.do(goTo(hers.origin + "/who"))
	if at := ask[string](b, "document.body.innerText.slice(0, 300)"); !strings.Contains(at, "alice in job") {
		b.shot("flood")
		if !b.has(`form[action="/.carme/clear"]`) {
			t.Fatalf("no way out: %s", at)
		}
		b.do(click(`form[action="/.carme/clear"] button`))
		eventually(t, 20*time.Second, "the portal", func() bool { return strings.HasPrefix(ask[string](b, "location.href"), s.url()) })
	}
	b.carry(alice, s.url())
	b.do(goTo(hers.origin + "/who"))
	if text := ask[string](b, "document.body.innerText"); !strings.HasPrefix(text, "alice in job") {
		t.Errorf("after the button it shows %q", text)
	}
}

func TestAttack_W20_markup_in_names_runs_in_no_browser(t *testing.T) {
	alice := visit(t, "alice").login()
	const evil = `"><img src=x onerror=window.won=1><script>window.won=1</script>`
	id := sbatch(t, "alice", "-w", node2, "-J", evil, "--comment="+evil, "-o", "it-%j.out", "--wrap", `echo '`+strings.ReplaceAll(evil, "'", `"`)+`'; exec sleep 60`)
	eventually(t, 20*time.Second, "the job at the portal", func() bool { return alice.get("/jobs/"+id).code == 200 })
	b := open(t)
	b.carry(alice, portalURL)
	for _, path := range []string{"/", "/jobs", "/jobs/" + id, "/jobs/" + id + "/stop", "/login?next=" + url.QueryEscape(`/"><script>window.won=1</script>`), "/" + url.PathEscape(evil)} {
		b.do(goTo(portalURL + path))
		if ask[bool](b, "window.won === 1") {
			t.Errorf("%s ran it", path)
		}
		if ask[bool](b, `document.querySelector('img[src=x], script:not([src]):not([type="application/json"])') !== null`) {
			t.Errorf("%s has markup of the name", path)
		}
	}
	// The policy holds even for what would get in.
	b.do(goTo(portalURL + "/jobs"))
	ask[bool](b, `(() => { const s = document.createElement("script"); s.textContent = "window.won=1"; document.body.append(s); const i = document.createElement("img"); i.setAttribute("onerror", "window.won=1"); i.src = "/nothing"; document.body.append(i); return true })()`)
	eventually(t, 10*time.Second, "the policy's complaint", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return strings.Contains(strings.Join(b.problems, "\n"), "Content Security Policy")
	})
	if ask[bool](b, "window.won === 1") {
		t.Error("an inline script runs")
	}
}
