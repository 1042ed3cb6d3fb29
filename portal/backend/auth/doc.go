// Package auth knows who somebody is: password by the directory, second factor,
// login sessions, and how often one may try. What it decides is in the database
// before it is answered, so neither a restart nor guesses at once go around it.
package auth
