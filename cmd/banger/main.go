// Command banger is banger's command line: see internal/cli.
package main

import (
	"os"

	"git.thaloco.com/thaloco/banger/internal/cli"
)

func main() { os.Exit(cli.Main()) }
