package request

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DetectSpacedImage catches `srun --carme IMAGE COMMAND`, where the value of an
// option whose value is optional was typed with a space and srun would run
// IMAGE as the command. To be called if --carme came without a value, with the
// command and its arguments, the names in the catalogue, and a function that
// tells whether a path is an image directory (IsSandbox; nil: none is).
//
// The command is taken for an image if it is a name of the catalogue, ends in
// .sif, is a URI such as docker://, or is an image directory. The error is one
// line that says what to write.
func DetectSpacedImage(argv, images []string, isSandbox func(path string) bool) error {
	if len(argv) == 0 || argv[0] == "" {
		return nil
	}
	word := argv[0]
	switch {
	case slices.Contains(images, word):
		return fmt.Errorf("%s is an image, and with a space Slurm would run it as the command; did you mean --carme=%s? (to run a program of that name, write its path)",
			Quote(word), word)
	case word == string(ActionList) || word == string(ActionHelp):
		if len(argv) > 1 {
			return nil
		}
		return fmt.Errorf("with a space Slurm would run %s as the command; did you mean --carme=%s?", word, word)
	case strings.Contains(word, "://"), strings.HasSuffix(word, ".sif"):
	case isSandbox != nil && strings.Contains(word, "/") && isSandbox(word):
	default:
		return nil
	}
	if !fitForMessage(word) {
		return fmt.Errorf("%s looks like an image, and with a space Slurm would run it as the command; write --carme=IMAGE with an equals sign", Quote(word))
	}
	return fmt.Errorf("%s looks like an image, and with a space Slurm would run it as the command; did you mean --carme=%s?", Quote(word), suggestion(word))
}

// AfterCarme returns the words behind `--carme` on a command line if the next
// one is not an option: the argv for DetectSpacedImage where only the whole
// line is known, as in srun (/proc/self/cmdline). nil if there are none.
func AfterCarme(words []string) []string {
	i := slices.Index(words, "--"+OptCarme)
	if i < 0 || i+1 >= len(words) || strings.HasPrefix(words[i+1], "-") {
		return nil
	}
	return words[i+1:]
}

// suggestion is the word as --carme= takes it: a file's path from / on.
func suggestion(word string) string {
	isFile := strings.HasSuffix(word, ".sif") || strings.Contains(word, "/")
	if isFile && !strings.HasPrefix(word, "/") && !strings.Contains(word, "://") {
		return "$PWD/" + strings.TrimPrefix(word, "./")
	}
	return word
}

func fitForMessage(word string) bool { return len(word) <= quoteMax && printable(word) }

// IsSandbox reports whether path is the directory of an image: one with
// Apptainer's metadata in .singularity.d. It follows links, so it is for
// processes of the user only, never for root.
func IsSandbox(path string) bool {
	info, err := os.Stat(filepath.Join(path, ".singularity.d"))
	return err == nil && info.IsDir()
}
