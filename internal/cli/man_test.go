package cli

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/spank/request"
)

func page(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../docs/man", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestManualOfTheOptionsIsComplete(t *testing.T) {
	text := page(t, "carme.7")
	for _, o := range request.Options() {
		if !strings.Contains(text, "\n.It Fl -"+o.Name) {
			t.Errorf("--%s is missing", o.Name)
		}
		if o.Env != "" && !strings.Contains(text, "\n.Bq Ev "+o.Env+"\n") {
			t.Errorf("%s is missing", o.Env)
		}
		if o.Arg != "" && !strings.Contains(text, "Ar "+o.Arg) {
			t.Errorf("%s of --%s is missing", o.Arg, o.Name)
		}
	}
}

// settings are the names that a YAML file may have for this type.
func settings(typ reflect.Type) []string {
	switch typ.Kind() {
	case reflect.Slice:
		return settings(typ.Elem())
	case reflect.Struct:
	default:
		return nil
	}
	var names []string
	for field := range typ.Fields() {
		names = append(names, field.Tag.Get("yaml"))
		names = append(names, settings(field.Type)...)
	}
	return names
}

func TestManualOfTheConfigurationIsComplete(t *testing.T) {
	text := page(t, "spank.yaml.5")
	for _, typ := range []reflect.Type{reflect.TypeFor[config.Spank](), reflect.TypeFor[config.Image](), reflect.TypeFor[config.App]()} {
		for _, name := range settings(typ) {
			if name == "" || !strings.Contains(text, "Va "+name+"\n") && !strings.Contains(text, "Va "+name+" ") {
				t.Errorf("%q is missing", name)
			}
		}
	}
}

func TestManualsOfTheCommandsAreComplete(t *testing.T) {
	pages := map[string]string{"proof": "carme-proof.1", "doctor": "carme-doctor.8", "setup": "carme-setup.8", "images": "carme.1", "version": "carme.1", "audit": "carme-head.8", "health": "carme-head.8", "reset-factors": "carme-head.8", "end-logins": "carme-head.8"}
	root := machine(t, nil).command(io.Discard)
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		name, known := pages[cmd.Name()]
		if !known {
			if cmd.Name() != "help" && cmd.Name() != "completion" {
				t.Errorf("%s has no manual page", cmd.Name())
			}
			continue
		}
		text := page(t, name)
		checkFlags(t, cmd, text)
		if !regexp.MustCompile(`\.Cm .*` + cmd.Name()).MatchString(page(t, "carme.1")) {
			t.Errorf("carme(1) does not name %s", cmd.Name())
		}
	}
}

func checkFlags(t *testing.T, cmd *cobra.Command, text string) {
	t.Helper()
	for _, sub := range cmd.Commands() {
		checkFlags(t, sub, text)
	}
	for _, flag := range regexp.MustCompile(`--([a-z-]+)`).FindAllStringSubmatch(cmd.LocalFlags().FlagUsages(), -1) {
		if flag[1] != "help" && !strings.Contains(text, "\n.It Fl -"+flag[1]) {
			t.Errorf("--%s of %s is missing", flag[1], cmd.Name())
		}
	}
}

// groff takes one word after .Nm for the name that a bare .Nm repeats.
func TestManualsNameTheWholeCommand(t *testing.T) {
	pages, err := filepath.Glob("../../docs/man/*")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no manual pages: %v", err)
	}
	words, bare := regexp.MustCompile(`(?m)^\.Nm carme [a-z]+$`), regexp.MustCompile(`(?m)^\.Nm$`)
	for _, file := range pages {
		text := page(t, filepath.Base(file))
		if words.MatchString(text) && bare.MatchString(text) {
			t.Errorf("%s: the synopsis shows \"carme\" alone; write .Nm with the name in quotes", file)
		}
	}
	for _, option := range []string{"json", "clean", "feature", "root"} {
		if !strings.Contains(page(t, "carme.1"), ".Op Fl -"+option) {
			t.Errorf("the synopsis of carme(1) lacks --%s of doctor", option)
		}
	}
}
