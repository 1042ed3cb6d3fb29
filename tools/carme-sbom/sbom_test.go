package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

const listed = `{}
{"Module":{"Path":"example.org/own","Main":true}}
{"Module":{"Path":"github.com/B/two","Version":"v2.0.0+incompatible"}}
{"Module":{"Path":"github.com/a/one","Version":"v1.0.0","Replace":{"Path":"github.com/fork/one","Version":"v1.0.1"}}}
{"Module":{"Path":"github.com/B/two","Version":"v2.0.0+incompatible"}}
`

func TestBillNamesEachCompiledModuleOnce(t *testing.T) {
	var out bytes.Buffer
	if err := write(&out, []byte(listed), "v0.1.0", time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	var b bom
	if err := json.Unmarshal(out.Bytes(), &b); err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, c := range b.Components[1:] {
		urls = append(urls, c.URL)
	}
	if want := []string{"pkg:golang/github.com/b/two@v2.0.0%2Bincompatible", "pkg:golang/github.com/fork/one@v1.0.1"}; !slices.Equal(urls, want) {
		t.Errorf("components %q", urls)
	}
	if b.Components[0].Name != "std" || b.Metadata.Component.URL != "pkg:golang/example.org/own@v0.1.0" || b.Metadata.Timestamp != "1970-01-01T00:00:00Z" {
		t.Errorf("std %+v, own %+v", b.Components[0], b.Metadata)
	}
	if b.Format != "CycloneDX" || b.Spec != "1.6" || len(b.Serial) != len("urn:uuid:")+36 || len(b.Dependencies[0].On) != 3 {
		t.Errorf("head %+v", b)
	}
}

func TestBillOfNothingIsAnError(t *testing.T) {
	for _, list := range []string{"", "{}", `{"Module":{"Path":"example.org/own","Main":true}}`, "no JSON"} {
		if err := write(new(strings.Builder), []byte(list), "v", time.Now()); err == nil {
			t.Errorf("%q: no error", list)
		}
	}
}
