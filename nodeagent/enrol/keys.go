package enrol

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// Keys are the public keys that sign route tokens. They are kept on disk, so
// that streams can be opened while the backend is away.
type Keys struct {
	file string
	mu   sync.Mutex
	keys atomic.Pointer[map[string]ed25519.PublicKey]
}

// OpenKeys reads the keys of a state directory; none is no error.
func OpenKeys(dir string) (*Keys, error) {
	k := &Keys{file: filepath.Join(dir, "route_keys.json")}
	k.keys.Store(&map[string]ed25519.PublicKey{})
	data, err := os.ReadFile(k.file)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read route keys: %w", err)
	}
	var raw map[string][]byte
	if err := json.Unmarshal(data, &raw); err != nil {
		return k, nil //nolint:nilerr // the backend sends them again
	}
	if keys, err := parseKeys(raw); err == nil {
		k.keys.Store(&keys)
	}
	return k, nil
}

// Get returns the keys by their ids. The map must not be changed.
func (k *Keys) Get() map[string]ed25519.PublicKey { return *k.keys.Load() }

// Set replaces the keys. An empty set is refused: it would close every door.
func (k *Keys) Set(raw map[string][]byte) error {
	keys, err := parseKeys(raw)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if maps.EqualFunc(keys, k.Get(), func(a, b ed25519.PublicKey) bool { return a.Equal(b) }) {
		return nil
	}
	k.keys.Store(&keys)
	data, err := json.Marshal(raw)
	if err != nil {
		return fmt.Errorf("write route keys: %w", err)
	}
	return WriteFile(k.file, data, true)
}

func parseKeys(raw map[string][]byte) (map[string]ed25519.PublicKey, error) {
	if len(raw) == 0 {
		return nil, errors.New("there is no route key")
	}
	keys := make(map[string]ed25519.PublicKey, len(raw))
	for id, key := range raw {
		if len(key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("route key %q has %d bytes", id, len(key))
		}
		keys[id] = key
	}
	return keys, nil
}

// WriteFile puts data into a file that others cannot read, all of it or none;
// durable ones survive a power cut.
func WriteFile(name string, data []byte, durable bool) error {
	tmp := name + ".new"
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // G304: the daemon's own state
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = file.Write(data)
	if err == nil && durable {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
