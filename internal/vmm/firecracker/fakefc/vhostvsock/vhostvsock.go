// Package vhostvsock is a virtio-vsock device for a QEMU (vhost-user-vsock-device) whose host side is Firecracker's: with it tests
// run a real guest, whose kernel drives the device, behind exactly the sockets Firecracker would give.
//
// A client of the host connects to Config.UDSPath, writes "CONNECT <port>\n" in one piece and reads "OK <n>\n", or the end of
// the stream where the guest refuses; while the guest has no driver, nothing is answered. A connection of the guest to a port of
// the host arrives at the socket UDSPath_PORT. As on Firecracker there is no half-close: the end of what the host sends ends
// both directions, and the guest's end is not seen before it has closed altogether
// (src/vmm/src/devices/virtio/vsock of firecracker v1.17).
//
// One goroutine does everything, by epoll: protocol.go are the messages of vhost-user, backend.go what QEMU asks by them,
// memory.go is the guest's memory, ring.go a split virtqueue in it, packet.go the header of a vsock packet, muxer.go
// the host's sockets and who belongs to whom, conn.go one connection.
//
// Neither QEMU nor the guest is believed: what breaks the rules of the rings or of the protocol ends the device with an error.
package vhostvsock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// minCID and anyCID bound what a guest may be called (VMADDR_CID_HOST, VMADDR_CID_ANY).
const (
	minCID = 3
	anyCID = 0xffffffff
)

// Config says what the device is.
type Config struct {
	// CID is the guest's, 3 to 4294967294.
	CID uint64
	// UDSPath is the socket of the host, as Firecracker's uds_path. It must not exist, and stays when the device ends.
	UDSPath string
	// Log is told what goes wrong; nil for nobody.
	Log *slog.Logger
}

// Device is a device whose host side is bound.
type Device struct {
	cfg Config
	mux *muxer
}

// Bind binds cfg.UDSPath, as Firecracker does when it is told of its vsock device. Clients may connect from then on; nobody
// answers them before a guest drives the device.
func Bind(cfg Config) (*Device, error) {
	if cfg.CID < minCID || cfg.CID >= anyCID {
		return nil, fmt.Errorf("bind a vsock: cid %d is not from %d to %d", cfg.CID, minCID, uint64(anyCID)-1)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	mux, err := newMuxer(cfg)
	if err != nil {
		return nil, err
	}
	return &Device{cfg: cfg, mux: mux}, nil
}

// Close ends a device that Serve was not called on.
func (d *Device) Close() { d.mux.close() }

// Serve accepts one QEMU on ln and is its vsock device until QEMU hangs up (nil), ctx ends (its cause), or QEMU or the guest
// breaks a rule (what they did). It closes ln and the device, once.
func (d *Device) Serve(ctx context.Context, ln *net.UnixListener) error {
	defer d.mux.close()
	ctl, err := acceptOne(ctx, ln)
	if err != nil {
		return err
	}
	defer ctl.Close()
	stopped, unstop, err := stopEvent(ctx)
	if err != nil {
		return err
	}
	defer unstop()
	b, err := newBackend(d.cfg, int(ctl.Fd()), stopped, d.mux)
	if err != nil {
		return err
	}
	defer b.close()
	switch err := b.run(); {
	case errors.Is(err, errHangup):
		return nil
	case errors.Is(err, errStopped):
		return context.Cause(ctx)
	default:
		return fmt.Errorf("serve vsock: %w", err)
	}
}

// Serve is Bind and Device.Serve in one.
func Serve(ctx context.Context, ln *net.UnixListener, cfg Config) error {
	d, err := Bind(cfg)
	if err != nil {
		ln.Close()
		return err
	}
	return d.Serve(ctx, ln)
}

// acceptOne waits for a connection and closes ln. The file's descriptor blocks.
func acceptOne(ctx context.Context, ln *net.UnixListener) (*os.File, error) {
	unwatch := context.AfterFunc(ctx, func() { ln.Close() })
	defer unwatch()
	conn, err := ln.AcceptUnix()
	ln.Close()
	if ctx.Err() != nil {
		if err == nil {
			conn.Close()
		}
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("accept qemu: %w", err)
	}
	defer conn.Close()
	return conn.File()
}

// stopEvent returns a descriptor that can be read once ctx has ended, and what gives it back.
func stopEvent(ctx context.Context) (fd int, done func(), err error) {
	fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, nil, os.NewSyscallError("eventfd", err)
	}
	f := os.NewFile(uintptr(fd), "stop")
	unwatch := context.AfterFunc(ctx, func() { _, _ = f.Write(one) })
	return fd, func() {
		unwatch()
		f.Close()
	}, nil
}

// one is what an event descriptor is told.
var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

var (
	errHangup  = errors.New("qemu hung up")
	errStopped = errors.New("stopped")
)
