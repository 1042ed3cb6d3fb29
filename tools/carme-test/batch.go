package main

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/carme-hpc/carme/tools/internal/child"
)

// testsDir has the integration tests, which run in it as `go test` would run them.
const testsDir = "integration"

// batch is the tests of one file, which run in their order on one cluster.
type batch struct {
	file  string
	tests []string
}

// testFiles finds the test functions of a folder, file by file.
func testFiles(dir string) ([]batch, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var all []batch
	for _, name := range names { // sorted
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("find the tests: %w", err)
		}
		b := batch{file: filepath.Base(name)}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") && f.Name.Name != "TestMain" {
				b.tests = append(b.tests, f.Name.Name)
			}
		}
		if len(b.tests) > 0 {
			all = append(all, b)
		}
	}
	return all, nil
}

// queue hands batches out, each once.
type queue struct {
	mu   sync.Mutex
	rest []batch
}

func (q *queue) next() (batch, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.rest) == 0 {
		return batch{}, false
	}
	b := q.rest[0]
	q.rest = q.rest[1:]
	return b, true
}

// buildTests makes the one program that all batches run.
func (r *runner) buildTests(ctx context.Context, s stage) (string, error) {
	program, err := filepath.Abs("build/integration.test")
	if err != nil {
		return "", fmt.Errorf("name the test program: %w", err)
	}
	_, err = r.stream(ctx, s, "go", "test", "-c", "-tags", "integration", "-o", program, "./"+testsDir)
	return program, err
}

// runLanes runs lanes side by side. A cluster that is not up has been counted as a
// failure by its stage; whoever else shares its tests runs them.
func (r *runner) runLanes(ctx context.Context, s stage, program string, lanes []lane, files []batch) ([]result, error) {
	queues := map[string]*queue{}
	for _, l := range lanes {
		for _, sh := range l {
			if queues[sh.key()] == nil {
				queues[sh.key()] = &queue{rest: ofRows(files, sh.rows)}
			}
		}
	}
	each := make([][]result, len(lanes))
	var all sync.WaitGroup
	for i, l := range lanes {
		all.Go(func() {
			for _, sh := range l {
				if r.blocked[sh.on] == "" {
					on := s
					on.on, on.labelled = sh.on, len(lanes) > 1
					each[i] = append(each[i], r.work(ctx, on, program, queues[sh.key()])...)
				}
			}
		})
	}
	all.Wait()
	left := 0
	for _, q := range queues {
		for b, ok := q.next(); ok; b, ok = q.next() {
			left += len(b.tests)
		}
	}
	results := slices.Concat(each...)
	if left > 0 {
		return results, fmt.Errorf("%d tests did not run", left)
	}
	return results, nil
}

// work runs batches on one cluster until there are no more.
func (r *runner) work(ctx context.Context, s stage, program string, q *queue) []result {
	var results []result
	for ctx.Err() == nil {
		b, ok := q.next()
		if !ok {
			break
		}
		results = append(results, r.batch(ctx, s, program, b)...)
	}
	return results
}

// batch runs the tests of one file. Each of them has a result afterwards, also
// those that a crash of the program kept from running.
func (r *runner) batch(ctx context.Context, s stage, program string, b batch) []result {
	cmd := child.Command(ctx, "go", "tool", "test2json", "-t", "-p", testsDir, program, "-test.v=test2json", "-test.timeout", s.limit.String(),
		"-test.run", "^("+strings.Join(b.tests, "|")+")$")
	cmd.Dir = testsDir
	s.name = "integration " + s.on.String() // of the log
	results, err := r.testEvents(s, cmd)
	why := "the test did not run"
	if err != nil {
		why = err.Error()
	}
	ran := map[string]bool{}
	for _, res := range results {
		ran[res.top()] = true
	}
	for _, name := range b.tests {
		if !ran[name] {
			results = append(results, result{suite: s.on.suite, pkg: testsDir, name: name, outcome: failed, output: why + "\n"})
		}
	}
	return results
}
