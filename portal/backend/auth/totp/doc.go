// Package totp makes, seals and checks the secrets of one-time codes (RFC 6238:
// SHA-1, six digits, 30 seconds, as every app has it).
package totp
