// Package doctor looks at one node and says what keeps `srun --carme` from
// working there, and how to mend it. It changes nothing, except that Clean
// removes what ended jobs left behind.
package doctor
