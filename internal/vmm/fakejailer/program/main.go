// Command program is the fake jailer, for tests that need one as a program.
package main

import (
	"os"

	"git.thaloco.com/thaloco/banger/internal/vmm/fakejailer"
)

func main() { os.Exit(fakejailer.Main(os.Args[1:])) }
