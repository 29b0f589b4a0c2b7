// Fakeqemu is package fakeqemu as a program, to be configured as qemu_bin in tests.
package main

import (
	"os"

	"git.thaloco.com/thaloco/banger/internal/vmm/fakeqemu"
)

func main() { os.Exit(fakeqemu.Main(os.Args[1:])) }
