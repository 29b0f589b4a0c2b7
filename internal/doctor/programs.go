package doctor

import (
	"fmt"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

// The oldest OpenSSH whose client has all that is asked of it.
const sshMajor, sshMinor = 8, 5

// programs looks for banger's own.
func (o Observations) programs() Check {
	const name = "programs"
	const again = "make install   # in banger's sources"
	switch {
	case o.DaemonErr != nil:
		return failErr(name, o.DaemonErr)
	case o.Agent == "":
		return fail(name, "the guest agent banger-vsock-agent is not beside %s", o.Daemon.Path).hint(again)
	case o.Daemon.Version == "":
		return fail(name, "%s does not tell its version", o.Daemon.Path).hint(again)
	case o.Daemon.Version != o.Version:
		return warn(name, "this is banger %s, and %s is %s", o.Version, o.Daemon.Path, o.Daemon.Version).hint(again)
	}
	return ok(name, "banger %s, %s, %s", o.Version, o.Daemon.Path, o.Agent)
}

// image tells whether the default image is there, or can be.
func (o Observations) image() Check {
	const name = "image"
	switch {
	case o.ImageHere:
		return ok(name, "%s is on this host", o.Image)
	case o.ImageKnown:
		return ok(name, "%s is not on this host yet; the first VM gets it", o.Image).hint("banger image pull %s", o.Image)
	}
	return fail(name, "default_image_name is %q, which is neither on this host nor in the catalog", o.Image).hint("banger image list")
}

func (o Observations) kernel() Check {
	const name = "kernel"
	switch {
	case o.KernelHere:
		return ok(name, "%s is on this host", o.Kernel)
	case o.KernelKnown:
		return ok(name, "%s is not on this host yet; the first VM gets it", o.Kernel).hint("banger kernel pull %s", o.Kernel)
	}
	return fail(name, "%q is neither on this host nor in the catalog", o.Kernel).hint("banger kernel list")
}

// build tells whether an image can be built on the host itself, which matters where the default one is not here yet.
func (o Observations) build() Check {
	const name = "image build"
	c := ok(name, "mmdebstrap and what it needs are there")
	if o.BuildErr != nil {
		c = failErr(name, o.BuildErr)
		c.Status = Warn
		c.Detail += ": images are built in a VM, which takes longer"
	} else if why := o.noScratch(); why != "" {
		c = fail(name, "no directory to put an image together in, which takes %s: %s", size(scratchSpace), why).
			hint("make room in /var/tmp")
	}
	if c.Status == Fail && o.ImageHere {
		c.Status = Warn
		c.Detail += "; needed for the next image only"
	}
	return c
}

// noScratch says why no place is fit to put an image together in; empty where one is.
func (o Observations) noScratch() string {
	var why []string
	for _, p := range o.Scratch {
		switch {
		case p.Err != nil:
			why = append(why, p.Err.Error())
		case p.NoExec:
			why = append(why, p.Path+" is mounted noexec")
		case p.Free < scratchSpace:
			why = append(why, fmt.Sprintf("%s free in %s", size(p.Free), p.Path))
		default:
			return ""
		}
	}
	return strings.Join(why, "; ")
}

// mirror tells whether Debian's archive answers.
func (o Observations) mirror() Check {
	const name = "mirror"
	switch {
	case o.MirrorErr == nil:
		return ok(name, "%s answers", o.Mirror)
	case o.ImageHere && o.KernelHere:
		return warn(name, "%s", api.AsError(o.MirrorErr).Message).hint("name one that answers with debian_mirror in %s", o.ConfigPath)
	}
	return fail(name, "%s", api.AsError(o.MirrorErr).Message).hint("name one that answers with debian_mirror in %s", o.ConfigPath)
}

func (o Observations) git() Check {
	const name = "git"
	if o.Git.Path == "" {
		return warn(name, "not installed; vm run ./repo copies repositories with it").hint("%s", o.install(pkgGit))
	}
	return ok(name, "%s (%s)", o.Git.Version, o.Git.Path)
}

func (o Observations) ssh() Check {
	const name = "ssh"
	switch {
	case o.SSH.Path == "":
		return warn(name, "not installed; vm ssh needs OpenSSH's client, vm exec -it does without").hint("%s", o.install(pkgSSH))
	case o.SSH.Version == "":
		return warn(name, "%s is not OpenSSH's client, which vm ssh needs", o.SSH.Path).hint("%s", o.install(pkgSSH))
	case !atLeast(o.SSH.Version, sshMajor, sshMinor):
		return warn(name, "OpenSSH %s (%s), vm ssh needs %d.%d or newer", o.SSH.Version, o.SSH.Path, sshMajor, sshMinor).
			hint("%s", o.install(pkgSSH))
	}
	return ok(name, "OpenSSH %s (%s)", o.SSH.Version, o.SSH.Path)
}

// sshConfig tells whether "ssh NAME.vm" works; who does not use it lacks nothing.
func (o Observations) sshConfig() Check {
	const name = "ssh config"
	s := o.SSHConfig
	switch {
	case s.Included && !s.Exists:
		return warn(name, "%s includes %s, which is gone", s.User, s.Ours).hint("banger ssh-config --install")
	case s.Included:
		return ok(name, "%s includes %s: ssh NAME.vm works", s.User, s.Ours)
	}
	return ok(name, "not installed; with it ssh, scp, rsync and git reach VMs as NAME.vm").hint("banger ssh-config --install")
}
