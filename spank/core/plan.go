package core

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/spank/policy"
	"github.com/carme-hpc/carme/spank/request"
)

// plan is what the policy made of a request, with what the node's
// configuration adds to it.
type plan struct {
	policy.Resolved
	Site config.Spank
}

// imageKey names the container among those of the job; empty without one.
func (p *plan) imageKey() string {
	if p.Image == nil {
		return ""
	}
	return p.Image.Path
}

// loadConfig reads the node's configuration, with the app descriptions if there
// is an app; only root's files count. A mistake in another app's description is
// nothing to this job.
func loadConfig(app string) (*config.Config, error) {
	src := config.Source{Root: "/"}
	cfg, err := config.Load(src)
	if err == nil && app != "" {
		if cfg.Apps, err = config.LoadApps(src); cfg.App(app) != nil {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the configuration of this node is broken: %w; tell the admin", err)
	}
	return cfg, nil
}

// decide lets the policy judge the request.
func (j *job) decide() error {
	cfg, err := loadConfig(j.request.App)
	if err != nil {
		return err
	}
	if j.person, err = j.whose(); err != nil {
		return err
	}
	j.policy = policy.New(cfg)
	j.owner = policy.User{Name: j.person.Name, UID: j.person.UID, GID: j.person.GID, Groups: j.person.Groups}
	resolved, err := j.policy.Resolve(j.request, j.owner)
	if err != nil {
		return err
	}
	j.plan = plan{Resolved: resolved, Site: cfg.Spank}
	j.showSubmitDir()
	return nil
}

// showSubmitDir makes the directory of submission visible in an image under its
// own name, as Apptainer does with its working directory. What lies in the home
// directory is shown or hidden with it. It is opened as the user; one that
// cannot be opened or would cover a part of the system is left out, and the task
// starts in /.
func (j *job) showSubmitDir() {
	dir := j.submitDir
	if j.plan.Image == nil || !strings.HasPrefix(dir, "/") || strings.ContainsAny(dir, ":,") ||
		filepath.Clean(dir) != dir || inside(dir, j.person.Home) ||
		request.CheckSource(dir) != nil || request.CheckTarget(dir) != nil {
		return
	}
	for _, b := range j.plan.Binds {
		if inside(dir, b.Dst) {
			return
		}
	}
	j.plan.Binds = append(j.plan.Binds, policy.Bind{Bind: request.Bind{Src: dir, Dst: dir}})
	j.submitBind = len(j.plan.Binds) - 1
}

// inside reports whether a clean path is dir or below it.
func inside(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// mayBind judges where the source of a user's bind really lies, links
// followed, and whether it must be read-only.
func (j *job) mayBind(actual string, b policy.Bind) (readOnly bool, err error) {
	if !b.Own {
		return b.ReadOnly, nil
	}
	allowed, readOnly := j.policy.AllowsSource(actual, b.Dst, j.owner)
	if !allowed {
		return false, fmt.Errorf("--carme-bind: %s leads to %s, which may not be bound here; choose another path", b.Src, actual)
	}
	return readOnly || b.ReadOnly, nil
}

// noImageError says that a path leads to something else than an image.
type noImageError string

func (e noImageError) Error() string { return string(e) }

// imageDirs are those of which the root of every image has one: Apptainer's own, and
// what the smallest root file systems have.
var imageDirs = []string{".singularity.d", "usr", "etc"}

// rootFS checks that a directory can be the root of an image; people name the one in
// which the image lies.
func rootFS(fd int) error {
	for _, name := range imageDirs {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return noImageError("it is a directory without the root file system of an image (" + strings.Join(imageDirs, ", ") + ")")
}

// Where the magic numbers of what Apptainer runs as a file stand, in bytes.
const (
	sifMagicAt = 32 // after the launch script (SIF specification, global header)
	extMagicAt = 1024 + 56
)

// imageFile checks that a file is one of the formats that the runtime knows (SIF,
// squashfs, ext3); it would name a path of ours.
func imageFile(fd int) error {
	file, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // nothing was written
	head, err := io.ReadAll(io.LimitReader(file, extMagicAt+2))
	if err != nil {
		return err
	}
	at := func(offset int, magic string) bool {
		return len(head) >= offset+len(magic) && string(head[offset:offset+len(magic)]) == magic
	}
	if at(sifMagicAt, "SIF_MAGIC") || at(0, "hsqs") || at(extMagicAt, "\x53\xef") {
		return nil
	}
	return noImageError("it is a file of another kind, or a part of one")
}

// openImage opens an image and tells a sandbox, which is a directory, from a SIF
// file. As the user: root may not even look at it.
func openImage(path string) (fd int, format string, err error) {
	fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, "", err
	}
	var mode uint32
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		format, mode = config.FormatSandbox, unix.X_OK
	case unix.S_IFREG:
		format, mode = config.FormatSIF, unix.R_OK
	default:
		return -1, "", noImageError("it is neither a file nor a directory")
	}
	// Apptainer would say so too, but name a path of ours.
	if err := unix.Faccessat2(fd, "", mode, unix.AT_EMPTY_PATH); err != nil {
		return -1, "", err
	}
	look := imageFile
	if format == config.FormatSandbox {
		look = rootFS
	}
	if err := look(fd); err != nil {
		return -1, "", err
	}
	return fd, format, nil
}

// checkImage opens the image, as the user, and looks at it: where the links of a
// path that a user named lead must be allowed too. What was looked at is what is
// started, whatever stands at that path by then, so it is kept as a mount.
func (j *job) checkImage(mnt int) error {
	img := j.plan.Image
	if img == nil {
		return nil
	}
	fd, format := -1, ""
	err := asUser(mnt, j.person, func() (err error) {
		fd, format, err = openImage(img.Path)
		return err
	})
	if _, other := errors.AsType[noImageError](err); other {
		return fmt.Errorf("%s is no image: %w; an image is a SIF file, or the directory that apptainer build --sandbox makes; --carme=list shows the site's", img.Path, err)
	}
	if err != nil {
		return fmt.Errorf("open the image %s as you: %w; check the path and its permissions", img.Path, err)
	}
	defer unix.Close(fd)
	actual, err := pathOf(fd)
	if err != nil {
		return fmt.Errorf("find the image %s: %w", img.Path, err)
	}
	if img.Name == "" && !j.policy.AllowsImage(actual, j.owner) {
		return fmt.Errorf("the image %s leads to %s, which may not be used here; choose another one", request.Quote(img.Path), actual)
	}
	if img.Format == config.FormatAuto {
		img.Format = format
	}
	j.imageView = imageFileView
	if format == config.FormatSandbox {
		j.imageView = imageDirView
	}
	if j.image, err = cloneTree(fd); err != nil {
		return fmt.Errorf("take hold of the image %s: %w", img.Path, err)
	}
	return nil
}
