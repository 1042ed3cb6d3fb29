package core

import (
	"fmt"
	"io"
	"os"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/policy"
	"github.com/carme-hpc/carme/spank/request"
)

// Exit statuses of "carme-host check" (spank/cshim/local.c).
const (
	checkOK     = 0
	checkFailed = 1
	checkDone   = 10 // a list or the help was printed: nothing to submit
)

// Check judges options before anything is queued. It runs as the user, on the
// host of srun or sbatch; the node decides again.
func Check(requestFile io.Reader, stdout, stderr io.Writer) int {
	rec := new(wire.Record)
	if _, err := rec.ReadFrom(requestFile); err != nil {
		fmt.Fprintf(stderr, "carme: read the options: %v\n", err)
		return checkFailed
	}
	status, err := check(rec, stdout)
	if err != nil {
		fmt.Fprintf(stderr, "carme: %s\n", oneLine(err))
		return checkFailed
	}
	return status
}

func check(rec *wire.Record, stdout io.Writer) (int, error) {
	in := request.InputFromRecord(rec)
	req, err := request.Parse(in)
	if err != nil {
		return checkFailed, err
	}
	if req.Action == request.ActionHelp {
		_, err := io.WriteString(stdout, request.Help())
		return checkDone, err
	}
	whoAmI := startLookUp(ownIDs())
	cfg, err := loadConfig(req.App)
	if err != nil {
		return checkFailed, err
	}
	p := policy.New(cfg)
	person, err := whoAmI()
	if err != nil {
		return checkFailed, err
	}
	if req.Action == request.ActionList {
		_, err := io.WriteString(stdout, request.List(p.Images(), person.Groups))
		return checkDone, err
	}
	if err := request.DetectSpacedImage(request.AfterCarme(rec.All("word")), p.ImageNames(person.Groups), request.IsSandbox); err != nil {
		return checkFailed, err
	}
	_, err = p.Resolve(req, policy.User{Name: person.Name, UID: person.UID, GID: person.GID, Groups: person.Groups})
	if err != nil {
		return checkFailed, in.Named(err)
	}
	return checkOK, nil
}

// ownIDs are those of this process; the kernel keeps ids in 32 bits.
func ownIDs() (uid, gid uint32, gids []uint32) {
	groups, err := os.Getgroups()
	if err != nil {
		groups = nil // a user without groups may use what needs none
	}
	for _, g := range groups {
		gids = append(gids, uint32(g)) //nolint:gosec // see above
	}
	return uint32(os.Getuid()), uint32(os.Getgid()), gids //nolint:gosec // see above
}
