package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/carme-hpc/carme/internal/config"
)

func read(t *testing.T, text string) (Config, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "portal.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return load("/portal.yaml", config.Source{Root: dir, TrustOwner: true})
}

func TestConfig_example_is_good_and_says_what_the_defaults_are(t *testing.T) {
	text, err := os.ReadFile("../../contrib/carme/portal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(t, string(text))
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.PortalHost, want.AppsDomain = "portal.carme.localhost", "apps.carme.localhost"
	want.Backend.URL, want.Backend.Name = "https://carme-ctl:7443", "carme-ctl"
	if got != want {
		t.Errorf("the example is\n%+v\nwant\n%+v", got, want)
	}
}

func TestConfig_names_all_mistakes_at_once(t *testing.T) {
	_, err := read(t, `listen: nowhere
portal_host: Portal
apps_domain: portal
public_port: 0
backend: {url: "http://carme-ctl", cert: cert.pem}
log_level: loud
`)
	problems := config.Problems(err)
	for _, want := range []string{":1:", ":2:", ":3:", ":4:", "backend's address", "absolute path", "debug, info"} {
		if !strings.Contains(strings.Join(problems, "\n"), want) {
			t.Errorf("no problem with %q in\n%s", want, strings.Join(problems, "\n"))
		}
	}
}

func TestConfig_keeps_the_portal_out_of_the_apps_domain(t *testing.T) {
	for name, hosts := range map[string][2]string{
		"same":         {"carme.example", "carme.example"},
		"portal below": {"portal.apps.example", "apps.example"},
		"apps below":   {"carme.example", "apps.carme.example"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := read(t, "portal_host: "+hosts[0]+"\napps_domain: "+hosts[1]+"\nbackend: {url: https://b:1}\n"); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func settings(typ reflect.Type) []string {
	var names []string
	for field := range typ.Fields() {
		names = append(names, field.Tag.Get("yaml"))
		if field.Type.Kind() == reflect.Struct {
			names = append(names, settings(field.Type)...)
		}
	}
	return names
}

func TestManual_is_complete(t *testing.T) {
	text, err := os.ReadFile("../../docs/man/carme-portal.8")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range settings(reflect.TypeFor[Config]()) {
		if !strings.Contains(string(text), "Va "+name) {
			t.Errorf("%q is missing", name)
		}
	}
}
