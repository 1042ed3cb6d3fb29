package backend

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// settings are the names that a YAML file may have for this type.
func settings(typ reflect.Type) []string {
	switch typ.Kind() {
	case reflect.Slice, reflect.Map:
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

func TestManual_and_examples_name_every_setting(t *testing.T) {
	text := func(name string) string {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	manual := text("../../docs/man/carme-backend.8")
	words := strings.Fields(strings.NewReplacer(",", " ", ":", " ", ".Va", " ").Replace(manual))
	for file, typ := range map[string]reflect.Type{"backend.yaml": reflect.TypeFor[Config](), "signer.yaml": reflect.TypeFor[SignerConfig]()} {
		example := text("../../contrib/carme/" + file)
		for _, name := range settings(typ) {
			found := false
			for _, w := range words {
				found = found || w == name
			}
			if !found {
				t.Errorf("%s of %s is not in the manual", name, file)
			}
			if !strings.Contains(example, name+":") {
				t.Errorf("%s is not in the example of %s", name, file)
			}
		}
	}
}
