// Package problem is how the backend says no: a status, a word for programs and
// a sentence for a person.
package problem
