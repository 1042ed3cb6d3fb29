// Package watch tells of changes in directories by inotify(7).
package watch
