// Command bangerd is banger's daemon, and, as `bangerd vm-supervise`, the
// supervisor of one VM.
package main

import (
	"os"

	"git.thaloco.com/thaloco/banger/internal/daemon"
)

func main() { os.Exit(daemon.Main(os.Args[1:])) }
