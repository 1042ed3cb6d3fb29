package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"go.yaml.in/yaml/v3"
)

// fileMax is the largest file that is read, in bytes.
const fileMax = 1 << 20

// Source is where the configuration is read from.
type Source struct {
	// Root is the root of the file system: "/" on a node.
	Root string
	// TrustOwner leaves out the check that files and directories belong to
	// root. It is for tests, which are not root.
	TrustOwner bool
}

// Load reads and checks the configuration. A node without spank.yaml has the
// one of Default, without images.d it has no images. The error is a ProblemsError,
// or that of opening Root.
func Load(src Source) (*Config, error) {
	l, err := newLoader(src)
	if err != nil {
		return nil, err
	}
	defer l.close()
	cfg := &Config{Spank: Default()}
	var spank *file
	if data, ok := l.read(SpankFile); ok {
		spank = l.spank(data, &cfg.Spank)
	}
	for _, name := range l.files(ImagesDir) {
		data, ok := l.read(name)
		if !ok {
			continue
		}
		if img, ok := l.image(name, data, cfg.Images); ok {
			cfg.Images = append(cfg.Images, img)
		}
	}
	if spank != nil && cfg.Spank.DefaultImage != "" && cfg.Image(cfg.Spank.DefaultImage) == nil {
		spank.fail("there is no image of that name in /"+ImagesDir, "default_image")
	}
	if err := l.problems.sorted(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// loader reads files below root and collects what is wrong with them.
type loader struct {
	root       *os.Root
	trustOwner bool
	manual     string // where its settings are explained
	problems   ProblemsError
	safeDir    map[string]bool     // what safeDirs has found out
	dirs       map[string]*os.Root // directories that are open
}

func newLoader(src Source) (*loader, error) {
	root, err := os.OpenRoot(src.Root)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	return &loader{
		root: root, trustOwner: src.TrustOwner, manual: "spank.yaml(5)",
		safeDir: map[string]bool{}, dirs: map[string]*os.Root{},
	}, nil
}

func (l *loader) close() {
	for _, d := range l.dirs {
		_ = d.Close() // nothing was written
	}
	_ = l.root.Close() // nothing was written
}

// dir opens a directory that safeDirs has found safe. It stays open, because
// os.Root takes each step of the way to a file by itself.
func (l *loader) dir(name string) (*os.Root, error) {
	if d, ok := l.dirs[name]; ok {
		return d, nil
	}
	d, err := l.root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	l.dirs[name] = d
	return d, nil
}

func (l *loader) fail(name string, line int, text string) {
	l.problems = append(l.problems, Problem{File: "/" + name, Line: line, Text: text})
}

// spank decodes spank.yaml into s, nil if it cannot be.
func (l *loader) spank(data []byte, s *Spank) *file {
	f := l.decode(SpankFile, data, s)
	if f == nil {
		return nil
	}
	f.checkSpank(s)
	return f
}

// files returns the names of the YAML files in a directory, sorted.
func (l *loader) files(in string) []string {
	if !l.safeDirs(in) {
		return nil
	}
	root, err := l.dir(in)
	var dir *os.File
	if err == nil {
		dir, err = root.Open(".")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		l.fail(in, 0, reason(err))
		return nil
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	names, err := dir.Readdirnames(-1)
	if err != nil {
		l.fail(in, 0, reason(err))
		return nil
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		return !strings.HasSuffix(n, ".yaml") || strings.HasPrefix(n, ".")
	})
	slices.Sort(names)
	for i, n := range names {
		names[i] = path.Join(in, n)
	}
	return names
}

// image decodes one file of the catalogue; known are those read before.
func (l *loader) image(name string, data []byte, known []Image) (Image, bool) {
	img := Image{AllowBinds: true, NV: true, Format: FormatAuto}
	f := l.decode(name, data, &img)
	if f == nil {
		return img, false
	}
	f.checkImage(&img)
	for _, other := range known {
		if other.Name == img.Name {
			f.fail("another file has an image of that name already", "name")
			return img, false
		}
	}
	return img, img.Name != ""
}

// decode decodes the YAML of the file into v, strictly, nil if it cannot be.
func (l *loader) decode(name string, data []byte, v any) *file {
	f := &file{loader: l, name: name, data: data}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		f.failDecode(err)
		return nil
	}
	var more yaml.Node
	if err := dec.Decode(&more); err == nil {
		l.fail(name, more.Line, "a second document; put everything into one")
		return nil
	}
	return f
}

// read returns the content of a file that only root can have written.
func (l *loader) read(name string) ([]byte, bool) {
	if !l.safeDirs(path.Dir(name)) {
		return nil, false
	}
	// No link is followed and nothing but a file opened: only root can change
	// what is in these directories between the two calls.
	base := path.Base(name)
	dir, err := l.dir(path.Dir(name))
	var before fs.FileInfo
	if err == nil {
		before, err = dir.Lstat(base)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false
	}
	switch {
	case err != nil:
		l.fail(name, 0, reason(err))
		return nil, false
	case before.Mode()&fs.ModeSymlink != 0:
		l.fail(name, 0, "is a link; put the file itself there")
		return nil, false
	case !before.Mode().IsRegular():
		l.fail(name, 0, "is not a regular file")
		return nil, false
	}
	in, err := dir.OpenFile(base, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		l.fail(name, 0, reason(err))
		return nil, false
	}
	defer in.Close() //nolint:errcheck // nothing was written
	info, err := in.Stat()
	if err != nil {
		l.fail(name, 0, reason(err))
		return nil, false
	}
	if !os.SameFile(before, info) {
		l.fail(name, 0, "was changed while it was read; try again")
		return nil, false
	}
	if !l.safe(name, info) {
		return nil, false
	}
	data, err := io.ReadAll(io.LimitReader(in, fileMax+1))
	switch {
	case err != nil:
		l.fail(name, 0, reason(err))
	case len(data) > fileMax:
		l.fail(name, 0, fmt.Sprintf("is longer than %d bytes", fileMax))
	default:
		return data, true
	}
	return nil, false
}

// safeDirs checks each directory on the way to and including dir. A directory
// that is missing is safe.
func (l *loader) safeDirs(dir string) bool {
	at := ""
	for part := range strings.SplitSeq(dir, "/") {
		at = path.Join(at, part)
		if known, ok := l.safeDir[at]; ok && known {
			continue
		} else if ok {
			return false
		}
		info, err := l.root.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return true
		}
		switch {
		case err != nil:
			l.failOnce(at, reason(err))
		case !info.IsDir():
			l.failOnce(at, "is not a directory, but must be one, not a link to one")
		default:
			l.safeDir[at] = l.safe(at, info)
		}
		if !l.safeDir[at] {
			return false
		}
	}
	return true
}

// safe refuses what somebody other than root could write.
func (l *loader) safe(name string, info fs.FileInfo) bool {
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		l.failOnce(name, fmt.Sprintf("can be written by others (mode %04o); run: chmod go-w /%s", perm, name))
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !l.trustOwner && (!ok || stat.Uid != 0) {
		l.failOnce(name, fmt.Sprintf("does not belong to root; run: chown root /%s", name))
		return false
	}
	return true
}

// failOnce is fail for a directory, which is on the way to several files.
func (l *loader) failOnce(name, text string) {
	problem := Problem{File: "/" + name, Text: text}
	if !slices.Contains(l.problems, problem) {
		l.problems = append(l.problems, problem)
	}
}

// reason is the error without the operation and path, which the problem names.
func reason(err error) string {
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		return pathErr.Err.Error()
	}
	return err.Error()
}

// file is one file that has been decoded.
type file struct {
	loader *loader
	name   string
	data   []byte
	node   *yaml.Node // it knows its lines; made when they are asked for
}

// nodes reads the file once more: each srun and each set-up reads all files,
// and few of them have mistakes.
func (f *file) nodes() *yaml.Node {
	if f.node == nil {
		f.node = new(yaml.Node)
		if yaml.Unmarshal(f.data, f.node) != nil {
			f.node = new(yaml.Node) // it could be decoded; then without lines
		}
	}
	return f.node
}

// fail records a problem at the value that the keys and indexes lead to, or at
// the nearest one above it that the file has.
func (f *file) fail(text string, at ...any) {
	f.loader.fail(f.name, line(f.nodes(), at), text)
}

func line(n *yaml.Node, at []any) int {
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		return line(n.Content[0], at)
	}
	if n.Kind == yaml.AliasNode {
		return n.Line
	}
	if len(at) == 0 {
		return n.Line
	}
	switch key := at[0].(type) {
	case int:
		if n.Kind == yaml.SequenceNode && key < len(n.Content) {
			return line(n.Content[key], at[1:])
		}
	case string:
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return line(n.Content[i+1], at[1:])
			}
		}
	}
	return n.Line
}

// pattern compiles an expression when it is first asked for: those with long
// repetitions cost the start of each sealed step a millisecond.
func pattern(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

// yamlLine is how the decoder names the line of an error.
var yamlLine = pattern(`^(?:yaml: )?line (\d+): (.*)$`)

// unknownField is how the decoder names a key it does not know.
var unknownField = pattern(`^field (.*) not found in type .*$`)

// failDecode turns the decoder's errors into problems.
func (f *file) failDecode(err error) {
	texts := []string{err.Error()}
	if typeErr := (*yaml.TypeError)(nil); errors.As(err, &typeErr) {
		texts = typeErr.Errors
	}
	for _, text := range texts {
		at := 0
		if m := yamlLine().FindStringSubmatch(text); m != nil {
			at, _ = strconv.Atoi(m[1]) // only digits match
			text = m[2]
		}
		if m := unknownField().FindStringSubmatch(text); m != nil {
			text = `there is no setting "` + m[1] + `"; see ` + f.loader.manual
		}
		f.loader.fail(f.name, at, flat(text))
	}
}

// flat makes a text of a library one printable line.
func flat(s string) string {
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
