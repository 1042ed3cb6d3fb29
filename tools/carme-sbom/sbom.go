package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"
)

// programs are the packages that are compiled into what is installed.
func programs() []string {
	return []string{"./cmd/...", "./spank"}
}

// module is one of `go list -json=Module`.
type module struct {
	Path, Version string
	Main          bool
	Replace       *module
}

// bom and component are of https://cyclonedx.org/docs/1.6/json/.
type bom struct {
	Schema       string       `json:"$schema"`
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Serial       string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type    string `json:"type"`
	Ref     string `json:"bom-ref"`
	Name    string `json:"name"`
	Version string `json:"version"`
	URL     string `json:"purl"`
}

type dependency struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn"`
}

func newComponent(kind, name, version string) component {
	// A package URL of type golang is in lower case, and + must be escaped.
	at := "pkg:golang/" + strings.ToLower(name) + "@" + strings.ReplaceAll(version, "+", "%2B")
	return component{Type: kind, Ref: at, Name: name, Version: version, URL: at}
}

// modules reads what go list says of each package, and returns the modules of
// others, each once, in order.
func modules(list []byte) (own string, others []module, err error) {
	seen := map[string]bool{}
	for dec := json.NewDecoder(bytes.NewReader(list)); ; {
		var one struct{ Module *module }
		if err := dec.Decode(&one); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", nil, fmt.Errorf("read go list: %w", err)
		}
		m := one.Module
		switch {
		case m == nil: // the standard library
			continue
		case m.Main:
			own = m.Path
			continue
		case m.Replace != nil:
			m = m.Replace
		}
		if !seen[m.Path] {
			seen[m.Path] = true
			others = append(others, *m)
		}
	}
	if own == "" || len(others) == 0 {
		return "", nil, errors.New("go list names no modules")
	}
	slices.SortFunc(others, func(a, b module) int { return strings.Compare(a.Path, b.Path) })
	return own, others, nil
}

func write(w io.Writer, list []byte, version string, now time.Time) error {
	own, others, err := modules(list)
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	b := bom{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", Spec: "1.6", Version: 1,
		Serial:   fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]),
		Metadata: metadata{now.UTC().Format(time.RFC3339), newComponent("application", own, version)},
	}
	b.Components = append(b.Components, newComponent("library", "std", strings.TrimPrefix(runtime.Version(), "go")))
	for _, m := range others {
		b.Components = append(b.Components, newComponent("library", m.Path, m.Version))
	}
	all := dependency{Ref: b.Metadata.Component.Ref}
	for _, c := range b.Components {
		all.On = append(all.On, c.Ref)
	}
	b.Dependencies = []dependency{all}
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(b)
}
