package house

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// settings reads a unit file: the last value of each name, an empty one too.
func settings(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			all[name] = value
		}
	}
	return all
}

// Whether the daemons work in this sandbox, a real systemd says
// (integration/scenario_setup_test.go).
func TestUnitsOfAllDaemonsAreHardened(t *testing.T) {
	files, err := filepath.Glob(root + "/packaging/systemd/*.service")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d units (%v)", len(files), err)
	}
	everywhere := map[string]string{
		"Type": "notify", "Restart": "always", "StartLimitIntervalSec": "0", "NoNewPrivileges": "yes", "UMask": "0077", "StateDirectoryMode": "0700",
		"ProtectKernelTunables": "yes", "ProtectKernelModules": "yes", "ProtectKernelLogs": "yes", "ProtectControlGroups": "yes", "ProtectClock": "yes",
		"ProtectHostname": "yes", "RestrictNamespaces": "yes", "RestrictRealtime": "yes", "LockPersonality": "yes",
		"MemoryDenyWriteExecute": "yes", "SystemCallArchitectures": "native", "SystemCallErrorNumber": "EPERM",
	}
	exceptAgent := map[string]string{
		"CapabilityBoundingSet": "", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes", "ProtectProc": "invisible",
		"RemoveIPC": "yes", "RestrictSUIDSGID": "yes", "SystemCallFilter": "~@privileged @resources",
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".service")
		got := settings(t, file)
		wanted := []map[string]string{everywhere}
		if name == "carme-agent" {
			// systemd answers openat2 with ENOSYS then, and no app is reached.
			if is, there := got["RestrictSUIDSGID"]; there {
				t.Errorf("%s: RestrictSUIDSGID is %q; it takes openat2 away", name, is)
			}
		} else {
			wanted = append(wanted, exceptAgent, map[string]string{"User": name, "Group": name})
		}
		for _, want := range wanted {
			for key, value := range want {
				if is, there := got[key]; !there || is != value {
					t.Errorf("%s: %s is %q, not %q", name, key, is, value)
				}
			}
		}
	}
}
