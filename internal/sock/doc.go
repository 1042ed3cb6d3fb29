// Package sock has what portal and agent do alike with the sockets below TLS.
package sock
