// Package request turns the options of srun, sbatch and salloc into a checked
// Request, or into one line that says what is wrong and what to write instead.
//
// It is the whole grammar of `--carme`: pure functions on strings, no file is
// opened and no policy is known here (internal/config decides what a site
// allows). Every string is taken to be hostile: it comes from any user, and
// from a REST client without srun's own checks.
package request
