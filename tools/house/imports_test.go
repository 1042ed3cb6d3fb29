package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	root     = "../.."
	module   = "github.com/carme-hpc/carme"
	tablePin = "<!-- import table -->"
	tableEnd = "<!-- end of the import table -->"
)

// allowance is one row of the import table in docs/architecture.md.
type allowance struct {
	folder    string
	own       []string // folders of this module
	libraries []string // import path prefixes of other modules
}

// allowed lists the import path prefixes, none of them within another: with
// "internal" and "internal/cli" in its list, depguard 2.2 finds the latter alone
// and refuses "internal/config".
func (a allowance) allowed() []string {
	all := []string{module + "/" + a.folder}
	for _, folder := range a.own {
		all = append(all, module+"/"+folder)
	}
	all = append(all, a.libraries...)
	return slices.DeleteFunc(slices.Clone(all), func(prefix string) bool {
		return slices.ContainsFunc(all, func(wider string) bool { return prefix != wider && within(prefix, wider) })
	})
}

func (a allowance) permits(importPath string) bool {
	return slices.ContainsFunc(a.allowed(), func(prefix string) bool { return within(importPath, prefix) })
}

func within(name, folder string) bool {
	return name == folder || strings.HasPrefix(name, folder+"/")
}

var quoted = regexp.MustCompile("`([^`]+)`")

func readTable(t *testing.T, text string) []allowance {
	t.Helper()
	_, rest, ok := strings.Cut(text, tablePin)
	body, _, ended := strings.Cut(rest, tableEnd)
	if !ok || !ended {
		t.Fatal("docs/architecture.md has lost the marks around its import table")
	}
	var rows []allowance
	for line := range strings.Lines(body) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 || !strings.Contains(cells[1], "`") {
			continue
		}
		rows = append(rows, allowance{
			folder:    names(cells[1])[0],
			own:       names(cells[2]),
			libraries: names(cells[3]),
		})
	}
	if len(rows) == 0 {
		t.Fatal("the import table in docs/architecture.md has no rows")
	}
	return rows
}

func names(cell string) []string {
	var all []string
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		all = append(all, m[1])
	}
	return all
}

// rowFor is the row with the longest matching folder.
func rowFor(rows []allowance, folder string) (best allowance, ok bool) {
	for _, row := range rows {
		if within(folder, row.folder) && len(row.folder) >= len(best.folder) {
			best, ok = row, true
		}
	}
	return best, ok
}

func documented(t *testing.T) []allowance {
	t.Helper()
	text, err := os.ReadFile(root + "/docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	return readTable(t, string(text))
}

type goPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "-tags", "integration", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// breaches names every import that the table does not permit.
func breaches(rows []allowance, packages []goPackage) []string {
	var all []string
	for _, p := range packages {
		folder := strings.TrimPrefix(p.ImportPath, module+"/")
		row, ok := rowFor(rows, folder)
		if !ok {
			all = append(all, folder+" has no row in the import table of docs/architecture.md")
			continue
		}
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			standard := !strings.Contains(strings.Split(imported, "/")[0], ".")
			if !standard && !row.permits(imported) {
				all = append(all, folder+" imports "+imported)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestPackagesImportOnlyWhatTheTablePermits(t *testing.T) {
	for _, breach := range breaches(documented(t), listPackages(t)) {
		t.Error(breach)
	}
}

func TestBreachesAreFound(t *testing.T) {
	rows := []allowance{
		{folder: "spank", own: []string{"internal/wire"}, libraries: []string{"golang.org/x/sys"}},
		{folder: "spank/request"},
		{folder: "integration"},
	}
	packages := []goPackage{
		{ImportPath: module + "/spank", Imports: []string{
			"os", "net/http", "golang.org/x/sys/unix", module + "/internal/wire", module + "/spank/request",
			module + "/internal/wired", "golang.org/x/system", module + "/portal/web",
		}},
		{ImportPath: module + "/spank/request", TestImports: []string{"testing", "golang.org/x/sys/unix"}},
		{ImportPath: module + "/integration", XTestImports: []string{module + "/spank"}},
		{ImportPath: module + "/elsewhere"},
	}
	want := []string{
		"elsewhere has no row in the import table of docs/architecture.md",
		"integration imports " + module + "/spank",
		"spank imports " + module + "/internal/wired",
		"spank imports " + module + "/portal/web",
		"spank imports golang.org/x/system",
		"spank/request imports golang.org/x/sys/unix",
	}
	if got := breaches(rows, packages); !slices.Equal(got, want) {
		t.Errorf("breaches are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The linter's rules are a second copy, for editors and for messages at the
// line; it must say the same as the table.
func TestLinterRulesEqualTheTable(t *testing.T) {
	text, err := os.ReadFile(root + "/.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules := depguardRules(string(text))
	for _, row := range documented(t) {
		name := strings.ReplaceAll(row.folder, "/", "-")
		got, want := rules[name], append([]string{"$gostd"}, row.allowed()...)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf(".golangci.yml, depguard rule %s allows\n%s\nbut docs/architecture.md\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		delete(rules, name)
	}
	for name := range rules {
		t.Errorf(".golangci.yml has a depguard rule %s without a row in docs/architecture.md", name)
	}
}

var (
	ruleName  = regexp.MustCompile(`^ {8}([a-z-]+):$`)
	ruleAllow = regexp.MustCompile(`^ {12}- (\S+)$`)
)

// depguardRules reads the allow lists out of the linter's configuration, which
// this repository keeps in one form, so that no YAML library is needed here.
func depguardRules(config string) map[string][]string {
	rules := map[string][]string{}
	_, rest, _ := strings.Cut(config, "\n    depguard:\n      rules:\n")
	name := ""
	for line := range strings.Lines(rest) {
		line = strings.TrimRight(line, "\n")
		if m := ruleName.FindStringSubmatch(line); m != nil {
			name = m[1]
			rules[name] = nil
		} else if m := ruleAllow.FindStringSubmatch(line); m != nil {
			rules[name] = append(rules[name], m[1])
		} else if line != "" && !strings.HasPrefix(line, strings.Repeat(" ", 8)) {
			break // the next linter's settings
		}
	}
	return rules
}

func TestTableNamesEachFolderOncePlainly(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range documented(t) {
		if row.folder != path.Clean(row.folder) {
			t.Errorf("folder %q is not written plainly", row.folder)
		}
		if seen[row.folder] {
			t.Errorf("folder %s stands in the table twice", row.folder)
		}
		seen[row.folder] = true
	}
}
