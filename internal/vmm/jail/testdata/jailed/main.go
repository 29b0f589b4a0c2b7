// Jailed stands in for Firecracker in tests of jails: it prints, as JSON, what it finds where it runs.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Print("Firecracker v1.17.0\n\n2026-01-01T00:00:00.000000000 [anonymous-instance:main] Firecracker exiting successfully. exit_code=0\n")
		return
	}
	if len(os.Args) > 1 && os.Args[len(os.Args)-1] == "--hang" {
		fmt.Println("here")
		hang := make(chan os.Signal, 1)
		signal.Notify(hang, syscall.SIGUSR1) // nobody sends it
		<-hang
	}
	seen := map[string]any{"args": os.Args, "env": os.Environ(), "uid": syscall.Getuid(), "gid": syscall.Getgid()}
	seen["groups"], _ = syscall.Getgroups()
	seen["cwd"], _ = syscall.Getwd()
	var names []string
	entries, _ := os.ReadDir("/")
	for _, e := range entries {
		names = append(names, e.Name())
	}
	seen["root"] = names
	var limit syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	seen["files"] = limit.Max
	seen["read base"] = try(func() error { _, err := os.ReadFile("base.ext4"); return err })
	seen["write base"] = try(func() error { return os.WriteFile("base.ext4", nil, 0o600) })
	seen["chmod base"] = try(func() error { return os.Chmod("base.ext4", 0o777) })
	seen["write data"] = try(func() error { return os.WriteFile("data.ext4", []byte("written in the jail"), 0o600) })
	seen["read config"] = try(func() error { _, err := os.ReadFile("firecracker.json"); return err })
	seen["read /etc/passwd"] = try(func() error { _, err := os.ReadFile("/etc/passwd"); return err })
	seen["listen"] = try(func() error { _, err := net.Listen("unix", "vsock.sock"); return err })
	seen["dial"] = try(func() error { _, err := net.Dial("unix", "vsock.sock_1024"); return err })
	seen["device"] = try(func() error {
		var st syscall.Stat_t
		err := syscall.Stat("/dev/kvm", &st)
		if err == nil && (st.Rdev != 10<<8|232 || int(st.Uid) != syscall.Getuid()) {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
		os.Exit(1)
	}
	os.Exit(42)
}

func try(f func() error) string {
	if err := f(); err != nil {
		return err.Error()
	}
	return "ok"
}
