package fakeqemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// machine is what an argument list describes.
type machine struct {
	kernel, initrd, cmdline string
	qmpFD, agentFD, netFD   int
	sandbox                 bool
	drives                  map[string]string // node name to file
}

// parseArgs understands exactly the arguments banger gives; everything else is an error.
func parseArgs(args []string) (*machine, error) {
	m := &machine{qmpFD: -1, agentFD: -1, netFD: -1, drives: map[string]string{}}
	seen := map[string]int{}
	for i := 0; i < len(args); i++ {
		flag := args[i]
		seen[flag]++
		switch flag {
		case "-nodefaults", "-no-user-config", "-no-reboot":
			continue
		}
		if i++; i >= len(args) {
			return nil, fmt.Errorf("%s: requires an argument", flag)
		}
		if err := m.option(flag, args[i]); err != nil {
			return nil, fmt.Errorf("%s %s: %w", flag, args[i], err)
		}
	}
	for _, flag := range []string{"-name", "-M", "-cpu", "-m", "-smp", "-nodefaults", "-no-user-config", "-display",
		"-no-reboot", "-kernel", "-initrd", "-append", "-mon", "-serial"} {
		if seen[flag] != 1 {
			return nil, fmt.Errorf("%s: given %d times", flag, seen[flag])
		}
	}
	if m.qmpFD < 0 || m.agentFD < 0 {
		return nil, errors.New("no control socket or no agent's port")
	}
	return m, nil
}

var errUnknown = errors.New("invalid option")

// oneOf is an option with few possible values.
func oneOf(value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return errUnknown
}

func (m *machine) option(flag, value string) (err error) {
	switch flag {
	case "-name":
		if value == "" || strings.ContainsAny(value, ",=") {
			return errUnknown
		}
		return nil
	case "-M":
		return oneOf(value, "microvm,accel=tcg,rtc=on,acpi=on", "microvm,accel=kvm,rtc=on,acpi=on")
	case "-cpu":
		return oneOf(value, "max", "host")
	case "-m":
		_, err = strconv.ParseUint(strings.TrimSuffix(value, "M"), 10, 32)
		return err
	case "-smp":
		_, err = strconv.ParseUint(value, 10, 16)
		return err
	case "-display":
		return oneOf(value, "none")
	case "-sandbox":
		m.sandbox = true
		return oneOf(value, "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	case "-kernel":
		m.kernel = value
		_, err = os.Stat(value)
		return err
	case "-initrd":
		m.initrd = value
		_, err = os.Stat(value)
		return err
	case "-append":
		m.cmdline = value
		return nil
	case "-mon":
		return oneOf(value, "chardev=qmp,mode=control")
	case "-serial":
		return oneOf(value, "chardev:console")
	case "-chardev":
		return m.chardev(value)
	case "-blockdev":
		return m.blockdev(value)
	case "-netdev":
		fd, ok := strings.CutPrefix(value, "socket,id=net,fd=")
		if !ok {
			return errUnknown
		}
		m.netFD, err = strconv.Atoi(fd)
		return err
	case "-device":
		return m.device(value)
	default:
		return errUnknown
	}
}

func (m *machine) chardev(value string) (err error) {
	switch {
	case value == "stdio,id=console,signal=off":
		return nil
	case strings.HasPrefix(value, "socket,id=qmp,fd="):
		m.qmpFD, err = strconv.Atoi(strings.TrimPrefix(value, "socket,id=qmp,fd="))
		return err
	case strings.HasPrefix(value, "socket,id=agent,fd="):
		m.agentFD, err = strconv.Atoi(strings.TrimPrefix(value, "socket,id=agent,fd="))
		return err
	default:
		return errUnknown
	}
}

// strictJSON decodes value; an unknown field is an error.
func strictJSON(value string, into any) error {
	d := json.NewDecoder(bytes.NewReader([]byte(value)))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

type node struct {
	Driver   string `json:"driver"`
	Node     string `json:"node-name"`
	Filename string `json:"filename"`
	ReadOnly bool   `json:"read-only"`
	Discard  string `json:"discard"`
	Zeroes   string `json:"detect-zeroes"`
	Cache    *struct {
		Direct  bool `json:"direct"`
		NoFlush bool `json:"no-flush"`
	} `json:"cache"`
	File *node `json:"file"`
}

func (m *machine) blockdev(value string) error {
	var n node
	if err := strictJSON(value, &n); err != nil {
		return err
	}
	if n.Driver != "raw" || n.Node == "" || n.File == nil || n.File.Driver != "file" {
		return errUnknown
	}
	flag := os.O_RDWR
	if n.ReadOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(n.File.Filename, flag, 0)
	if err != nil {
		return err
	}
	m.drives[n.Node] = n.File.Filename
	return f.Close()
}

func (m *machine) device(value string) error {
	if !strings.HasPrefix(value, "{") {
		return oneOf(value, "virtio-serial-device", "virtio-rng-device",
			"virtserialport,chardev=agent,name="+wire.PortName)
	}
	var d struct {
		Driver     string `json:"driver"`
		Drive      string `json:"drive"`
		Serial     string `json:"serial"`
		WriteError string `json:"werror"`
		ReadError  string `json:"rerror"`
		WriteCache string `json:"write-cache"`
		Netdev     string `json:"netdev"`
		MAC        string `json:"mac"`
		MTU        int    `json:"host_mtu"`
	}
	if err := strictJSON(value, &d); err != nil {
		return err
	}
	if d.Driver == "virtio-net-device" {
		_, err := net.ParseMAC(d.MAC)
		if m.netFD < 0 || d.Netdev != "net" || d.MTU < 68 || d.Drive != "" {
			return errUnknown
		}
		return err
	}
	if d.Driver != "virtio-blk-device" || m.drives[d.Drive] == "" {
		return errUnknown
	}
	return errors.Join(oneOf(d.WriteError, "enospc"), oneOf(d.ReadError, "report"), oneOf(d.WriteCache, "on"))
}
