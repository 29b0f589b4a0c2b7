// Package deb is a client of a Debian archive: it chooses a mirror, verifies what
// the mirror serves, finds packages, downloads and unpacks them. It runs no
// program and needs no Debian host.
//
// Trust goes one way: a signature by a key of the keyring over InRelease → the SHA-256 of
// the package index → the SHA-256 of a package. A mirror and the network to it are not trusted: an older
// InRelease than one seen before is refused (the dates are kept in the cache directory), an
// InRelease past its Valid-Until is, and so is one of another suite, since the same keys sign all of them.
//
// mirror.go chooses the mirror, release.go and index.go read InRelease and
// Packages, control.go and version.go know Debian's formats, fetch.go is
// HTTP and download.go the cache, ar.go and unpack.go open packages, keyring.go holds the keys.
package deb
