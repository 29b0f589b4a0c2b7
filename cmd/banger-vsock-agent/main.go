// Command banger-vsock-agent is banger's program in the guest: /init of the
// initramfs, then the agent. See package agent.
package main

import (
	"os"

	"git.thaloco.com/thaloco/banger/internal/guest/agent"
)

func main() { os.Exit(agent.Main(os.Args, os.Getpid())) }
