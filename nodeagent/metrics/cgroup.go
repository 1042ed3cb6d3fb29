package metrics

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a job has used since its start, and its memory now.
type Usage struct {
	CPU    time.Duration
	Memory int64 // bytes that cannot be taken back
	Read   int64 // bytes
	Write  int64
	OOM    int64 // processes killed for memory
}

// ReadUsage reads a job's cgroup directories: one for v2, one of each
// controller for v1. CPU and I/O, whose controllers Slurm uses with some settings
// only, are else those of the job's processes. What a kernel does not tell is 0.
// It reports whether any of the directories is there.
func ReadUsage(dirs []string) (u Usage, ok bool) {
	found, cpu, io := "", false, false
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		found = dir
		if exists(filepath.Join(dir, "cgroup.controllers")) {
			u.addV2(dir)
			cpu, io = true, io || exists(filepath.Join(dir, "io.stat"))
		} else {
			u.addV1(dir)
			cpu, io = cpu || exists(filepath.Join(dir, "cpuacct.usage")), io || exists(filepath.Join(dir, blkio))
		}
	}
	if found != "" && (!cpu || !io) {
		of := ofProcesses(found)
		if !cpu {
			u.CPU = of.CPU
		}
		if !io {
			u.Read, u.Write = of.Read, of.Write
		}
	}
	return u, found != ""
}

// blkio is v1's file of bytes by device.
const blkio = "blkio.throttle.io_service_bytes_recursive"

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// addV2 reads the files of Documentation/admin-guide/cgroup-v2.rst.
func (u *Usage) addV2(dir string) {
	u.CPU += time.Duration(flat(dir, "cpu.stat")["usage_usec"]) * time.Microsecond
	// Pages of files that nobody uses now are there because nobody needed
	// the memory.
	u.Memory += max(0, number(dir, "memory.current")-flat(dir, "memory.stat")["inactive_file"])
	u.OOM += flat(dir, "memory.events")["oom_kill"]
	for _, line := range lines(dir, "io.stat") {
		for field := range strings.FieldsSeq(line) {
			key, value, _ := strings.Cut(field, "=")
			n, err := strconv.ParseInt(value, 10, 64)
			switch {
			case err != nil:
			case key == "rbytes":
				u.Read += n
			case key == "wbytes":
				u.Write += n
			}
		}
	}
}

// addV1 reads the files of Documentation/admin-guide/cgroup-v1: a directory has
// those of its controllers.
func (u *Usage) addV1(dir string) {
	u.CPU += time.Duration(number(dir, "cpuacct.usage"))
	u.Memory += max(0, number(dir, "memory.usage_in_bytes")-flat(dir, "memory.stat")["total_inactive_file"])
	if exists(filepath.Join(dir, "memory.oom_control")) {
		u.OOM += oomV1(dir)
	}
	for _, line := range lines(dir, blkio) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		n, err := strconv.ParseInt(fields[2], 10, 64)
		switch {
		case err != nil:
		case fields[1] == "Read":
			u.Read += n
		case fields[1] == "Write":
			u.Write += n
		}
	}
}

// oomV1 sums up over steps and tasks: v1 counts in each group by itself.
func oomV1(dir string) (kills int64) {
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			kills += flat(name, "memory.oom_control")["oom_kill"]
		}
		return nil // a step may end meanwhile
	})
	return kills
}

func lines(dir, name string) []string {
	data, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // G304: the plugin's notes name the kernel's directories
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func number(dir, name string) int64 {
	all := lines(dir, name)
	if len(all) != 1 {
		return 0
	}
	n, err := strconv.ParseInt(all[0], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// flat reads a file of "KEY NUMBER" lines.
func flat(dir, name string) map[string]int64 {
	all := map[string]int64{}
	for _, line := range lines(dir, name) {
		key, value, _ := strings.Cut(line, " ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			all[key] = n
		}
	}
	return all
}
