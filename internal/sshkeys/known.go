package sshkeys

import (
	"bytes"
	"os"
	"strings"
)

// Known is a VM that OpenSSH is to know.
type Known struct {
	// ID and Name are the VM's; it is known as both, the name with Domain behind it.
	ID, Name string
	// Key is the public host key, as a line.
	Key string
}

// Domain is what stands behind the name of a VM where it is a host name.
const Domain = ".vm"

const knownHead = "# banger writes this file: the host keys of its VMs. What you add here is lost; put it into ~/.ssh/known_hosts.\n"

// KnownHosts is the file of known hosts of these VMs, in their order.
func KnownHosts(vms []Known) []byte {
	var b bytes.Buffer
	b.WriteString(knownHead)
	for _, vm := range vms {
		fields := strings.Fields(vm.Key)
		if len(fields) < 2 {
			continue
		}
		b.WriteString(vm.ID + "," + vm.Name + Domain + " " + fields[0] + " " + fields[1] + "\n")
	}
	return b.Bytes()
}

// SyncKnownHosts makes the file at path what KnownHosts says, where it is not already. One goroutine at a time.
func SyncKnownHosts(path string, vms []Known) error {
	want := KnownHosts(vms)
	info, err := os.Lstat(path)
	if err == nil && info.Mode().IsRegular() && info.Size() == int64(len(want)) {
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
			return nil
		}
	}
	if err == nil && info.IsDir() { // ssh may have been there before banger: an empty one goes
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	// Unlike WriteFile it does not wait for the disk: what a crash loses is written again.
	tmp := path + ".new"
	if err := os.WriteFile(tmp, want, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
