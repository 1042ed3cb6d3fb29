// Package terminal is the web terminal: shells of the job's user, in the job,
// shown by xterm.js. A shell lives on when the browser goes away.
package terminal
