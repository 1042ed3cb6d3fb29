package request

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"
)

// Help returns the text of `--carme=help`.
func Help() string {
	var b strings.Builder
	b.WriteString(`Isolate a job: its own processes, /tmp, devices, and its GPUs only; in an image if you like.

  srun --carme COMMAND              isolated, in the site's default image if it has one
  srun --carme=IMAGE COMMAND        in an image: a name of --carme=list, or a file from / on
  srun --carme=none COMMAND         isolated, without an image
  sbatch --carme=IMAGE --carme-app=jupyterlab --wrap=:
                                    JupyterLab in the job; the portal shows the way in

`)
	var rows strings.Builder
	table := tabwriter.NewWriter(&rows, 0, 0, 2, ' ', 0)
	for _, o := range Options() {
		line := "  --" + o.Name
		switch {
		case o.Optional:
			line += "[=" + o.Arg + "]"
		case o.Arg != "":
			line += "=" + o.Arg
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", line, o.Usage, o.Env)
	}
	_ = table.Flush() // into memory
	for row := range strings.Lines(rows.String()) {
		b.WriteString(strings.TrimRight(row, " \n") + "\n")
	}
	b.WriteString(`
The right column is the environment variable with the default (yes and no switch CARME on and off).
All work in #SBATCH lines. Network, binds, home, overlay and app are fixed by a job's first step.
In a job, "carme proof" shows what it is isolated from. Manual: carme(7)
`)
	return b.String()
}

// Image is an entry of the catalogue as `--carme=list` shows it.
type Image struct {
	Name        string
	Description string
	// Groups that may use it; everyone if empty.
	Groups []string
	// Default marks the site's default image.
	Default bool
}

// VisibleTo reports whether a user in these groups may use the image.
func (i Image) VisibleTo(groups []string) bool {
	if len(i.Groups) == 0 {
		return true
	}
	return slices.ContainsFunc(groups, func(g string) bool { return slices.Contains(i.Groups, g) })
}

// List returns the text of `--carme=list`: the images that a user in these
// groups may use, by name, the default one marked with an asterisk.
func List(images []Image, groups []string) string {
	var visible []Image
	for _, i := range images {
		if i.VisibleTo(groups) {
			visible = append(visible, i)
		}
	}
	if len(visible) == 0 {
		return "There is no image in the catalogue that you may use. An image file: --carme=/path/to/image.sif\n"
	}
	slices.SortFunc(visible, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tDESCRIPTION")
	hasDefault := false
	for _, i := range visible {
		name := i.Name
		if i.Default {
			name += "*"
			hasDefault = true
		}
		fmt.Fprintf(table, "%s\t%s\n", name, oneLine(i.Description))
	}
	_ = table.Flush() // into memory
	if hasDefault {
		b.WriteString("* used for --carme without a name\n")
	}
	return b.String()
}

// oneLine replaces what cannot be printed by blanks.
func oneLine(s string) string {
	return strings.Join(strings.Fields(strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, s)), " ")
}
