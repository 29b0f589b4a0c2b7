package agent

import (
	"fmt"
	"os"
	"path"
)

const (
	runUnits = "/run/systemd"
	// Named pipes systemd makes when it has reached the mark: the agent waits for their appearance. A service would
	// do as well, at the price of starting a program twice in every boot.
	readyPipe = runDir + "/ready"
	fullPipe  = runDir + "/full"
)

// unitFile is a file below runUnits; one with target is a symbolic link.
type unitFile struct{ path, content, target string }

// markUnits tell the agent of a target that was reached.
func markUnits(name, pipe, target string) []unitFile {
	socket := "system/banger-" + name + ".socket"
	return []unitFile{
		{path: socket, content: fmt.Sprintf(`[Unit]
Description=Tells banger that %[1]s was reached
DefaultDependencies=no
After=%[1]s

[Socket]
ListenFIFO=%[2]s
SocketMode=0600
RemoveOnStop=no
`, target, pipe)},
		// A socket needs a service to exist; nothing ever writes to the pipe.
		{path: "system/banger-" + name + ".service", content: fmt.Sprintf(`[Unit]
Description=Never started, belongs to banger-%s.socket
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/bin/true
`, name)},
		{path: "system/" + target + ".wants/banger-" + name + ".socket", target: "../banger-" + name + ".socket"},
	}
}

// units are what the agent adds to systemd for this boot. Without udev the serial getty would wait for
// its device, and the console is banger's log.
func units() []unitFile {
	out := markUnits("ready", readyPipe, "basic.target")
	out = append(out, markUnits("full", fullPipe, "default.target")...)
	for _, masked := range []string{
		"serial-getty@ttyS0.service", "serial-getty@hvc0.service",
		"systemd-remount-fs.service", // an image's fstab knows nothing of this root
	} {
		out = append(out, unitFile{path: "system.control/" + masked, target: "/dev/null"})
	}
	return out
}

// writeUnits writes units below dir.
func writeUnits(dir string, all []unitFile) error {
	for _, u := range all {
		p := path.Join(dir, u.path)
		if err := os.MkdirAll(path.Dir(p), 0o755); err != nil {
			return err
		}
		var err error
		if u.target != "" {
			err = os.Symlink(u.target, p)
		} else {
			err = os.WriteFile(p, []byte(u.content), 0o644)
		}
		if err != nil {
			return fmt.Errorf("write unit: %w", err)
		}
	}
	return nil
}
