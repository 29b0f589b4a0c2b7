package doctor

// pkg is something to install.
type pkg string

const (
	pkgQEMU pkg = "qemu"
	pkgGit  pkg = "git"
	pkgSSH  pkg = "ssh"
)

// manager is how a distribution installs packages, and what it calls them.
type manager struct {
	command string
	names   map[pkg]string
}

// managerOf knows the distributions by ID of /etc/os-release.
func managerOf(id string) (manager, bool) {
	switch id {
	case "debian", "ubuntu":
		return manager{"sudo apt-get install ", map[pkg]string{pkgQEMU: "qemu-system-x86", pkgGit: "git", pkgSSH: "openssh-client"}}, true
	case "fedora", "rhel":
		return manager{"sudo dnf install ", map[pkg]string{pkgQEMU: "qemu-system-x86-core", pkgGit: "git", pkgSSH: "openssh-clients"}}, true
	case "arch":
		return manager{"sudo pacman -S ", map[pkg]string{pkgQEMU: "qemu-base", pkgGit: "git", pkgSSH: "openssh"}}, true
	case "alpine":
		return manager{"sudo apk add ", map[pkg]string{pkgQEMU: "qemu-system-x86_64", pkgGit: "git", pkgSSH: "openssh-client"}}, true
	case "suse", "opensuse":
		return manager{"sudo zypper install ", map[pkg]string{pkgQEMU: "qemu-x86", pkgGit: "git", pkgSSH: "openssh-clients"}}, true
	}
	return manager{}, false
}

// install is the command that installs p on this host.
func (o Observations) install(p pkg) string {
	for _, id := range o.Probe.Distro {
		if m, ok := managerOf(id); ok {
			return m.command + m.names[p]
		}
	}
	m, _ := managerOf("debian")
	return "install " + string(p) + " with this host's package manager; on Debian: " + m.command + m.names[p]
}
