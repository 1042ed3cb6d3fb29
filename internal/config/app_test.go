package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func loadApps(t *testing.T, files map[string]string) ([]App, error) {
	t.Helper()
	root := tree(t, nil)
	if err := os.Mkdir(filepath.Join(root, AppsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, AppsDir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return LoadApps(Source{Root: root, TrustOwner: true})
}

func TestApps_that_come_with_Carme_are_valid(t *testing.T) {
	files := map[string]string{}
	entries, err := filepath.Glob("../../contrib/carme/apps.d/*.yaml*")
	if err != nil || len(entries) < 3 {
		t.Fatal(entries, err)
	}
	for _, name := range entries {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(name), ".example")] = string(data)
	}
	apps, err := loadApps(t, files)
	if err != nil {
		t.Fatal(err)
	}
	if len(apps) != len(entries) || apps[1].Name != "jupyterlab" || apps[1].Socket != "app.sock" || !apps[1].RunsIn("lab") || apps[1].RunsIn("base") {
		t.Errorf("got %+v", apps)
	}
}

func TestAn_app_gets_the_defaults(t *testing.T) {
	apps, err := loadApps(t, map[string]string{"a.yaml": "{name: a, command: [/bin/a]}"})
	want := []App{{
		Name: "a", Title: "a", Command: []string{"/bin/a"}, Socket: "app.sock", Path: "/", Sharing: SharingNone,
		Health: AppHealth{Path: "/", Status: []int{200}, TimeoutSeconds: 120},
	}}
	if err != nil || !reflect.DeepEqual(apps, want) {
		t.Errorf("got %+v, %v", apps, err)
	}
	if apps, err := LoadApps(Source{Root: t.TempDir(), TrustOwner: true}); err != nil || apps != nil {
		t.Errorf("without apps.d: got %v, %v", apps, err)
	}
}

func TestA_mistake_in_one_app_leaves_the_others(t *testing.T) {
	apps, err := loadApps(t, map[string]string{
		"a.yaml": "{name: a, command: [x]}", "b.yaml": "{name: b, command: [x], port: 1}", "c.yaml": "{name: c, command: [x], path: lab}", "d.yaml": "{name: d, command: [x]}",
	})
	if len(apps) != 2 || apps[0].Name != "a" || apps[1].Name != "d" || len(Problems(err)) != 2 {
		t.Errorf("got %+v, %v", apps, err)
	}
}

func TestMistakes_in_apps_are_named(t *testing.T) {
	const good = "name: a\ncommand: [x]\n"
	cases := map[string]struct{ text, want string }{
		"no name":         {"command: [x]", "the app has no name"},
		"bad name":        {"name: a/b\ncommand: [x]", "no name for an app"},
		"no command":      {"name: a", "the app has no command"},
		"unknown blank":   {"name: a\ncommand: [x, '{{sock}}']", "{{sock}} is unknown"},
		"socket path":     {good + "socket: ../x", "no name of a socket"},
		"path":            {good + "path: lab", "must be a path of the app"},
		"other host":      {good + "path: //evil/", "must be a path of the app"},
		"status":          {good + "health: {status: [9]}", "no status of HTTP"},
		"sharing":         {good + "sharing: all", "use none, view or full"},
		"loader variable": {good + "env: {LD_PRELOAD: /x}", "may not be set here"},
		"module":          {good + "python_hidden: [../x]", "no name of a Python module"},
		"file outside":    {good + "files: {../x: a}", "must be a path of a file below"},
		"unknown setting": {good + "port: 80", `there is no setting "port"`},
		"timeout":         {good + "health: {timeout_seconds: 0}", "a second at least"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := loadApps(t, map[string]string{"a.yaml": c.text})
			if problems := ProblemsError(nil); !errors.As(err, &problems) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := loadApps(t, map[string]string{"a.yaml": good, "b.yaml": good}); err == nil {
		t.Error("two apps of one name")
	}
}
