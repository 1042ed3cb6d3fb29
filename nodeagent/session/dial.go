package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Reasons why an app cannot be reached.
var (
	ErrNotListening = errors.New("the app does not listen")
	ErrNotTheUsers  = errors.New("the app's socket does not belong to the job's user")
)

// retryEvery is how often a connection is tried again when the app's queue is
// full.
const retryEvery = 20 * time.Millisecond

// Dial connects to the job's app.
//
// The user can change every name in the sessions directory at any time. So the
// socket is opened once, without following anything, and what was opened is
// looked at and connected to: the kernel resolves /proc/self/fd/N to the very
// same socket, whatever has its name by then. At last the kernel says who
// listens.
func (j *Job) Dial(ctx context.Context) (*net.UnixConn, error) {
	fd, err := j.openSocket()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	conn, err := connect(ctx, "/proc/self/fd/"+strconv.Itoa(fd))
	if short(err) {
		return nil, fmt.Errorf("connect to the app: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotListening, err)
	}
	uid, err := PeerUID(conn)
	if err == nil && uid != j.UID {
		err = ErrNotTheUsers
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// openSocket opens the app's socket (O_PATH) and checks what it is.
func (j *Job) openSocket() (int, error) {
	if j.sess == nil || j.Socket == "" {
		return -1, ErrNotListening
	}
	fd, err := openBelow(j.sess, j.Socket, unix.O_PATH)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, os.ErrClosed):
		return -1, ErrNotListening
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return -1, fmt.Errorf("%w: %w", ErrNotTheUsers, err)
	case err != nil:
		return -1, fmt.Errorf("open the app's socket: %w", err)
	}
	var st unix.Stat_t
	// With O_PATH a symbolic link is opened itself: it is not a socket.
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != j.UID {
		unix.Close(fd)
		return -1, ErrNotTheUsers
	}
	return fd, nil
}

func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	timer := time.NewTimer(retryEvery)
	defer timer.Stop()
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, err
		}
		timer.Reset(retryEvery)
		select {
		case <-ctx.Done():
			return nil, err
		case <-timer.C:
		}
	}
}

// PeerUID is who listened on, or connected, the other end (SO_PEERCRED).
func PeerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("ask for the peer's user: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, fmt.Errorf("ask for the peer's user: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("ask for the peer's user: %w", credErr)
	}
	return cred.Uid, nil
}
