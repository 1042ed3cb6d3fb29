package config

import (
	"maps"
	"strings"
	"testing"
)

func TestDescriptionIsInOneLanguageOrInSeveral(t *testing.T) {
	const image, app = "name: a\npath: /a\n", "name: a\ncommand: [a]\n"
	for name, c := range map[string]struct {
		yaml, english string
		languages     map[string]string
	}{
		"none":                {"", "", nil},
		"one":                 {"description: Debian\n", "Debian", nil},
		"two":                 {"description: {de: Ein Debian, en: A Debian}\n", "A Debian", map[string]string{"de": "Ein Debian", "en": "A Debian"}},
		"none of them known":  {"description:\n  fr: Un Debian\n  de: Ein Debian\n", "Ein Debian", map[string]string{"de": "Ein Debian", "fr": "Un Debian"}},
		"a number, as before": {"description: 12\n", "12", nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := load(t, map[string]string{"images.d/a.yaml": image + c.yaml})
			if err != nil {
				t.Fatal(err)
			}
			apps, err := loadApps(t, map[string]string{"a.yaml": app + c.yaml})
			if err != nil {
				t.Fatal(err)
			}
			for _, got := range []Text{cfg.Images[0].Description, apps[0].Description} {
				if got.String() != c.english || !maps.Equal(got.Languages(), c.languages) {
					t.Errorf("%q, %v", got, got.Languages())
				}
			}
		})
	}
	for bad, want := range map[string]string{
		"description: [a]":                       "a.yaml:3: cannot unmarshal !!seq into string",
		"description: {en: {a: b}}":              "a.yaml:3: cannot unmarshal !!map into string",
		"description: {English: x}":              "a.yaml:3: is no language; use the two letters of ISO 639",
		"description:\n  en: x\n  de: \"a\\nb\"": "a.yaml:5: must be one line",
		"description: {\"\": x, en: y}":          "is no language",
		"description: {en: x, en: y}":            "already defined",
	} {
		_, err := load(t, map[string]string{"images.d/a.yaml": image + bad + "\n"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: of an image: %v", bad, err)
		}
		if _, err := loadApps(t, map[string]string{"a.yaml": app + bad + "\n"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: of an app: %v", bad, err)
		}
	}
}
