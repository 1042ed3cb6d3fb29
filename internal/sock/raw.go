//go:build !race

package sock

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// None of these waits, so the scheduler need not know of them: it would prepare
// for a thread that is away, and wake the one that looks after such threads, for
// each of thousands a second.

func read(fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p))) //nolint:gosec // G103: no other way to one that does not wait
	return int(n), errno
}

func write(fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p))) //nolint:gosec // G103: no other way to one that does not wait
	return int(n), errno
}

func peek(fd uintptr) syscall.Errno {
	var one [1]byte
	_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&one)), uintptr(len(one)), unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0) //nolint:gosec // G103: no other way to one that does not wait
	return errno
}
