package setup

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// resolveTime is how long the name server may take for all names.
const resolveTime = 5 * time.Second

// advise says what Carme never does by itself: to change Slurm's configuration
// and the firewall's.
func (s *setup) advise(ctx context.Context) {
	p := func(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }
	p("\nTo do by hand")
	if s.head() {
		s.adviseSlurm(p)
	}
	p("  Firewall:")
	if s.head() {
		p("    this host: let nodes and portals reach TCP %s (backend)", s.BackendPort())
	}
	if s.portal() {
		p("    this host: let browsers reach TCP %d (portal); DNS: %s and *.%s lead here", s.PublicPort, s.PortalHost, s.AppsDomain)
	}
	p("    nodes: let portals and the backend reach TCP 7444 (agent)")
	if s.portal() {
		s.adviseNames(ctx, p)
		p("  Browsers must trust %s/ca.pem, or put a certificate for %s and *.%s of a public CA into %s and %s.",
			webCADir, s.PortalHost, s.AppsDomain, webCertFile, webKeyFile)
	}
	if s.Role == RoleHead {
		p("  Copy %s to the portal's host and to all nodes.", caFile)
		p("  For a portal on another host: carme-backend token --role portal --name HOST, then there:")
		p("    carme setup --role portal --portal-host HOST --apps-domain DOMAIN --backend %s --ca FILE --join-token-file FILE", s.forOthers())
	}
	if s.head() {
		p("  On each node, with %s copied there: carme setup --role node --cluster %s --backend %s --ca FILE", caFile, s.Cluster, s.forOthers())
		p("  Then ask: carme health     # and on each node: carme doctor")
	}
}

// adviseNames says which names the name server does not know. That is no error:
// the portal can be set up before its names.
func (s *setup) adviseNames(ctx context.Context, p func(string, ...any)) {
	if s.Resolve == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	for _, name := range []struct{ asked, record string }{
		{s.PortalHost, s.PortalHost}, {"s-example." + s.AppsDomain, "*." + s.AppsDomain},
	} {
		if strings.HasSuffix(name.asked, ".localhost") {
			continue // browsers ask nobody (RFC 6761)
		}
		if err := s.Resolve(ctx, name.asked); err != nil {
			p("  DNS: %s does not resolve on this host (%v); add a record for %s that leads here.", name.asked, err, name.record)
		}
	}
}

func (s *setup) adviseSlurm(p func(string, ...any)) {
	p("  slurm.conf on the head node, then restart slurmctld:")
	p("    AuthAltTypes=auth/jwt")
	if s.SlurmKey == "" {
		p("    AuthAltParameters=jwks=%s", jwksFile)
	}
	p("    PrologFlags=Contain")
	p("    Prolog=/etc/slurm/carme_prolog     # contrib/slurm/prolog; on every node before the line is")
	p("    JobSubmitPlugins=lua               # contrib/slurm/job_submit.lua")
	p("    AccountingStoreFlags=job_comment   # lost submissions are found again")
	p("  slurmrestd must run as a user that is neither root nor SlurmUser, at %s; contrib/slurm/slurmrestd.service.d does that.", s.Slurmrestd)
}
