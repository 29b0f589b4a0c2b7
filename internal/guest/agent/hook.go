package agent

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// hookMain is the program systemd makes PID 1 at the very end, in the root that prepareRun made, with the
// verb as its argument. All file systems but those in use by the agent are gone by now.
func hookMain(verb string) int {
	if !validVerb(verb) { // kexec: there is no other kernel
		verb = verbReboot
	}
	endFrom(verb)
	return 1
}

// endFrom ends the machine from PID 1: through the agent, which can tell the host, or else alone.
// It does not return.
func endFrom(verb string) {
	ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
	err := tellAgent(ctx, controlSocket, verb)
	cancel()
	fmt.Fprintln(os.Stderr, "banger:", err)
	data, err := openData()
	if err != nil {
		fmt.Fprintln(os.Stderr, "banger:", err)
	}
	quiet(data)
	if verb == verbReboot {
		err = restartMachine()
	} else {
		err = powerOffMachine()
	}
	for {
		fmt.Fprintln(os.Stderr, "banger:", err)
		<-time.After(time.Minute)
	}
}

// openData mounts the data drive once more, for its superblock.
func openData() (*os.File, error) {
	disks, err := listDisks("/sys")
	if err != nil {
		return nil, err
	}
	d, ok := pickDrives(disks)
	if !ok {
		return nil, fmt.Errorf("find the data drive: only %v", disks)
	}
	dir := "/data"
	if _, err := os.Stat(dir); err != nil {
		dir = runDir
	}
	if err := unix.Mount(d.Data, dir, "ext4", 0, ""); err != nil {
		return nil, fmt.Errorf("mount %q: %w", d.Data, err)
	}
	return os.Open(dir)
}
