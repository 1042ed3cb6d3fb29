package web

import (
	"embed"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/text/language"
)

//go:embed locales/*.yaml
var localeFiles embed.FS

// languages are those with a catalogue; the first is the fallback.
var languages = []string{"en", "de"}

// catalogue has a language's texts; {0}, {1} in them are replaced by arguments.
type catalogue map[string]string

func loadCatalogues() (map[string]catalogue, error) {
	all := map[string]catalogue{}
	for _, lang := range languages {
		data, err := localeFiles.ReadFile("locales/" + lang + ".yaml")
		if err != nil {
			return nil, fmt.Errorf("read texts: %w", err)
		}
		var texts catalogue
		if err := yaml.Unmarshal(data, &texts); err != nil {
			return nil, fmt.Errorf("read texts of %s: %w", lang, err)
		}
		all[lang] = texts
	}
	return all, nil
}

// text is the text of a key. One without a text is shown as it is, which a test
// does not let happen.
func (c catalogue) text(key string, args ...any) string {
	text, ok := c[key]
	if !ok {
		return key
	}
	for i, arg := range args {
		text = strings.ReplaceAll(text, "{"+strconv.Itoa(i)+"}", fmt.Sprint(arg))
	}
	return text
}

// number is the text for one or for several.
func (c catalogue) number(key string, n int) string {
	if n == 1 {
		key += ".one"
	}
	return c.text(key, n)
}

var matcher = language.NewMatcher([]language.Tag{language.English, language.German})

// chooseLanguage is what a person has chosen, or what their browser asks for.
func chooseLanguage(r *http.Request) string {
	if chosen, err := r.Cookie(cookieLang); err == nil {
		for _, lang := range languages {
			if chosen.Value == lang {
				return lang
			}
		}
	}
	tags, _, err := language.ParseAcceptLanguage(r.Header.Get("Accept-Language"))
	if err != nil {
		return languages[0]
	}
	_, at, sure := matcher.Match(tags...)
	if sure == language.No {
		return languages[0]
	}
	return languages[at]
}
