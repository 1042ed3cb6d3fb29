package web

import (
	"testing"

	"github.com/carme-hpc/carme/internal/wire/api"
)

func TestOutput_is_shown_without_what_only_a_terminal_shows(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"plain":        {"a\tb\n", "a\tb\n"},
		"colours":      {"\x1b[1;31mred\x1b[0m and \x1b[38;5;12mblue\x1b[m\n", "red and blue\n"},
		"a title":      {"\x1b]0;job\x07x\x1b]2;job\x1b\\y\n", "xy\n"},
		"movements":    {"\x1b[2K\x1b[1Aagain\x1b(B\x1b7\x1b8\n", "again\n"},
		"no sequences": {"[31m 5\n", "[31m 5\n"},
	} {
		if got := unstyled(api.Output{Text: c.in, Next: 100}); got.Text != c.want || got.Next != 100 {
			t.Errorf("%s: %q, next %d", name, got.Text, got.Next)
		}
	}
}

func TestOutput_that_ends_within_a_sequence_is_asked_for_again_from_there(t *testing.T) {
	for _, half := range []string{"\x1b", "\x1b[", "\x1b[38;5", "\x1b]0;a title"} {
		got := unstyled(api.Output{Text: "so far" + half, Next: 100})
		if got.Text != "so far" || got.Next != int64(100-len(half)) {
			t.Errorf("%q: %q, next %d", half, got.Text, got.Next)
		}
	}
}

func TestOutput_of_a_progress_bar_is_its_last_state(t *testing.T) {
	for in, want := range map[string]string{
		"a\r\nb\r\n":                "a\nb\n",
		"10%\r20%\r100%\ndone\n":    "100%\ndone\n",
		"x\n10%\r20%\r":             "x\n20%&#13;",
		"\r 1/2\r 2/2":              " 2/2",
		"<b>10%</b>\r<b>20%</b>\n":  "&lt;b&gt;20%&lt;/b&gt;\n",
		"nothing of the kind & co.": "nothing of the kind &amp; co.",
	} {
		if got := string(onScreen(in)); got != want {
			t.Errorf("%q: %q, not %q", in, got, want)
		}
	}
}
