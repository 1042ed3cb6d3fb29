package nodeagent

import (
	"bytes"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// settings are the names that the YAML file may have for this type.
func settings(typ reflect.Type) []string {
	if typ.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for field := range typ.Fields() {
		names = append(names, field.Tag.Get("yaml"))
		names = append(names, settings(field.Type)...)
	}
	return names
}

func TestManual_is_complete(t *testing.T) {
	page, err := os.ReadFile("../docs/man/carme-agent.8")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../contrib/carme/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range settings(reflect.TypeFor[Config]()) {
		if name == "" || !strings.Contains(string(page), "Va "+name+"\n") {
			t.Errorf("%q is missing in the manual", name)
		}
		if !strings.Contains(string(example), name+":") {
			t.Errorf("%q is missing in the example", name)
		}
	}
	var usage bytes.Buffer
	if status := Main(t.Context(), []string{"--help"}, nil, &usage, &usage); status != 0 {
		t.Errorf("--help ends with %d", status)
	}
	flags := regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(usage.String(), -1)
	if len(flags) < 3 {
		t.Errorf("usage is %s", usage.String())
	}
	for _, flag := range flags {
		if !strings.Contains(string(page), "\n.It Fl -"+flag[1]) {
			t.Errorf("--%s is missing in the manual", flag[1])
		}
	}
}
