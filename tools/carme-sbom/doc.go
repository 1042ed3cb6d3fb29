// Command carme-sbom writes a bill of materials, CycloneDX 1.6 in JSON, of the Go
// modules that Carme's programs are made of: those of which a package is compiled
// into one of them, not all that go.mod names. npm does the same for what browsers
// get (make sbom).
package main
