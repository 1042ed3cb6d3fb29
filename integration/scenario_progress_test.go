//go:build integration

package integration

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestScenario_W6_the_log_grows_on_the_page_while_the_job_writes(t *testing.T) {
	id := plain(t, "it-writes", "-o", "it-%j.out", "-e", "it-%j.err", "--mem=100",
		`--wrap=for i in $(seq 140); do echo "line $i grün"; echo "oops $i" >&2; sleep 1; done`)
	b := open(t)
	b.login("bob")
	b.do(goTo(portalURL + "/jobs/" + id))
	b.mark()
	number := func(word string) int {
		all := regexp.MustCompile(word+` (\d+)`).FindAllStringSubmatch(ask[string](b, `document.querySelector("#output").textContent`), -1)
		if len(all) == 0 {
			return 0
		}
		n, err := strconv.Atoi(all[len(all)-1][1])
		if err != nil {
			t.Fatal(err)
		}
		if n != len(all) {
			t.Fatalf("line %d is the %dth", n, len(all)) // one is missing, or there twice
		}
		return n
	}
	eventually(t, 90*time.Second, "output", func() bool { return number("line") >= 2 })
	first := number("line")
	b.shot("writes")
	eventually(t, 30*time.Second, "more output", func() bool { return number("line") >= first+5 })
	if text := ask[string](b, `document.querySelector("#output").textContent`); strings.Contains(text, "�") || !strings.Contains(text, "grün") {
		t.Errorf("characters are cut: %q", text)
	}
	b.stayed()
	b.do(click(`#job-output a[href*="stream=err"]`), appears(`#job-output a[aria-current][href*="stream=err"]`))
	b.mark()
	eventually(t, 30*time.Second, "errors", func() bool { return number("oops") >= 2 })
	first = number("oops")
	eventually(t, 30*time.Second, "more errors", func() bool { return number("oops") >= first+3 })
	b.stayed()
	b.axe("a job that writes")
	b.clean()
}

func TestScenario_W6_start_up_is_shown_as_it_happens(t *testing.T) {
	for _, machine := range append([]string{ctl}, everywhere...) {
		place(t, machine, "/etc/carme/apps.d/slow.yaml", []byte(strings.Replace(slowApp, "sleep 12", "echo up in a while; sleep 12", 1)))
	}
	put(t, "bob", "it-mirror.py", mirror)
	b := open(t)
	b.login("bob")
	// The backend reads what the site offers every ten seconds.
	eventually(t, 30*time.Second, "the app among those offered", func() bool {
		b.do(goTo(portalURL+"/"), appears("#start"))
		return ask[bool](b, `document.querySelector("label[for=app-slow]") !== null`)
	})
	b.do(click("label[for=app-slow]"), choose("#image", "lab"), choose("#gpus", "0"), click(startButton), appears("#jobhead"))
	b.mark()
	b.jobNumber()
	seen := map[string]bool{}
	step := func(word string) {
		eventually(t, 2*time.Minute, "the step "+word, func() bool {
			now := ask[string](b, `document.querySelector("#job-progress [aria-current=step]")?.innerText ?? document.querySelector("#jobhead .state").innerText`)
			seen[now] = true
			return now == word
		})
	}
	step("App starts")
	// What the app says while it starts is there before it answers.
	eventually(t, 30*time.Second, "the app's own words", func() bool {
		return strings.Contains(ask[string](b, `document.querySelector("#output").textContent`), "up in a while")
	})
	b.shot("starting")
	step("Ready")
	log := b.text("#job-progress .log")
	for _, want := range []string{"Slurm has the job", "It has its nodes: carme-node", "its image is starting", "The app is starting on", "The app answers"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q: %q", want, log)
		}
	}
	b.do(appears(ready))
	b.stayed()
	t.Logf("steps that were seen: %v", seen)
	b.clean()
}

const brokenApp = `name: broken
title: Broken
description: Does not come up
command: [sh, -c, "echo no licence found >&2; sleep 1; exit 9"]
health: {path: /health, status: [200], timeout_seconds: 30}
path: /
`

func TestScenario_W7_the_page_says_in_words_why_a_job_has_ended(t *testing.T) {
	for _, machine := range everywhere {
		place(t, machine, "/etc/carme/apps.d/broken.yaml", []byte(brokenApp))
	}
	cancelled := plain(t, "it-cancelled", "--mem=100", "--wrap=echo begun; exec sleep 170")
	cases := map[string]struct{ id, en, de, output string }{
		"time limit": {plain(t, "it-time", "--time=1", "--mem=100", "--wrap=exec sleep 170"), "Its time was up. Start it with a longer time limit.", "Die Zeit war um.", "DUE TO TIME LIMIT"},
		"out of memory": {
			plain(t, "it-memory", "--mem=60", "--wrap=head -c 500M /dev/zero | tail -c 500M >/dev/null; sleep 5"),
			"It needed more memory than it asked for and was ended. Start it with more memory.", "Er brauchte mehr Speicher als angefordert", "",
		},
		"cancelled":       {cancelled, "It was cancelled.", "Der Job wurde abgebrochen.", "CANCELLED"},
		"exit code":       {plain(t, "it-exit", "--mem=100", "--wrap=echo the disk is on fire >&2; exit 3"), "It ended with exit code 3. Its error output may say why.", "Er endete mit Exit-Code 3.", "the disk is on fire"},
		"signal":          {plain(t, "it-signal", "--mem=100", "--wrap=kill -SEGV $$"), "It was ended by signal 11.", "Er wurde durch Signal 11 beendet.", ""},
		"no such command": {plain(t, "it-127", "--mem=100", "--wrap=no-such-command"), "A command in it was not found (exit code 127).", "Ein Befehl darin wurde nicht gefunden", "no-such-command"},
		"no output file":  {plain(t, "it-files", "--mem=100", "--output=/nowhere/x.out", "--wrap=true"), "Slurm could not open its output, error or input file.", "Slurm konnte die Ausgabe-", ""},
		"done":            {plain(t, "it-done", "--mem=100", "--wrap=echo all is well"), "It finished without an error.", "Der Job ist ohne Fehler zu Ende gegangen.", "all is well"},
		"failed app":      {sbatch(t, "bob", "-J", "it-app", "--carme=base", "--carme-app=broken", "--mem=500", "--wrap=:"), "It ended with exit code 9. Its error output may say why.", "Er endete mit Exit-Code 9.", "no licence found"},
	}
	// Killed before, it has no output into which Slurm could write.
	eventually(t, time.Minute, "a job that has begun", func() bool { return strings.Contains(homeFile(t, "bob", "it-"+cancelled+".out"), "begun") })
	scancel(cancelled)
	b := open(t)
	b.login("bob")
	v := visit(t, "bob")
	b2v(b, v)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b.t = t
			b.do(goTo(portalURL + "/jobs/" + c.id))
			// The page that was opened while the job ran says it, without a reload.
			b.mark()
			eventually(t, 3*time.Minute, "the end in words", func() bool { return b.has("#job-end") && !strings.Contains(b.text("#job-end"), "is ending") })
			b.stayed()
			if got := b.text("#job-end"); !strings.Contains(got, c.en) {
				t.Errorf("the page says %q, not %q", got, c.en)
			}
			if c.output != "" {
				eventually(t, 40*time.Second, "its last words on the page", func() bool {
					return strings.Contains(ask[string](b, `document.querySelector("#output").textContent`), c.output)
				})
			}
			b.shot(strings.ReplaceAll(name, " ", "-"))
			if r := v.get("/jobs/"+c.id, "Accept-Language: de"); !strings.Contains(r.body, c.de) {
				t.Errorf("in German the page says %q, not %q", words(r.body), c.de)
			}
		})
	}
	b.t = t
	b.clean()
}

func TestScenario_W9_a_busy_job_has_plots_with_its_measurements(t *testing.T) {
	id := sbatch(t, "bob", "-J", "it-busy", "-w", node1, "--carme=base", "--gres=gpu:a100:1", "--mem=1000",
		`--wrap=exec python3 -c "
import os, time
x = bytearray(300 << 20)
f = open('it-busy', 'wb', 0)
end = time.time() + 160
while time.time() < end:
    f.seek(0)
    f.write(x[:16 << 20])
    os.fsync(f.fileno())
    pause = time.time() + 1
    while time.time() < pause: pass
"`)
	b := open(t)
	b.login("bob")
	b.do(goTo(portalURL + "/jobs/" + id))
	b.mark()
	// Values of a plot's table, the newest first.
	values := func(title string) []float64 {
		return ask[[]float64](b, fmt.Sprintf(`(() => { for (const t of document.querySelectorAll("#plots table")) if (t.caption.textContent === %q)
			return [...t.tBodies[0].rows].map(r => Number(r.cells[1].textContent)).filter(v => !Number.isNaN(v)); return [] })()`, title))
	}
	eventually(t, 100*time.Second, "ten measurements", func() bool { return len(values("CPU (%)")) >= 10 })
	for title, least := range map[string]float64{"CPU (%)": 20, "Memory (MB)": 250, "GPU (%)": 1, "GPU memory (MB)": 1, "GPU power (W)": 1, "Written (MB/s)": 1} {
		most := 0.0
		for _, v := range values(title) {
			most = max(most, v)
		}
		if most < least {
			t.Errorf("%s: at most %v in %v, not at least %v", title, most, values(title), least)
		}
	}
	// Something is drawn in each: a line, which an empty plot has not.
	drawn := ask[[]int](b, `[...document.querySelectorAll("#plots canvas")].map(c => {
		const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data, colours = new Set();
		let n = 0;
		for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200 && Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]) > 60) n++;
		return n })`)
	if len(drawn) < 5 {
		t.Errorf("there are %d plots", len(drawn))
	}
	for i, n := range drawn {
		if n < 20 {
			t.Errorf("plot %d has %d coloured points", i, n)
		}
	}
	b.do(click("#plots details.values summary"))
	b.stayed()
	b.shot("plots")
	b.axe("plots")
	b.clean()
}

// b2v gives a visitor a browser's login.
func b2v(b *browser, v *visitor) {
	b.t.Helper()
	for _, c := range b.cookies() {
		if c.Name == portalCookie {
			v.give(portalURL, c.Name, c.Value)
		}
	}
}
