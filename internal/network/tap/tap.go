// Package tap opens TAP devices of the host: Ethernet interfaces whose other end is a file. They are made beforehand, each
// owned by the user who may open it without privileges (linux: Documentation/networking/tuntap.rst).
package tap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// Device is what every TAP is opened by.
const Device = "/dev/net/tun"

// Flags of every TAP of banger's: Ethernet frames, each behind a virtio header, so that checksums and large segments are left to
// whoever can do them best.
const Flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// Open opens the TAP of this name, which must be there. Only one process has it at a time: while another does, it is a KindConflict.
// A TAP that is not there, or not this user's, is a KindUnavailable.
func Open(name string) (*os.File, error) {
	// To a user with the privilege, opening one that is not there would make it.
	if there, err := exists(name); err != nil {
		return nil, fmt.Errorf("open TAP %q: %w", name, err)
	} else if !there {
		return nil, api.Errorf(api.KindUnavailable, "open TAP %q: there is no such interface", name).WithHint("sudo banger net setup")
	}
	fd, err := unix.Open(Device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, explain(name, &os.PathError{Op: "open", Path: Device, Err: err})
	}
	if err := attach(fd, name); err != nil {
		_ = unix.Close(fd) // nothing was written
		return nil, explain(name, err)
	}
	// Not before: the kernel has nothing to wait for in a file that is no TAP yet, and says so once and for all (tun_chr_poll in drivers/net/tun.c).
	return os.NewFile(uintptr(fd), name), nil
}

// exists tells whether there is an interface of this name.
func exists(name string) (bool, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return false, err
	}
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(sock)
	err = unix.IoctlIfreq(sock, unix.SIOCGIFINDEX, req)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil, err
}

// attach makes a file the other end of the TAP.
func attach(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(Flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
}

// Give makes the TAP of this name a user's. It takes CAP_NET_ADMIN.
func Give(name string, uid int) error {
	f, err := Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOWNER, uid); err != nil {
		return fmt.Errorf("give TAP %q to user %d: %w", name, uid, err)
	}
	return nil
}

// explain is an error of Open, with what to do.
func explain(name string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return api.Errorf(api.KindConflict, "open TAP %q: another process has it", name).
			WithHint("a VMM that was left may be it: banger vm list; else ip -details link show %s", name)
	case errors.Is(err, unix.EPERM):
		return api.Errorf(api.KindUnavailable, "open TAP %q: it is not this user's", name).WithHint("sudo banger net setup")
	case errors.Is(err, unix.EINVAL):
		return api.Errorf(api.KindConflict, "open TAP %q: the interface is none", name).WithHint("another bridge_name in config.toml, then sudo banger net setup")
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV):
		return api.Errorf(api.KindUnavailable, "open TAP %q: this kernel has no TAPs: %w", name, err).WithHint("sudo modprobe tun")
	case errors.Is(err, os.ErrPermission):
		return api.Errorf(api.KindUnavailable, "open TAP %q: %w", name, err).
			WithHint("%s is usually for everybody: sudo chmod 0666 %s", Device, Device)
	}
	return fmt.Errorf("open TAP %q: %w", name, err)
}
