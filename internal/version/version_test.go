package version

import (
	"runtime/debug"
	"strings"
	"testing"
)

func TestBuildWithoutAVersionNamesItsCommit(t *testing.T) {
	cases := map[string]struct {
		settings []debug.BuildSetting
		want     string
	}{
		"no commit": {nil, "0.0.0-dev"},
		"commit":    {[]debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}}, "0.0.0-dev+0123456789ab"},
		"other":     {[]debug.BuildSetting{{Key: "vcs.time", Value: "0123456789abcdef"}}, "0.0.0-dev"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := fromSettings(c.settings); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	if !strings.HasPrefix(String(), "0.0.0-dev") {
		t.Errorf("a test's version is %q", String())
	}
}
