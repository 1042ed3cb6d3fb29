// Package ldapauth asks an LDAP directory who somebody is and whether a password
// is theirs (RFC 4511, RFC 4513). Nothing is sent before TLS is verified.
package ldapauth
