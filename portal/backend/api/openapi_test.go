package api

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	pathLine   = regexp.MustCompile(`^  (/v1/\S*):$`)
	methodLine = regexp.MustCompile(`^    (get|post|put|patch|delete):$`)
)

func TestOpenAPI_has_every_route_and_no_other(t *testing.T) {
	var described []string
	path := ""
	for line := range strings.Lines(string(openapi)) {
		line = strings.TrimRight(line, "\n")
		if line == "components:" {
			break
		}
		if m := pathLine.FindStringSubmatch(line); m != nil {
			path = m[1]
		} else if m := methodLine.FindStringSubmatch(line); m != nil {
			described = append(described, strings.ToUpper(m[1])+" "+path)
		}
	}
	var routed []string
	for _, r := range table() {
		routed = append(routed, r.method+" "+r.path)
	}
	slices.Sort(described)
	slices.Sort(routed)
	for _, r := range routed {
		if !slices.Contains(described, r) {
			t.Errorf("%s is not in openapi.yaml", r)
		}
	}
	for _, d := range described {
		if !slices.Contains(routed, d) {
			t.Errorf("%s is in openapi.yaml only", d)
		}
	}
}

func TestRoutes_without_a_session_are_those_few(t *testing.T) {
	var open []string
	for _, r := range table() {
		if len(r.states) == 0 && r.peer == "" {
			open = append(open, r.method+" "+r.path)
		}
	}
	want := []string{"POST /v1/agent/enrol", "POST /v1/join", "POST /v1/renew", "GET /v1/openapi.yaml"}
	if !slices.Equal(open, want) {
		t.Errorf("open to everybody: %v, want %v", open, want)
	}
}
