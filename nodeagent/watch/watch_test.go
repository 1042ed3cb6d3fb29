package watch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestWatcher_tells_of_names_that_come_and_of_the_end(t *testing.T) {
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	at, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	wd, err := w.Add(int(at.Fd()), Names)
	if err != nil {
		t.Fatal(err)
	}
	if err := at.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	var named, gone bool
	for !named || !gone {
		events, err := w.Read()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			named = named || e.Watch == wd && e.Name == "a"
			gone = gone || e.Watch == wd && e.Gone
		}
	}
	done := make(chan error)
	go func() {
		_, err := w.Read()
		done <- err
	}()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
}
