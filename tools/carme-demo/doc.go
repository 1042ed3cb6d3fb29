// Carme-demo takes a bare Debian machine to a sealed job on the screen: it says
// what it finds and what it would install, brings the testbed up, and shows, on
// one node, what a user sees and reaches without Carme and with it. Every
// command is printed as it would be typed, with its real output, and each
// output is checked: a demo that shows something else fails.
//
// Step N of a failed run is where the next may start: make demo FROM=N.
package main
