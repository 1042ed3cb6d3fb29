package house

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const maxMainLines = 40

// goFiles calls check for each Go file below the folders, tests left out.
func goFiles(t *testing.T, check func(name string, source []byte), folders ...string) {
	t.Helper()
	tree := os.DirFS(root)
	for _, folder := range folders {
		if _, err := fs.Stat(tree, folder); errors.Is(err, fs.ErrNotExist) {
			continue // a part that is not built yet
		}
		err := fs.WalkDir(tree, folder, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			source, err := fs.ReadFile(tree, name)
			if err == nil {
				check(name, source)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestMainsAreShort(t *testing.T) {
	goFiles(t, func(name string, source []byte) {
		if lines := bytes.Count(source, []byte("\n")); filepath.Base(name) == "main.go" && lines > maxMainLines {
			t.Errorf("%s has %d lines; %d are enough to read flags and call Run", name, lines, maxMainLines)
		}
	}, "cmd", "tools")
}

func TestProductCodeStartsNoShell(t *testing.T) {
	goFiles(t, func(name string, source []byte) {
		for _, found := range shells(t, name, source) {
			t.Errorf("%s: a user's text would meet a shell's grammar; call the program itself", found)
		}
	}, "spank", "internal", "cmd", "nodeagent", "portal")
}

func TestShellsAreFound(t *testing.T) {
	source := `package p
import "os/exec"
var a = exec.Command("sh", "-c", x)
var b = exec.CommandContext(ctx, "/bin/bash", "-c", x)
var c = exec.Command("/usr/bin/apptainer", "sh")
`
	if got := shells(t, "p.go", []byte(source)); len(got) != 2 {
		t.Errorf("found %v, want lines 3 and 4", got)
	}
}

// shells lists the places where a shell is the program of a new process.
func shells(t *testing.T, name string, source []byte) []string {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		selected, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !strings.HasPrefix(selected.Sel.Name, "Command") {
			return true
		}
		program := 0
		if selected.Sel.Name == "CommandContext" {
			program = 1
		}
		if len(call.Args) > program && isShell(call.Args[program]) {
			found = append(found, files.Position(call.Pos()).String())
		}
		return true
	})
	return found
}

func isShell(arg ast.Expr) bool {
	literal, ok := arg.(*ast.BasicLit)
	if !ok {
		return false
	}
	text, err := strconv.Unquote(literal.Value)
	if err != nil {
		return false
	}
	switch filepath.Base(text) {
	case "sh", "bash", "dash", "env":
		return true
	}
	return false
}
