package doctor

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// The file in which it is noted that jobs that were submitted with --carme have
// ended on this node, as spank/cshim/common/ended.c does it.
const (
	endedFile   = "run/carme/ended"
	endedPlaces = 4096
	endedSize   = 8 // job and time, four bytes each
)

// noteEnd notes that a job has ended here, before what tells of it is removed. Its
// extern step may have been killed, and the job live on: its steps would be plain.
func (d Doctor) noteEnd(id string) error {
	if !d.exists(path.Join(jobsDir, id, "asked")) {
		return nil
	}
	job, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return fmt.Errorf("note the end of job %s: %w", id, err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return fmt.Errorf("read the time since boot: %w", err)
	}
	f, err := os.OpenFile(d.path(endedFile), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("note the end of job %s: %w", id, err)
	}
	note := binary.NativeEndian.AppendUint32(nil, uint32(job))
	note = binary.NativeEndian.AppendUint32(note, uint32(now.Sec)) //nolint:gosec // as in C
	_, err = f.WriteAt(note, int64(job%endedPlaces)*endedSize)
	if shut := f.Close(); err == nil {
		err = shut
	}
	if err != nil {
		return fmt.Errorf("note the end of job %s: %w", id, err)
	}
	return nil
}
