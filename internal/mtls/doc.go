// Package mtls is how Carme's daemons know each other: TLS 1.3 with certificates
// of Carme's own CA. Who a peer is stands in one URI of its certificate,
// carme://ROLE/NAME; neither the subject nor a DNS name counts.
//
// The role is checked in VerifyConnection, which crypto/tls calls on resumed
// connections too; VerifyPeerCertificate is not. Files may be replaced while
// connections are open: those stay, new ones use the new files.
package mtls
