package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// drivesDeadline is how long the drives may take to appear after their driver was loaded.
const drivesDeadline = 20 * time.Second

// block is a virtio disk as sysfs shows it.
type block struct{ name, serial string }

// drives are device files. Modules is empty where the VM has no such drive.
type drives struct{ Base, Data, Modules string }

// pickDrives tells which disk is which: by serial where any carries one of ours, else by their
// order. It reports false while base or data is missing.
func pickDrives(disks []block) (drives, bool) {
	slices.SortFunc(disks, func(a, b block) int { // vdb before vdaa
		if len(a.name) != len(b.name) {
			return len(a.name) - len(b.name)
		}
		return strings.Compare(a.name, b.name)
	})
	byID := map[string]string{}
	for _, d := range disks {
		switch d.serial {
		case wire.DriveBase, wire.DriveData, wire.DriveModules:
			if byID[d.serial] == "" {
				byID[d.serial] = "/dev/" + d.name
			}
		}
	}
	if len(byID) == 0 {
		for i, id := range []string{wire.DriveBase, wire.DriveData, wire.DriveModules} {
			if i < len(disks) {
				byID[id] = "/dev/" + disks[i].name
			}
		}
	}
	d := drives{Base: byID[wire.DriveBase], Data: byID[wire.DriveData], Modules: byID[wire.DriveModules]}
	return d, d.Base != "" && d.Data != ""
}

// findDrives waits for the drives under sys, usually /sys. Their driver finds them while it is loaded,
// so that the first look is nearly always enough.
func findDrives(sys string) (drives, error) {
	for end := time.Now().Add(drivesDeadline); ; <-time.After(time.Millisecond) {
		disks, err := listDisks(sys)
		if err != nil {
			return drives{}, err
		}
		if d, ok := pickDrives(disks); ok {
			return d, nil
		}
		if time.Now().After(end) {
			return drives{}, fmt.Errorf("find the base and the data drive: only %v after %v", disks, drivesDeadline)
		}
	}
}

func listDisks(sys string) ([]block, error) {
	paths, err := filepath.Glob(filepath.Join(sys, "block/vd*"))
	if err != nil {
		return nil, err
	}
	var out []block
	for _, p := range paths {
		serial, _ := os.ReadFile(filepath.Join(p, "serial")) // not every virtio disk has one
		out = append(out, block{filepath.Base(p), strings.TrimSpace(string(serial))})
	}
	return out, nil
}
