package backend

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/portal/backend/problem"
)

// catalogueFor is how long a reading of images and apps is good.
const catalogueFor = 10 * time.Second

// catalogue is what the site offers: images, apps and the rules for them, read
// anew after a while. It may be used by several goroutines.
type catalogue struct {
	src config.Source
	log *slog.Logger
	now func() time.Time

	mu  sync.Mutex
	at  time.Time
	cfg *config.Config
	err error  // of the rules and images; nothing is offered then
	bad string // all that is wrong with any file; "" is well
}

// get returns the configuration. An app whose description has a mistake is left
// out, as on the nodes; a mistake in the rules or in an image refuses everything,
// as there, since nobody can say what the rules were meant to forbid. The error is
// for the user; the log and health say what is wrong where.
func (c *catalogue) get() (*config.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	if c.err != nil {
		return nil, problem.Misconfigured("The site's configuration has a mistake, and nothing can be started until it is mended. Tell your administrators; their log names the file and the line.")
	}
	return c.cfg, nil
}

// problems is what is wrong with the files, for administrators; "" is well.
func (c *catalogue) problems() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	return c.bad
}

func (c *catalogue) refresh() {
	if !c.at.IsZero() && c.now().Sub(c.at) < catalogueFor {
		return
	}
	cfg, err := readCatalogue(c.src)
	bad := strings.Join(config.Problems(err), "; ")
	if bad != c.bad && bad != "" {
		c.log.Error("the site's configuration has mistakes", "err", bad)
	}
	if bad == "" && c.bad != "" {
		c.log.Info("the site's configuration is well again")
	}
	c.at, c.cfg, c.bad, c.err = c.now(), cfg, bad, nil
	if cfg == nil {
		c.err = err
	}
}

// readCatalogue returns what can be used, nil if nothing can, and everything that
// is wrong.
func readCatalogue(src config.Source) (*config.Config, error) {
	cfg, err := config.Load(src)
	apps, appsErr := config.LoadApps(src)
	if err != nil {
		return nil, errors.Join(err, appsErr)
	}
	cfg.Apps = apps
	return cfg, appsErr
}
