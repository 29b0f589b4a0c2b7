// Fakefc is package fakefc as a program, to be configured as firecracker_bin in tests.
package main

import (
	"os"

	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
)

func main() { os.Exit(fakefc.Main(os.Args[1:])) }
