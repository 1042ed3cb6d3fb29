package web

import (
	"html/template"
	"regexp"
	"strings"

	"github.com/carme-hpc/carme/internal/wire/api"
)

var (
	// escapes are the control functions of a terminal (ECMA-48, 5.3 to 5.6): colours,
	// movements, titles.
	escapes = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-OQ-WYZ\\\x60-~])`)
	// begun is one whose end has not been written yet.
	begun    = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][ -~]{0,1000}|[ -/]*)$`)
	lineEnds = regexp.MustCompile(`\r+\n`)
	// overwritten is what a program wrote and then began the line again.
	overwritten = regexp.MustCompile(`[^\n]*\r([^\r\n])`)
)

// unstyled is output without what only a terminal shows. An escape sequence that is not
// complete is left for the next piece.
func unstyled(output api.Output) api.Output {
	if half := begun.FindString(output.Text); half != "" {
		output.Text = strings.TrimSuffix(output.Text, half)
		output.Next -= int64(len(half))
	}
	output.Text = escapes.ReplaceAllString(output.Text, "")
	return output
}

// onScreen is output as the lines on a screen in the end: of a progress bar its last
// state. What follows may begin the line again: a carriage return at the end stays, as
// a reference, because parsers take the character itself for a new line.
func onScreen(text string) template.HTML {
	text = lineEnds.ReplaceAllString(text, "\n")
	again := strings.HasSuffix(text, "\r")
	text = overwritten.ReplaceAllString(strings.TrimRight(text, "\r"), "$1")
	shown := template.HTMLEscapeString(text)
	if again {
		shown += "&#13;"
	}
	return template.HTML(shown) //nolint:gosec // escaped
}
