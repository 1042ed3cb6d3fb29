module github.com/carme-hpc/carme

go 1.26.0

require (
	github.com/NVIDIA/go-nvml v0.13.0-1
	github.com/vishvananda/netns v0.0.5
	go.yaml.in/yaml/v3 v3.0.6
	golang.org/x/sys v0.49.0
)
