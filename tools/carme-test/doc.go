// Carme-test runs the repository's checks as one plan of stages, says the plan
// first, shows progress, and ends with the table of the feature rows that are
// claimed and the tests that prove them.
//
// The rows stand in docs/features.md. Which tests prove a row is read from the
// tests' names alone: TestAttack_J5_J2_foreign_gpu_cannot_be_opened proves J5
// and J2. A claimed row for which nothing passed is an error, and so is a test
// that names a row which is not in the file.
//
// C tests are one check, unless they print lines of the Test Anything Protocol
// ("ok 1 - name", "not ok 2 - name", "ok 3 - name # SKIP reason"): then each
// line is one.
//
// The last line of standard output is "N passed, N failed, N skipped", also
// kept in test-output/summary, and the exit status is 0 only without failures.
package main
