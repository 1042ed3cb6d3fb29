// Package daemon is what Carme's daemons share of being one: signals, and what
// systemd wants to know (sd_notify(3)).
package daemon
