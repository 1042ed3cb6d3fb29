// Package sessiontest makes jobs for tests: directories as the plugin makes
// them, processes for anchors, and apps.
package sessiontest
