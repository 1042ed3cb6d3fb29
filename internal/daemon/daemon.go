package daemon

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
)

// States for Notify (sd_notify(3)).
const (
	Ready     = daemon.SdNotifyReady
	Stopping  = daemon.SdNotifyStopping
	Reloading = daemon.SdNotifyReloading
)

// Notify tells systemd a state, or "STATUS=" and a line for systemctl status.
// Without systemd it does nothing.
func Notify(state string) {
	// A manager that cannot be told is no reason to stop serving.
	_, _ = daemon.SdNotify(false, state)
}

// Run calls run with a context that ends at SIGTERM or SIGINT, tells systemd
// that the daemon stops, and returns run's error. A second signal ends the
// process at once. It is run that sends Ready.
func Run(ctx context.Context, run func(ctx context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, func() {
		stop()
		Notify(Stopping)
	})
	noted, err := profile()
	if err != nil {
		return err
	}
	defer noted()
	return run(ctx)
}

// OnHangup calls reload at each SIGHUP until ctx ends. It returns when ctx does.
func OnHangup(ctx context.Context, reload func()) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			reload()
		}
	}
}
