package house

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// asvs are the items of OWASP ASVS 5.0 that docs/security.md answers: levels 1
// and 2, and 3 for authentication, sessions, HTTP framing and websockets.
const asvs = `1.1.1-2 1.2.1-9 1.3.1-11 1.4.1-3 1.5.1-2 2.1.1-3 2.2.1-3 2.3.1-4 2.4.1 3.2.1-2 3.3.1-4 3.4.1-6 3.5.1-5 3.7.1-2
4.1.1-3 4.2.1-5 4.3.1-2 4.4.1-4 5.1.1 5.2.1-3 5.3.1-2 5.4.1-3 6.1.1-3 6.2.1-12 6.3.1-8 6.4.1-6 6.5.1-8 6.6.1-4 6.7.1-2 6.8.1-4
7.1.1-3 7.2.1-4 7.3.1-2 7.4.1-5 7.5.1-3 7.6.1-2 8.1.1-2 8.2.1-3 8.3.1 8.4.1 9.1.1-3 9.2.1-4
10.1.1-2 10.2.1-2 10.3.1-4 10.4.1-11 10.5.1-5 10.6.1-2 10.7.1-3 11.1.1-2 11.2.1-3 11.3.1-3 11.4.1-4 11.5.1 11.6.1
12.1.1-3 12.2.1-2 12.3.1-4 13.1.1 13.2.1-5 13.3.1-2 13.4.1-5 14.1.1-2 14.2.1-4 14.3.1-3 15.1.1-3 15.2.1-3 15.3.1-7
16.1.1 16.2.1-5 16.3.1-4 16.4.1-3 16.5.1-3 17.1.1 17.2.1-4 17.3.1-2`

var (
	itemRange = regexp.MustCompile(`^(\d+\.\d+)\.(\d+)(?:-(\d+))?$`)
	testName  = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]*)`")
	codeName  = regexp.MustCompile("`([^` ]+)` in `([^` ]+)`")
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
)

// items writes 1.2.3-5 out as 1.2.3, 1.2.4 and 1.2.5.
func items(t *testing.T, ranges []string) (all []string) {
	t.Helper()
	for _, one := range ranges {
		m := itemRange.FindStringSubmatch(one)
		if m == nil {
			t.Fatalf("%q is no item of the standard", one)
		}
		from, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		to := from
		if m[3] != "" {
			if to, err = strconv.Atoi(m[3]); err != nil {
				t.Fatal(err)
			}
		}
		for n := from; n <= to; n++ {
			all = append(all, m[1]+"."+strconv.Itoa(n))
		}
	}
	return all
}

func securityPage(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(path.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSecurityTableHasEveryItemOnceWithItsEvidence(t *testing.T) {
	seen := map[string]bool{}
	for line := range strings.Lines(securityPage(t)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) < 4 || !itemRange.MatchString(strings.Split(cells[0], ", ")[0]) {
			continue
		}
		if len(cells) != 4 {
			t.Errorf("the row of %s has %d cells, not 4", cells[0], len(cells))
		}
		for _, item := range items(t, strings.Split(cells[0], ", ")) {
			if seen[item] {
				t.Errorf("%s stands there twice", item)
			}
			seen[item] = true
		}
		switch state, evidence := cells[2], cells[3]; state {
		case "met":
			if !strings.ContainsAny(evidence, "`\"") && evidence != "the same two" {
				t.Errorf("%s is met by nothing that is named", cells[0])
			}
		case "not met", "n/a":
			if evidence == "" {
				t.Errorf("%s is %s without a reason", cells[0], state)
			}
		default:
			t.Errorf("%s is %q; it is met, not met or n/a", cells[0], state)
		}
	}
	wanted := items(t, strings.Fields(asvs))
	for _, item := range wanted {
		if !seen[item] {
			t.Errorf("%s is missing", item)
		}
		delete(seen, item)
	}
	for item := range seen {
		t.Errorf("%s is no item of these levels", item)
	}
}

func TestSecurityPageNamesWhatExists(t *testing.T) {
	page, tree := securityPage(t), os.DirFS(root)
	tests := map[string]bool{}
	for _, folder := range []string{"bench", "cmd", "integration", "internal", "nodeagent", "portal", "session", "spank", "tools"} {
		err := fs.WalkDir(tree, folder, func(name string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(name, "_test.go") {
				return err
			}
			source, err := fs.ReadFile(tree, name)
			for _, m := range testFunc.FindAllStringSubmatch(string(source), -1) {
				tests[m[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	named := testName.FindAllStringSubmatch(page, -1)
	if len(named) < 100 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, m := range named {
		if !tests[m[1]] {
			t.Errorf("there is no test %s", m[1])
		}
	}
	for _, m := range codeName.FindAllStringSubmatch(page, -1) {
		source, err := fs.ReadFile(tree, m[2])
		if err != nil {
			t.Error(err)
			continue
		}
		if !regexp.MustCompile(`(^|[^A-Za-z0-9_])` + regexp.QuoteMeta(m[1]) + `($|[^A-Za-z0-9_])`).Match(source) {
			t.Errorf("%s does not have %s", m[2], m[1])
		}
	}
}
