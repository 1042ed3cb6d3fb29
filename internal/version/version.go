package version

import "runtime/debug"

// version is set when a release is built:
// -ldflags "-X github.com/carme-hpc/carme/internal/version.version=1.2.3".
var version string

// String returns the version, such as "1.2.3". A build that was not given one
// is "0.0.0-dev", with the commit where the Go tool recorded it.
func String() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return fallback
	}
	return fromSettings(info.Settings)
}

const fallback = "0.0.0-dev"

func fromSettings(settings []debug.BuildSetting) string {
	for _, s := range settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return fallback + "+" + s.Value[:12]
		}
	}
	return fallback
}
