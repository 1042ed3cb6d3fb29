package config

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

type daemonFile struct {
	Listen string `yaml:"listen"`
	Limits struct {
		Total int `yaml:"total"`
	} `yaml:"limits"`
}

func readDaemon(t *testing.T, text string, v any, check func(Fail)) []string {
	t.Helper()
	root := t.TempDir()
	if text != "" {
		if err := os.WriteFile(filepath.Join(root, "x.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := Daemon{Source: Source{Root: root, TrustOwner: true}, File: "/x.yaml", Manual: "x(8)"}
	if err := d.Read(v, check); err != nil {
		return Problems(err)
	}
	return nil
}

func TestDaemon_reads_its_file(t *testing.T) {
	v := daemonFile{Listen: "default"}
	v.Limits.Total = 7
	if problems := readDaemon(t, "limits: {total: 3}\n", &v, func(Fail) {}); problems != nil || v.Limits.Total != 3 || v.Listen != "default" {
		t.Errorf("read %+v, %v", v, problems)
	}
}

func TestDaemon_names_all_problems_with_their_lines(t *testing.T) {
	var v daemonFile
	got := readDaemon(t, "listen: a\nlimits:\n  total: -1\n", &v, func(fail Fail) {
		fail("is not an address", "listen")
		fail("must be positive", "limits", "total")
	})
	if want := []string{"/x.yaml:1: is not an address", "/x.yaml:3: must be positive"}; !slices.Equal(got, want) {
		t.Errorf("problems are %q", got)
	}
	got = readDaemon(t, "lisen: a\n", &v, func(Fail) {})
	if want := []string{`/x.yaml:1: there is no setting "lisen"; see x(8)`}; !slices.Equal(got, want) {
		t.Errorf("problems are %q", got)
	}
	got = readDaemon(t, "", &v, func(Fail) {})
	if want := []string{"/x.yaml: is missing; see x(8)"}; !slices.Equal(got, want) {
		t.Errorf("problems are %q", got)
	}
}
