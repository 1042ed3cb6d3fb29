// Package logx makes the log of Carme's daemons: JSON lines by log/slog, which
// journald keeps.
package logx
