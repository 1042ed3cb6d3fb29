module github.com/carme-hpc/carme

go 1.26.0

require (
	github.com/NVIDIA/go-nvml v0.13.0-1
	github.com/spf13/cobra v1.10.2
	github.com/vishvananda/netns v0.0.5
	go.yaml.in/yaml/v3 v3.0.6
	golang.org/x/sys v0.49.0
)

require (
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
)
