package config

import (
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"
)

// english is the language of who asks for none: of commands and logs.
const english = "en"

// Text is what people read, by language (ISO 639); under "" it is for all. In YAML
// it is a string, or {en: STRING, de: STRING}.
type Text map[string]string

// UnmarshalYAML reads both forms.
func (t *Text) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.MappingNode {
		return node.Decode((*map[string]string)(t))
	}
	var one string
	if err := node.Decode(&one); err != nil {
		return err
	}
	*t = Text{"": one}
	return nil
}

// String is the text in English, or else in the first language that it has.
func (t Text) String() string {
	for _, language := range append([]string{"", english}, slices.Sorted(maps.Keys(t))...) {
		if text, ok := t[language]; ok {
			return text
		}
	}
	return ""
}

// Languages is the text by language, nil if it has but one for all.
func (t Text) Languages() map[string]string {
	if _, one := t[""]; one {
		return nil
	}
	return t
}

// checkText refuses what is not one line, and languages that are none.
func (f *file) checkText(t Text, key string) {
	for language, text := range t {
		at := []any{key}
		_, one := t[""]
		if !one || len(t) > 1 { // YAML can say "" too
			at = append(at, language)
			if len(language) < 2 || !isWord(language, 3, small, "") {
				f.fail("is no language; use the two letters of ISO 639, such as en or de", at...)
			}
		}
		if !printable(text) {
			f.fail("must be one line of characters that can be printed", at...)
		}
	}
}
