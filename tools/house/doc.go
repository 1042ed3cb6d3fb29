// Package house holds the rules of this repository that no linter knows, as
// tests: who may import whom, how long a main is, and that no shell is started.
package house
