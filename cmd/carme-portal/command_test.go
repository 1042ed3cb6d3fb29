package main

import (
	"strings"
	"testing"
)

func TestCommandLineIsJudged(t *testing.T) {
	for args, want := range map[string]struct {
		status int
		says   string
	}{
		"--help":                    {0, "-config FILE"},
		"--version":                 {0, "carme-portal "},
		"--nonsense":                {2, "nonsense"},
		"check":                     {2, `carme-portal: "check" is not understood; see carme-portal(8)`},
		"--check --config /missing": {1, "carme-portal: /missing"},
	} {
		var out strings.Builder
		if got := command(t.Context(), strings.Fields(args), &out, &out); got != want.status || !strings.Contains(out.String(), want.says) {
			t.Errorf("carme-portal %s: exit status %d, not %d:\n%s", args, got, want.status, out.String())
		}
	}
}
