package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// handover is what PID 1 tells the agent, in a file without a name: no process can read the secret from
// another's environment or arguments, and no file system holds it.
type handover struct {
	Boot wire.Boot
	Init string // wire.Call.Init
	// DataDev is the device of the data drive.
	DataDev string
	Log     []string
}

// Descriptors of the agent.
const (
	fdHandover = 3
	fdData     = 4 // the data drive's file system
	fdModules  = 5 // moduleDir of the initramfs
	fdHeard    = 6 // a pipe the agent closes once the host has heard of it
)

// headStart is how long the image's init waits for the agent to be heard. With one CPU the two would
// otherwise share it, and what the user waits for first would come last.
const headStart = 500 * time.Millisecond

// bootMain is PID 1 of the initramfs. It does not return: it becomes the image's init, or stays.
// A boot that cannot go on says why on the console and resets.
func bootMain() int {
	var log bootLog
	log.step("init started")
	kind, path, agent, err := boot(&log)
	if err == nil && kind != initNone {
		fmt.Fprintf(os.Stderr, "banger: start %q: %v; staying as init\n", path, becomeInit(path))
	}
	if err != nil {
		for _, l := range log.Lines {
			fmt.Fprintln(os.Stderr, "banger:", l)
		}
		fmt.Fprintln(os.Stderr, "banger: boot:", err)
		fmt.Fprintln(os.Stderr, "banger:", restartMachine())
	}
	minimalInit(agent)
	return 1
}

// boot makes the root, enters it and starts the agent. It returns the init to become.
func boot(log *bootLog) (initKind, string, *os.Process, error) {
	none := func(err error) (initKind, string, *os.Process, error) { return "", "", nil, err }
	conf, err := readBoot(wire.BootFile)
	if err != nil {
		return none(err)
	}
	if err := mountEarly(); err != nil {
		return none(err)
	}
	modules, err := unix.Open(moduleDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return none(&os.PathError{Op: "open", Path: moduleDir, Err: err})
	}
	needed := neededModules
	if conf.Transport == wire.TransportVsock {
		needed = append(slices.Clone(needed), vsockModules...)
	}
	warn := func(format string, args ...any) { log.warn(fmt.Errorf(format, args...)) }
	if err := loadNeeded(modules, needed, warn); err != nil {
		return none(err)
	}
	log.step("modules loaded")
	d, err := findDrives("/sys")
	if err != nil {
		return none(err)
	}
	log.step("drives base=%s data=%s modules=%s", d.Base, d.Data, d.Modules)
	data, err := enterRoot(d, log)
	if err != nil {
		return none(err)
	}
	log.warn(setIdentity(conf.Identity))
	log.warn(loopbackUp())
	log.warn(os.WriteFile("/proc/sys/kernel/modprobe", []byte(runDir+"/modprobe\n"), 0o644))
	kind, path := findInit("/")
	if kind == initSystemd {
		all := units()
		if n := conf.Identity.Network; n != nil {
			all = append(all, networkUnits(*n)...)
		}
		log.warn(writeUnits(runUnits, all))
	} else {
		log.warn(mountCgroups())
	}
	log.step("root ready, init=%s %s", kind, path)
	agent, err := startAgent(handover{Boot: conf, Init: kind.wire(), DataDev: d.Data, Log: log.Lines}, data, modules)
	if err != nil {
		return none(err)
	}
	return kind, path, agent, nil
}

// readBoot takes the boot configuration away: it is there once.
func readBoot(path string) (wire.Boot, error) {
	var conf wire.Boot
	data, err := os.ReadFile(path)
	if err != nil {
		return conf, fmt.Errorf("read the boot configuration: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return conf, err
	}
	if err := json.Unmarshal(data, &conf); err != nil {
		return conf, fmt.Errorf("read the boot configuration: %w", err)
	}
	if conf.Version != wire.Version {
		return conf, fmt.Errorf("boot configuration of version %d: this agent speaks version %d", conf.Version, wire.Version)
	}
	return conf, nil
}

// startAgent starts the agent as a process of its own.
func startAgent(h handover, data, modules int) (*os.Process, error) {
	fd, err := unix.MemfdCreate("handover", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("start the agent: memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close()
	err = json.NewEncoder(f).Encode(h)
	if err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	defer null.Close()
	heard, hear, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	defer heard.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{agentName}, &os.ProcAttr{
		Dir: "/",
		Env: []string{"PATH=" + defaultPath, "HOME=/root"},
		Files: []*os.File{null, os.Stdout, os.Stderr, f,
			os.NewFile(uintptr(data), "data"), os.NewFile(uintptr(modules), "modules"), hear},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	hear.Close()
	if err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	_ = heard.SetReadDeadline(time.Now().Add(headStart))
	_, _ = heard.Read(make([]byte, 1)) // its end, or the deadline
	return p, nil
}

// becomeInit replaces PID 1 by the image's init. It returns only an error.
func becomeInit(path string) error {
	err := syscall.Exec(path, []string{path}, []string{"PATH=" + defaultPath, "HOME=/", "TERM=linux"})
	if err == nil {
		err = errors.New("exec returned")
	}
	return err
}
