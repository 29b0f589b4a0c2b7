// Package buildinfo knows which build of banger this is.
package buildinfo

// Version is set by the Makefile with -ldflags -X; "dev" in a plain go build.
var Version = "dev"
