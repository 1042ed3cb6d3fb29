package metrics

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
// controller for v1. What a kernel does not tell is 0. It reports whether any of
// them is there.
func ReadUsage(dirs []string) (u Usage, ok bool) { return readUsage(dirs, "/proc") }

func readUsage(dirs []string, proc string) (u Usage, ok bool) {
	cpu, blocks := false, false
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		ok = true
		cpu = cpu || exists(filepath.Join(dir, "cpuacct.usage")) || exists(filepath.Join(dir, "cpu.stat"))
		blocks = blocks || exists(filepath.Join(dir, "blkio.throttle.io_service_bytes_recursive")) || exists(filepath.Join(dir, "io.stat"))
		if exists(filepath.Join(dir, "cgroup.controllers")) {
			u.addV2(dir)
		} else {
			u.addV1(dir)
		}
	}
	// Slurm makes a job groups in the hierarchies of v1 that it limits, which
	// those that count processor time and blocks need not be among.
	if ok && (!cpu || !blocks) {
		u.addProcesses(dirs, proc, !cpu, !blocks)
	}
	return u, ok
}

// tick is the unit of /proc/PID/stat, USER_HZ, which is 100 on every machine of
// Linux with Go.
const tick = 10 * time.Millisecond

// addProcesses adds up what the processes in the first of the directories that is
// there have used, with those of their children that have ended (proc(5)).
func (u *Usage) addProcesses(dirs []string, proc string, cpu, blocks bool) {
	at := slices.IndexFunc(dirs, exists)
	if at < 0 {
		return
	}
	_ = filepath.WalkDir(dirs[at], func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a step may end meanwhile
		}
		for _, pid := range lines(name, "cgroup.procs") {
			dir := filepath.Join(proc, filepath.Base(pid))
			if cpu {
				u.CPU += cpuOf(dir)
			}
			if blocks {
				u.Read += counter(dir, "read_bytes")
				u.Write += counter(dir, "write_bytes")
			}
		}
		return nil
	})
}

// cpuOf is a process's time in user and kernel mode, its own and that of the
// children it has waited for.
func cpuOf(dir string) time.Duration {
	text := strings.Join(lines(dir, "stat"), " ")
	// The second field is a name in brackets that may hold anything.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const utime, cstime = 11, 14 // after the name; 14 to 17 in the manual
	if len(fields) <= cstime {
		return 0 // it has ended
	}
	var ticks int64
	for _, field := range fields[utime : cstime+1] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err == nil {
			ticks += n
		}
	}
	return time.Duration(ticks) * tick
}

// counter is a line of /proc/PID/io.
func counter(dir, name string) int64 {
	for _, line := range lines(dir, "io") {
		if text, ok := strings.CutPrefix(line, name+": "); ok {
			n, _ := strconv.ParseInt(text, 10, 64) // the kernel's
			return n
		}
	}
	return 0
}

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
	for _, line := range lines(dir, "blkio.throttle.io_service_bytes_recursive") {
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
