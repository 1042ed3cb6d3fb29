// Package report tells the backend what the node's jobs do: at once when one
// starts, ends or becomes ready, and regularly what they use. What could not be
// told is kept, also over a restart of the agent, and told later.
package report
