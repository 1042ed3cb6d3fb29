// Package policy decides how much of the cluster a user may take, by role.
package policy
