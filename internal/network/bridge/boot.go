package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/hostfile"

	"golang.org/x/sys/unix"
)

// Boot is what makes a bridge outlive a reboot, and the restart of a firewall that flushes all rules: a file that has the
// configuration, and a unit of systemd's that sets the host up by it.
type Boot struct {
	// Root is "/", but for tests.
	Root string
	// Program is the absolute path of banger. The unit runs it as "net setup --boot BRIDGE".
	Program string
	// Run is how systemctl is run.
	Run hostexec.Runner
}

// bootVersion is that of the file.
const bootVersion = 1

// bootConfig is the file.
type bootConfig struct {
	Version      int          `json:"version"`
	Bridge       string       `json:"bridge"`
	IP           netip.Addr   `json:"ip"`
	CIDR         netip.Prefix `json:"cidr"`
	Taps         int          `json:"taps"`
	OwnerUID     int          `json:"owner_uid"`
	AllowPrivate bool         `json:"allow_private_networks"`
}

// others are units whose start may bring rules that flush banger's, or that refuse what banger's let pass; what starts or restarts one of
// them starts banger's again.
var others = []string{"nftables.service", "docker.service", "ufw.service", "firewalld.service"}

const unitText = `# Written by "banger net setup"; "banger net teardown" removes it.
[Unit]
Description=The bridge %[1]s of banger's VMs
After=network-pre.target systemd-resolved.service%[3]s
PartOf=%[4]s
ReloadPropagatedFrom=%[4]s
ConditionPathExists=%[5]s

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart="%[2]s" net setup --boot %[1]s
ExecReload="%[2]s" net setup --boot %[1]s

[Install]
WantedBy=multi-user.target%[3]s
`

// ConfigFile is the file of a bridge.
func (b Boot) ConfigFile(bridge string) string {
	return filepath.Join(b.Root, "etc/banger/net-"+bridge+".json")
}

// UnitName is the unit of a bridge.
func UnitName(bridge string) string { return "banger-net-" + bridge + ".service" }

func (b Boot) systemDir() string { return filepath.Join(b.Root, "etc/systemd/system") }

// unit is the text of the unit.
func (b Boot) unit(bridge string) string {
	after, partOf := "", ""
	for _, o := range others {
		after += " " + o
		partOf += o + " "
	}
	return fmt.Sprintf(unitText, bridge, b.Program, after, partOf[:len(partOf)-1], b.ConfigFile(bridge))
}

// links are what enables the unit: in the directory of each that wants it.
func (b Boot) links(bridge string) []string {
	var out []string
	for _, by := range append([]string{"multi-user.target"}, others...) {
		out = append(out, filepath.Join(b.systemDir(), by+".wants", UnitName(bridge)))
	}
	return out
}

// Load reads the file of a bridge. One that is not there is a KindNotFound.
func (b Boot) Load(bridge string) (Config, error) {
	if err := checkName(bridge); err != nil {
		return Config{}, err
	}
	data, err := os.ReadFile(b.ConfigFile(bridge))
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, api.Errorf(api.KindNotFound, "bridge %q is not set up for the boot: %w", bridge, err).WithHint("sudo banger net setup")
	}
	var c bootConfig
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err == nil && (c.Version != bootVersion || c.Bridge != bridge) {
		err = fmt.Errorf("it is of version %d and for bridge %q", c.Version, c.Bridge)
	}
	if err != nil {
		return Config{}, api.Errorf(api.KindInvalid, "read %s: %w", b.ConfigFile(bridge), err).WithHint("write it anew: sudo banger net setup")
	}
	return Config{Name: c.Bridge, IP: c.IP, CIDR: c.CIDR, Taps: c.Taps, OwnerUID: c.OwnerUID, AllowPrivate: c.AllowPrivate}, nil
}

// Setup is Setup, and has it done at each boot.
func (b Boot) Setup(ctx context.Context, cfg Config) (done []string, err error) {
	return (&setup{cfg: cfg, boot: &b}).setUp(ctx)
}

// Teardown is Teardown, of what is done at boot as well. Where nothing was there it returns no lines.
func (b Boot) Teardown(ctx context.Context, bridge string, force bool) (done []string, err error) {
	s := &setup{cfg: Config{Name: bridge}, boot: &b}
	if err := errors.Join(checkName(bridge), may(s.run)); err != nil {
		return nil, err
	}
	return s.tearDown(ctx, force)
}

// forBoot has the host set up at each boot.
func (s *setup) forBoot(ctx context.Context) error {
	if s.boot == nil {
		return nil
	}
	b, name := *s.boot, s.cfg.Name
	data, err := json.MarshalIndent(bootConfig{bootVersion, name, s.cfg.IP, s.cfg.CIDR, s.cfg.Taps, s.cfg.OwnerUID, s.cfg.AllowPrivate}, "", "  ")
	if err != nil {
		return err
	}
	file, unit := b.ConfigFile(name), filepath.Join(b.systemDir(), UnitName(name))
	if b.current(file, append(data, '\n'), unit, name) {
		return nil
	}
	before, err := b.remember(file, unit)
	if err != nil {
		return fmt.Errorf("have the bridge made at boot: %w", err)
	}
	s.undo = append(s.undo, func(ctx context.Context) error { return s.bootAsBefore(ctx, before) })
	err = errors.Join(replaceFile(file, append(data, '\n')), replaceFile(unit, []byte(b.unit(name))))
	for _, l := range b.links(name) {
		if err == nil {
			err = replaceLink(unit, l)
		}
	}
	if err != nil {
		return fmt.Errorf("have the bridge made at boot: %w", err)
	}
	if !b.systemdRuns() {
		s.say("%s is in place for systemd, which does not run here", UnitName(name))
		return nil
	}
	// Started as well: only what has started is restarted together with a firewall.
	for _, args := range [][]string{{"daemon-reload"}, {"restart", UnitName(name)}} {
		if err := b.systemctl(ctx, args...); err != nil {
			return api.Errorf(api.KindUnavailable, "have the bridge made at boot: %w", err).
				WithHint("journalctl -u %s says more; without the unit: sudo banger net setup --no-boot", UnitName(name))
		}
	}
	s.say("%s sets it up at each boot", UnitName(name))
	if path := b.exposed(); path != "" {
		s.say("%s", exposedHint(path))
	}
	return nil
}

// remember reads files that are about to be replaced: nil for one that is not there.
func (b Boot) remember(paths ...string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		out[path] = data
	}
	return out, nil
}

// bootAsBefore takes back what forBoot did. Where there was nothing, nothing is left; an older configuration is in force again.
func (s *setup) bootAsBefore(ctx context.Context, before map[string][]byte) error {
	b, name := *s.boot, s.cfg.Name
	unit := filepath.Join(b.systemDir(), UnitName(name))
	if before[unit] == nil || before[b.ConfigFile(name)] == nil { // one without the other did nothing
		return (&setup{cfg: s.cfg, boot: s.boot}).notForBoot(ctx)
	}
	var err error
	for path, data := range before {
		err = errors.Join(err, replaceFile(path, data))
	}
	if b.systemdRuns() {
		err = errors.Join(err, b.systemctl(ctx, "daemon-reload"))
	}
	return err
}

// exposed is the program, or the directory on the way to it, that others than root may write; empty for none. The unit runs it as root.
func (b Boot) exposed() string {
	for path := b.Program; ; path = filepath.Dir(path) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
			byGroup := st.Mode&0o020 != 0 && st.Gid != 0
			sticky := path != b.Program && st.Mode&unix.S_ISVTX != 0 // what is root's in there stays
			if st.Uid != 0 || (byGroup || st.Mode&0o002 != 0) && !sticky {
				return path
			}
		}
		if path == filepath.Dir(path) {
			return ""
		}
	}
}

func exposedHint(path string) string {
	return fmt.Sprintf("%s may be written by others than root, who runs it at boot: install banger where only root writes (sudo make install), then set up again", path)
}

// current tells whether all is there as it should be.
func (b Boot) current(file string, data []byte, unit, bridge string) bool {
	is1, err1 := os.ReadFile(file)
	is2, err2 := os.ReadFile(unit)
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(is1, data) || string(is2) != b.unit(bridge) {
		return false
	}
	for _, l := range b.links(bridge) {
		if to, err := os.Readlink(l); err != nil || to != unit {
			return false
		}
	}
	return true
}

// notForBoot removes what forBoot made.
func (s *setup) notForBoot(ctx context.Context) error {
	if s.boot == nil {
		return nil
	}
	b, name := *s.boot, s.cfg.Name
	unit := filepath.Join(b.systemDir(), UnitName(name))
	var err error
	removed := false
	for _, path := range append(b.links(name), unit, b.ConfigFile(name)) {
		rerr := os.Remove(path)
		removed = removed || rerr == nil
		if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	// Directories that are empty now were made for this, or are of no use.
	for _, l := range b.links(name)[1:] {
		_ = os.Remove(filepath.Dir(l))
	}
	_ = os.Remove(filepath.Dir(b.ConfigFile(name)))
	if !removed {
		return err
	}
	if b.systemdRuns() {
		err = errors.Join(err, b.systemctl(ctx, "daemon-reload"))
		// The unit goes on as one without a file; there is nothing to stop of it, and stopping says so where it has gone.
		_ = b.systemctl(ctx, "stop", UnitName(name))
		_ = b.systemctl(ctx, "reset-failed", UnitName(name))
	}
	s.say("removed %s", UnitName(name))
	return err
}

// systemdRuns tells whether this system was booted with systemd (sd_booted(3)).
func (b Boot) systemdRuns() bool { return exists(filepath.Join(b.Root, "run/systemd/system")) }

func (b Boot) systemctl(ctx context.Context, args ...string) error {
	return b.Run.Run(ctx, hostexec.Cmd{Argv: append([]string{"systemctl"}, args...)})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// replaceFile writes a file that all may read, whole or not at all.
func replaceFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".new"
	err := writeFile(tmp, data)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp) // it may not be there
		return err
	}
	return hostfile.SyncDir(filepath.Dir(path))
}

// writeFile writes a new file that is on the disk when it returns.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()) // whatever the umask
}

// replaceLink makes a symbolic link.
func replaceLink(to, path string) error {
	if is, err := os.Readlink(path); err == nil && is == to {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(to, path)
}
