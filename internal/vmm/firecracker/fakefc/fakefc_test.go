package fakefc

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

func TestCommandLine(t *testing.T) {
	for name, c := range map[string]struct {
		args           []string
		status         int
		stdout, stderr string
	}{
		"version":    {[]string{"--version"}, 0, "Firecracker v1.17.0\n\n", ""},
		"snapshot":   {[]string{"--snapshot-version"}, 0, "v11.0.0\n", ""},
		"unknown":    {[]string{"--landlock"}, 153, "Found argument '--landlock' which wasn't expected", `Error: ParseArguments(UnexpectedArgument("--landlock"))`},
		"positional": {[]string{"vm"}, 153, "Found argument 'vm' which wasn't expected", "UnexpectedArgument"},
		"no value":   {[]string{"--id", "--no-api"}, 153, "The argument 'id' requires a value, but none was supplied.", "MissingValue"},
		"twice":      {[]string{"--id", "a", "--id", "a"}, 153, "The argument 'id' was provided more than once.", "DuplicateArgument"},
		"no file":    {[]string{"--no-api"}, 153, "Argument 'config-file' required, but not found.", "MissingArgument"},
		"level":      {[]string{"--level", "loud"}, 152, "", "InvalidLogLevel"},
		"id":         {[]string{"--id", "a_b"}, -1, "Invalid instance ID", ""},
		"long id":    {[]string{"--id", strings.Repeat("a", 65)}, -1, "Invalid instance ID", ""},
		"bad file":   {[]string{"--api-sock", "fc.sock", "--config-file", "absent"}, -1, "Unable to open or read from the configuration file", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, t.TempDir(), c.args...)
			if status := p.end(t); status != c.status {
				t.Errorf("the status is %d, want %d", status, c.status)
			}
			if status := c.status; status < 0 && p.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGABRT {
				t.Errorf("it ended by %v", p.cmd.ProcessState)
			}
			if out, errs := p.stdout.String(), p.stderr.String(); !strings.Contains(out, c.stdout) || !strings.Contains(errs, c.stderr) {
				t.Errorf("it says %q and %q, want %q and %q in them", out, errs, c.stdout, c.stderr)
			}
		})
	}
}

func TestVersionOfTheEnvironment(t *testing.T) {
	t.Setenv(EnvVersion, "1.12.0")
	p := start(t, t.TempDir(), "--version")
	if status := p.end(t); status != 0 || !strings.HasPrefix(p.stdout.String(), "Firecracker v1.12.0\n") {
		t.Errorf("status %d, %q", status, p.stdout.String())
	}
}

// edit is good with a change.
func edit(old, new string) string {
	if !strings.Contains(good, old) {
		panic(old)
	}
	return strings.Replace(good, old, new, 1)
}

func TestStartRefused(t *testing.T) {
	const head = "RunWithApiError error: Failed to build MicroVM from Json: "
	for name, c := range map[string]struct {
		config    string
		knobs     Knobs
		says      string
		violation bool
	}{
		"no json":         {config: "{", says: head + "Configuration for VMM from one single json failed: Invalid JSON: EOF while parsing"},
		"no drives":       {config: `{"boot-source":{"kernel_image_path":"vmlinux"}}`, says: "missing field `drives` at line 1 column 47"},
		"unknown top":     {config: edit(`"entropy"`, `"entrophy"`), says: "unknown field `entrophy`", violation: true},
		"serial":          {config: edit(`"entropy": {}`, `"serial": {}`), says: "unknown field `serial`", violation: true},
		"unknown field":   {config: edit(`"vcpu_count"`, `"smp": 1, "vcpu_count"`), says: "unknown field `smp`, expected one of `vcpu_count`, `mem_size_mib`"},
		"missing field":   {config: edit(`"guest_cid": 3, `, ``), says: "missing field `guest_cid` at line 7"},
		"wrong type":      {config: edit(`"vcpu_count": 2`, `"vcpu_count": "2"`), says: "invalid type: string \"2\", expected u8 at line 6"},
		"too large":       {config: edit(`"vcpu_count": 2`, `"vcpu_count": 300`), says: "invalid value: integer `300`, expected u8"},
		"variant":         {config: edit(`"Writeback"`, `"writeback"`), says: "unknown variant `writeback`, expected `Unsafe` or `Writeback`"},
		"twice":           {config: edit(`"vcpu_count": 2`, `"vcpu_count": 2, "vcpu_count": 2`), says: "duplicate field `vcpu_count`"},
		"no kernel":       {config: edit("vmlinux", "absent"), says: head + "Configuration for VMM from one single json failed: Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"},
		"no initrd":       {config: edit(`"initrd_path": "initrd"`, `"initrd_path": "absent"`), says: "The initrd file cannot be opened due to invalid path or invalid permissions. No such file or directory (os error 2)"},
		"no drive":        {config: edit("base.ext4", "absent"), says: "Block device error: Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: No such file or directory (os error 2) absent"},
		"drive's name":    {config: edit(`"data"`, `"da-ta"`), says: "API Resource IDs can only contain alphanumeric characters and underscores."},
		"no CPU":          {config: edit(`"vcpu_count": 2`, `"vcpu_count": 0`), says: "The number of vCPUs must be greater than 0"},
		"many CPUs":       {config: edit(`"vcpu_count": 2`, `"vcpu_count": 33`), says: "The number of vCPUs must be greater than 0"},
		"no memory":       {config: edit(`"mem_size_mib": 256`, `"mem_size_mib": 0`), says: "VM config error: The memory size (MiB) is either 0"},
		"a great balloon": {config: edit(`"amount_mib": 0`, `"amount_mib": 257`), says: "Balloon device error: Amount of pages requested is too large."},
		"vsock is there":  {config: edit(`vsock.sock`, `vmlinux`), says: "Vsock device error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: Address in use (os error 98)"},
		"the host's CID":  {config: edit(`"guest_cid": 3`, `"guest_cid": 2`), violation: true},
		"long arguments":  {config: edit("panic=-1", strings.Repeat("x", 2048)), says: "Command line is too large."},
		"no KVM":          {config: good, knobs: Knobs{KVM: KVMMissing}, says: "Error creating KVM object: No such file or directory (os error 2) Make sure the user"},
		"KVM forbidden":   {config: good, knobs: Knobs{KVM: KVMPermission}, says: "Error creating KVM object: Permission denied (os error 13) Make sure the user"},
		"old KVM":         {config: good, knobs: Knobs{KVM: KVMTooOld}, says: "Missing KVM capabilities: 0x"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t, c.knobs, nil)
			write(t, dir, "firecracker.json", []byte(c.config))
			p := start(t, dir)
			if c.says != "" {
				if status := p.end(t); status != 1 || !strings.Contains(p.stdout.String(), c.says) ||
					!strings.HasPrefix(p.stderr.String()[strings.Index(p.stderr.String(), "Error:"):], "Error: RunWithApi(BuildFromJson(") {
					t.Errorf("status %d, stdout %q, want %q", status, p.stdout.String(), c.says)
				}
				if _, err := os.Lstat(filepath.Join(dir, "fc.sock")); err != nil {
					t.Errorf("the socket of the API is not left behind: %v", err)
				}
			} else {
				p.must(t, "GET", "/", "")
			}
			if got := p.file(t, ViolationFile); (got != "") != c.violation {
				t.Errorf("violations: %q", got)
			}
		})
	}
}

func TestSocketInTheWay(t *testing.T) {
	dir := newDir(t, Knobs{}, nil)
	write(t, dir, "fc.sock", nil)
	p := start(t, dir)
	if status := p.end(t); status != 1 || !strings.Contains(p.stdout.String(), "Failed to open the API socket at: fc.sock. Check that it is not already used.") {
		t.Errorf("status %d, %q", status, p.stdout.String())
	}
}

func TestBootToPoweroff(t *testing.T) {
	for _, verb := range []string{"poweroff", "reboot", "halt", "panic"} {
		t.Run(verb, func(t *testing.T) {
			dir := newDir(t, Knobs{}, nil)
			h := listenCalls(t, dir)
			write(t, dir, "vmm.log", nil)
			p := start(t, dir, "--id", "vm", "--api-sock", "fc.sock", "--config-file", "firecracker.json", "--log-path", "vmm.log", "--level", "Warn")
			h.await(t, full)
			write(t, dir, "fakeguest/verb", []byte(verb+"\n")) // as the guest's program of that name
			if verb != "panic" {
				if c := h.await(t, func(c wire.Call) bool { return c.Type == wire.CallEnding }); c.Verb != verb {
					t.Errorf("it announced %q", c.Verb)
				}
			}
			if status := p.end(t); status != 0 || p.file(t, "vmm.log") != "" {
				t.Errorf("status %d, log %q", status, p.file(t, "vmm.log"))
			}
			if out := p.stdout.String(); !strings.HasPrefix(out, Banner+"\n") {
				t.Errorf("the console has %q", out)
			}
			for _, name := range []string{"fc.sock", "vsock.sock"} {
				if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
					t.Errorf("%s is not left behind: %v", name, err)
				}
			}
		})
	}
}

// TestKernelArguments: what is missing on the command line is missed.
func TestKernelArguments(t *testing.T) {
	t.Run("reboot", func(t *testing.T) {
		dir := newDir(t, Knobs{}, nil)
		write(t, dir, "firecracker.json", []byte(edit("reboot=k", "reboot=t")))
		h := listenCalls(t, dir)
		p := start(t, dir)
		h.await(t, full)
		write(t, dir, "fakeguest/verb", []byte("reboot\n"))
		if status := p.end(t); status != 1 || !strings.Contains(p.stdout.String(), "Unexpected exit reason on vcpu run: Shutdown") {
			t.Errorf("status %d, %q", status, p.stdout.String())
		}
	})
	t.Run("console", func(t *testing.T) {
		dir := newDir(t, Knobs{}, nil)
		write(t, dir, "firecracker.json", []byte(edit("console=ttyS0 ", "")))
		h := listenCalls(t, dir)
		p := start(t, dir)
		h.await(t, full)
		p.must(t, "PUT", "/actions", `{"action_type": "SendCtrlAltDel"}`)
		if status := p.end(t); status != 0 || strings.Contains(p.stdout.String(), Banner) {
			t.Errorf("status %d, %q", status, p.stdout.String())
		}
	})
}

func TestRequestsInOrder(t *testing.T) {
	const (
		before = "The requested operation is not supported before starting the microVM."
		after  = "The requested operation is not supported after starting the microVM."
		json   = "An error occurred when deserializing the json body of a request: "
	)
	dir := newDir(t, Knobs{}, nil)
	h := listenCalls(t, dir)
	p := start(t, dir, "--id", "vm", "--api-sock", "fc.sock")
	for _, c := range []struct{ method, path, body, fault string }{
		{"PATCH", "/vm", `{"state": "Paused"}`, before},
		{"PATCH", "/balloon", `{"amount_mib": 1}`, before},
		{"PATCH", "/drives/data", `{"drive_id": "data", "path_on_host": "data.ext4"}`, before},
		{"PUT", "/snapshot/create", `{"snapshot_path": "s", "mem_file_path": "m"}`, before},
		{"PUT", "/actions", `{"action_type": "FlushMetrics"}`, before},
		{"PUT", "/actions", `{"action_type": "InstanceStart"}`, "Start microvm error: Cannot start microvm without kernel configuration."},
		{"GET", "/balloon", "", "Balloon config error: No balloon device found."},
		{"PUT", "/boot-source", `{"kernel_image_path": "absent"}`, "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"},
		{"PUT", "/boot-source", `{"kernel_image_path": "vmlinux", "initrd_path": "initrd", "boot_args": "` + bootArgs + `"}`, ""},
		{"PUT", "/snapshot/load", `{"snapshot_path": "s", "mem_backend": {"backend_path": "m", "backend_type": "File"}}`,
			"Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 128}`, ""},
		{"PUT", "/drives/base", `{"drive_id": "data", "is_root_device": false}`, "The id from the path does not match the id from the body!"},
		{"PUT", "/drives/", `{"drive_id": "data", "is_root_device": false}`, "The ID cannot be empty."},
		{"PUT", "/drives/data", `{"drive_id": "data", "path_on_host": "data.ext4", "is_root_device": false}`, ""},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "vsock.sock"}`, ""},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "vsock.sock"}`, ""}, // its own is no obstacle
		{"PUT", "/balloon", `{"amount_mib": 0, "deflate_on_oom": true}`, ""},
		{"PUT", "/entropy", `{}`, ""},
		{"PUT", "/actions", `{"action_type": "InstanceStart"}`, ""},
		{"PUT", "/actions", `{"action_type": "InstanceStart"}`, after},
		{"PUT", "/boot-source", `{"kernel_image_path": "vmlinux"}`, after},
		{"PUT", "/drives/data", `{"drive_id": "data", "path_on_host": "data.ext4", "is_root_device": false}`, after},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "vsock.sock"}`, after},
		{"PUT", "/balloon", `{"amount_mib": 0, "deflate_on_oom": true}`, after},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 128}`, after},
		{"PUT", "/snapshot/load", `{"snapshot_path": "s", "mem_backend": {"backend_path": "m", "backend_type": "File"}}`, after},
		{"PUT", "/snapshot/create", `{"snapshot_path": "s", "mem_file_path": "m"}`,
			"Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running"},
		{"PUT", "/snapshot", `{}`, "Missing snapshot operation type."},
		{"PATCH", "/vm", `{"state": "paused"}`, json + "unknown variant `paused`, expected `Paused` or `Resumed` at line 1 column 18."},
		{"PATCH", "/vm", `{"status": "Paused"}`, json + "unknown field `status`, expected `state` at line 1 column 9."},
		{"PATCH", "/vm", `{}`, json + "missing field `state` at line 1 column 2."},
		{"PATCH", "/vm", ``, "Empty PATCH request."},
		{"PUT", "/vm", ``, "Empty PUT request."},
		{"PUT", "/foo/bar", `{}`, "Invalid request method and/or path: PUT foo."},
		{"GET", "/foo", ``, "Invalid request method and/or path: GET foo."},
		{"GET", "/", `{}`, "GET request cannot have a body."},
		{"PATCH", "/drives/data", `{"drive_id": "data", "path_on_host": "absent"}`,
			"Drive config error: Unable to patch the block device: Virtio backend error: Error manipulating the backing file: No such file or directory (os error 2) absent Please verify the request arguments."},
		{"PATCH", "/drives/data", `{"drive_id": "data", "is_read_only": true}`, json + "unknown field `is_read_only`, expected one of `drive_id`, `path_on_host`, `rate_limiter` at line 1 column 35."},
		{"PATCH", "/drives/data", `{"drive_id": "data", "path_on_host": "data.ext4"}`, ""},
		{"PATCH", "/vm", `{"state": "Paused"}`, ""},
		{"PATCH", "/vm", `{"state": "Paused"}`, ""},
		{"PATCH", "/vm", `{"state": "Resumed"}`, ""},
		{"PATCH", "/vm", `{"state": "Resumed"}`, ""},
	} {
		if c.path == "/boot-source" && c.fault == after {
			h.await(t, full)
		}
		status, text, err := p.request(t, c.method, c.path, c.body)
		want := 400
		if c.fault == "" {
			want = 204
		}
		if err != nil || status != want || faultIn(text) != c.fault {
			t.Errorf("%s %s %s:\n %d %q, %v\nwant %q", c.method, c.path, c.body, status, text, err, c.fault)
		}
	}
	p.must(t, "PATCH", "/balloon", `{"amount_mib": 64}`)
	if status, text, _ := p.request(t, "PATCH", "/balloon", `{"amount_mib": 129}`); status != 400 {
		t.Errorf("a balloon greater than the guest: %d %s", status, text)
	}
}

func faultIn(text string) string {
	var f struct {
		Message string `json:"fault_message"`
	}
	if text == "" || json.Unmarshal([]byte(text), &f) != nil {
		return text
	}
	return f.Message
}

func TestAnswers(t *testing.T) {
	dir := newDir(t, Knobs{Version: "1.18.1", Spec: os.Getenv(EnvSpec)}, nil)
	p := start(t, dir)
	doc := newSpec(os.Getenv(EnvSpec))
	for path, want := range map[string]string{
		"/":               `{"app_name":"Firecracker","id":"0123456789abcdef","state":"Running","vmm_version":"1.18.1"}`,
		"/version":        `{"firecracker_version":"1.18.1"}`,
		"/machine-config": `{"vcpu_count":2,"mem_size_mib":256,"smt":false,"track_dirty_pages":false}`,
		"/balloon":        `{"amount_mib":0,"deflate_on_oom":true,"stats_polling_interval_s":0,"free_page_hinting":false,"free_page_reporting":true}`,
	} {
		got := p.must(t, "GET", path, "")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("GET %s (-want +got):\n%s", path, diff)
		}
		if doc == nil {
			continue
		}
		if err := doc.checkAnswer("GET", path, []byte(got)); err != nil {
			t.Errorf("GET %s is not as in the document: %v", path, err)
		}
	}
	var c config
	if err := decode([]byte(p.must(t, "GET", "/vm/config", "")), &c); err != nil || len(c.Drives) != 2 || c.Vsock.UDSPath != "vsock.sock" {
		t.Errorf("GET /vm/config: %+v, %v", c, err)
	}
	if got := p.file(t, ViolationFile); got != "" {
		t.Errorf("violations: %s", got)
	}
}
