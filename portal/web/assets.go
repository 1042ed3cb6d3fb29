package web

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

//go:embed assets/dist
var assetFiles embed.FS

// ErrNoAssets means that the program was compiled before make assets.
var ErrNoAssets = errors.New("this carme-portal was built without its style sheet and scripts; run make assets, then build it again")

// assets are the files that build.mjs makes.
type assets struct {
	names map[string]string // to the name with a hash
	icons map[string]string
	files map[string]asset // by the name with a hash
}

type asset struct {
	kind       string
	data, gzip []byte
}

func loadAssets(root fs.FS) (*assets, error) {
	a := &assets{names: map[string]string{}, icons: map[string]string{}, files: map[string]asset{}}
	if err := readJSON(root, "manifest.json", &a.names); errors.Is(err, fs.ErrNotExist) {
		return a, ErrNoAssets
	} else if err != nil {
		return a, err
	}
	if err := readJSON(root, "icons.json", &a.icons); err != nil {
		return a, err
	}
	for _, name := range a.names {
		data, err := fs.ReadFile(root, name)
		if err != nil {
			return a, fmt.Errorf("read asset: %w", err)
		}
		packed, err := fs.ReadFile(root, name+".gz")
		if err != nil {
			return a, fmt.Errorf("read asset: %w", err)
		}
		a.files[name] = asset{kind: kindOf(name), data: data, gzip: packed}
	}
	return a, nil
}

// kindOf is the media type of a file, with its charset where it is text.
func kindOf(name string) string {
	if path.Ext(name) == ".svg" {
		return "image/svg+xml; charset=utf-8"
	}
	return mime.TypeByExtension(path.Ext(name))
}

func readJSON(root fs.FS, name string, into any) error {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return fmt.Errorf("read assets: %w", err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("read assets: %s: %w", name, err)
	}
	return nil
}

const assetPrefix = "/assets/"

func (a *assets) url(name string) string { return assetPrefix + a.names[name] }

// ServeHTTP serves an asset, for ever: its name changes with its content.
func (a *assets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file, ok := a.files[strings.TrimPrefix(r.URL.Path, assetPrefix)]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", file.kind)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Vary", "Accept-Encoding")
	data := file.data
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		data = file.gzip
	}
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) // the browser is gone or not
	}
}
