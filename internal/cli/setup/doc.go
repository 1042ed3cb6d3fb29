// Package setup is `carme setup`: it makes a host ready for Carme's daemons.
// Names, addresses and the directory come from the command line; it writes
// configuration, keys and certificates, and says what the admin must add to
// Slurm's and the firewall's configuration, which it never touches itself.
//
// It can be run again: what is there stays, and what would be written otherwise
// is put beside it.
package setup
