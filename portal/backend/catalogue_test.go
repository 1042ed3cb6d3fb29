package backend

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/portal/backend/problem"
)

func TestCatalogue_leaves_out_an_app_with_a_mistake_and_tells_the_log_once(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/carme/spank.yaml", "{}\n")
	write(t, root+"/etc/carme/apps.d/a.yaml", "{name: a, command: [x]}\n")
	write(t, root+"/etc/carme/apps.d/b.yaml", "{name: b, command: [x], port: 80}\n")
	var log bytes.Buffer
	now := time.Now()
	c := &catalogue{src: config.Source{Root: root, TrustOwner: true}, log: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }}
	for range 3 {
		cfg, err := c.get()
		if err != nil || len(cfg.Apps) != 1 || cfg.Apps[0].Name != "a" {
			t.Fatalf("got %v, %v", cfg, err)
		}
		now = now.Add(time.Minute)
	}
	if got := strings.Count(log.String(), "/etc/carme/apps.d/b.yaml:1"); got != 1 || !strings.Contains(c.problems(), "b.yaml") {
		t.Errorf("told %d times, health says %q:\n%s", got, c.problems(), &log)
	}
	write(t, root+"/etc/carme/apps.d/b.yaml", "{name: b, command: [x]}\n")
	now = now.Add(time.Minute)
	if cfg, err := c.get(); err != nil || len(cfg.Apps) != 2 || c.problems() != "" || !strings.Contains(log.String(), "well again") {
		t.Errorf("mended: %v, %v, %q", cfg, err, c.problems())
	}
}

func TestCatalogue_offers_nothing_when_an_image_or_a_rule_has_a_mistake(t *testing.T) {
	for name, file := range map[string]string{"image": "images.d/base.yaml", "rule": "spank.yaml"} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root+"/etc/carme/spank.yaml", "{}\n")
			write(t, root+"/etc/carme/"+file, "nonsense: 1\n")
			var log bytes.Buffer
			now := time.Now()
			c := &catalogue{src: config.Source{Root: root, TrustOwner: true}, log: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }}
			cfg, err := c.get()
			known, is := err.(*problem.Error) //nolint:errorlint // nothing wraps it
			if cfg != nil || !is || known.Body.Code != "misconfigured" || strings.Contains(known.Error(), root) || !strings.Contains(log.String(), file+":1") {
				t.Errorf("got %v, %v\n%s", cfg, err, &log)
			}
			if err := os.Remove(root + "/etc/carme/" + file); err != nil {
				t.Fatal(err)
			}
			if now = now.Add(time.Minute); c.problems() != "" {
				t.Errorf("mended: %q", c.problems())
			}
		})
	}
}
