package config

import (
	"strings"
	"testing"
)

func said(check func(*file)) string {
	l := &loader{}
	check(&file{loader: l})
	if err := l.problems.sorted(); err != nil {
		return err.Error()
	}
	return ""
}

func TestDevicesThatCatchAGPUAreRefused(t *testing.T) {
	for _, p := range []string{
		"/dev/nvidia0", "/dev/nvidia12", "/dev/nvidiactl", "/dev/nvidia-uvm*", "/dev/nv*", "/dev/*", "/dev/?fd", "/dev/kfd",
		"/dev/[n]vidia3", `/dev/n\vidia3`, "/dev/dri", "/dev/dri/card1", "/dev/*/card0", "/dev/d?i/renderD*", "/dev/nvidia-caps", "/dev/nvidia-caps/nvidia-cap1",
	} {
		if !strings.Contains(said(func(f *file) { f.checkDevice(p) }), "would show GPUs") {
			t.Errorf("%s is taken", p)
		}
	}
	for _, p := range []string{"/dev/infiniband/*", "/dev/fuse", "/dev/knem", "/dev/nvidia-fs*", "/dev/k[a-e]d", "/dev/drink"} {
		if problem := said(func(f *file) { f.checkDevice(p) }); problem != "" {
			t.Errorf("%s: %s", p, problem)
		}
	}
}

func TestSizesAreThoseOfTmpfs(t *testing.T) {
	for size, want := range map[string]string{
		"1": "", "50%": "", "100%": "", "8G": "", "9999999999999999T": "",
		"": "is no size", "0": "is no size", "0%": "is no size", "08G": "is no size", "G": "is no size", "%": "is no size", "8GB": "is no size",
		"8G%": "is no size", "1000%": "is no size", "-1": "is no size", "5 G": "is no size", "10000000000000000": "is no size", "99999999999999999": "is no size",
		"101%": "is more than 100%", "999%": "is more than 100%",
	} {
		if got := said(func(f *file) { f.checkSize(size) }); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q, not %q", size, got, want)
		}
	}
}

func TestNamesHaveTheirCharacters(t *testing.T) {
	long := strings.Repeat("a", 128)
	for name, is := range map[string]func(string) bool{"image": isImageName, "variable": isEnvName, "group": isGroupName} {
		good := map[string][]string{"image": {"a", "9.x+y_z-", long}, "variable": {"_", "A1_b"}, "group": {"a", "größe", long + long}}[name]
		bad := map[string][]string{
			"image": {"", ".a", "-a", "a b", "a/b", "ä", long + "a", "a\n"}, "variable": {"", "1A", "A-B", "A B", "Ä", "A*"},
			"group": {"", "a b", "a:b", "a,b", "a\t", long + long + "a"},
		}[name]
		for _, s := range good {
			if !is(s) {
				t.Errorf("%q is no name of a %s", s, name)
			}
		}
		for _, s := range bad {
			if is(s) {
				t.Errorf("%q is the name of a %s", s, name)
			}
		}
	}
}
