// Package reconcile keeps the node in the state that it should have: what a lost
// epilog left behind is removed, and Slurm's feature carme says whether the node
// can seal jobs off.
package reconcile
