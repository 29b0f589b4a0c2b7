package fakefc

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/network/tap"
)

// The bodies of requests, and with the same names the sections of a configuration file (src/vmm/src/vmm_config).

type bootSource struct {
	KernelImagePath string  `json:"kernel_image_path" fc:"required"`
	InitrdPath      *string `json:"initrd_path,omitempty"`
	BootArgs        *string `json:"boot_args,omitempty"`
}

type tokenBucket struct {
	Size         uint64  `json:"size" fc:"required"`
	OneTimeBurst *uint64 `json:"one_time_burst,omitempty"`
	RefillTime   uint64  `json:"refill_time" fc:"required"`
}

type rateLimiter struct {
	Bandwidth *tokenBucket `json:"bandwidth,omitempty"`
	Ops       *tokenBucket `json:"ops,omitempty"`
}

type drive struct {
	ID           string       `json:"drive_id" fc:"required"`
	PartUUID     *string      `json:"partuuid,omitempty"`
	IsRootDevice bool         `json:"is_root_device" fc:"required"`
	CacheType    string       `json:"cache_type" enum:"Unsafe|Writeback"`
	IsReadOnly   *bool        `json:"is_read_only,omitempty"`
	PathOnHost   *string      `json:"path_on_host,omitempty"`
	RateLimiter  *rateLimiter `json:"rate_limiter,omitempty"`
	IOEngine     *string      `json:"io_engine,omitempty" enum:"Sync|Async"`
	Socket       *string      `json:"socket,omitempty"`
}

func (d drive) readOnly() bool { return d.IsReadOnly != nil && *d.IsReadOnly }

type netDevice struct {
	ID          string       `json:"iface_id" fc:"required"`
	HostDevName string       `json:"host_dev_name" fc:"required"`
	GuestMAC    *string      `json:"guest_mac,omitempty"`
	MTU         *uint16      `json:"mtu,omitempty"`
	Rx          *rateLimiter `json:"rx_rate_limiter,omitempty"`
	Tx          *rateLimiter `json:"tx_rate_limiter,omitempty"`
}

type machineConfig struct {
	VCPUCount       uint8   `json:"vcpu_count" fc:"required"`
	MemSizeMiB      uint64  `json:"mem_size_mib" fc:"required"`
	SMT             bool    `json:"smt"`
	CPUTemplate     *string `json:"cpu_template,omitempty" enum:"C3|T2|T2S|T2CL|T2A|V1N1|None"`
	TrackDirtyPages bool    `json:"track_dirty_pages"`
	HugePages       *string `json:"huge_pages,omitempty" enum:"None|Transparent|2M"`
}

type vsockConfig struct {
	ID       *string `json:"vsock_id,omitempty"`
	GuestCID uint32  `json:"guest_cid" fc:"required"`
	UDSPath  string  `json:"uds_path" fc:"required"`
}

type entropy struct {
	RateLimiter *rateLimiter `json:"rate_limiter,omitempty"`
}

type balloon struct {
	AmountMiB         uint32 `json:"amount_mib" fc:"required"`
	DeflateOnOOM      bool   `json:"deflate_on_oom" fc:"required"`
	StatsInterval     uint16 `json:"stats_polling_interval_s"`
	FreePageHinting   bool   `json:"free_page_hinting"`
	FreePageReporting bool   `json:"free_page_reporting"`
}

type loggerConfig struct {
	LogPath       *string `json:"log_path,omitempty"`
	Level         *string `json:"level,omitempty"`
	ShowLevel     *bool   `json:"show_level,omitempty"`
	ShowLogOrigin *bool   `json:"show_log_origin,omitempty"`
	Module        *string `json:"module,omitempty"`
}

type metricsConfig struct {
	MetricsPath string `json:"metrics_path" fc:"required"`
	EmitID      bool   `json:"emit_id"`
}

// config is a configuration file. What the fake has no device for is missing, and refused like a name Firecracker does not know.
type config struct {
	Balloon       *balloon       `json:"balloon,omitempty"`
	Drives        []drive        `json:"drives" fc:"required"`
	Interfaces    []netDevice    `json:"network-interfaces,omitempty"`
	BootSource    *bootSource    `json:"boot-source,omitempty" fc:"required"`
	Logger        *loggerConfig  `json:"logger,omitempty"`
	MachineConfig *machineConfig `json:"machine-config,omitempty"`
	Metrics       *metricsConfig `json:"metrics,omitempty"`
	Vsock         *vsockConfig   `json:"vsock,omitempty"`
	Entropy       *entropy       `json:"entropy,omitempty"`
}

// fault is a text for fault_message.
type fault string

func (f fault) Error() string { return string(f) }

func faultf(format string, args ...any) error { return fault(fmt.Errorf(format, args...).Error()) }

// resources are what a VM is to be built of.
type resources struct {
	config
	log *logger
	// bind makes the socket of the vsock device, unbind takes it away.
	bind   func(vsockConfig) error
	unbind func()
	// taps are the TAPs of the network devices, open as long as the fake runs.
	taps []*os.File
	// bootSpecific: something was set after which no snapshot may be loaded.
	bootSpecific bool
}

func newResources(log *logger) *resources {
	r := &resources{log: log}
	r.Drives = []drive{}
	r.MachineConfig = &machineConfig{VCPUCount: 1, MemSizeMiB: 128}
	return r
}

// maxCommandLine is CMDLINE_MAX_SIZE of src/arch/x86_64, in bytes.
const maxCommandLine = 2048

func (r *resources) setBootSource(b bootSource) error {
	r.bootSpecific = true
	if err := readable(b.KernelImagePath); err != nil {
		return faultf("The kernel file cannot be opened: %s", osError(err))
	}
	if b.InitrdPath != nil {
		if err := readable(*b.InitrdPath); err != nil {
			return faultf("The initrd file cannot be opened due to invalid path or invalid permissions. %s", osError(err))
		}
	}
	if b.BootArgs != nil && len(*b.BootArgs) >= maxCommandLine {
		return faultf("The kernel command line is invalid: Inserting string into cmdline failed: Command line is too large.")
	}
	if b.BootArgs != nil && strings.ContainsFunc(*b.BootArgs, func(c rune) bool { return c < ' ' || c > '~' }) {
		return faultf("The kernel command line is invalid: String contains a non-printable ASCII character.")
	}
	r.BootSource = &b
	return nil
}

func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// openDrive opens the file of a drive as the guest uses it.
func openDrive(path string, readOnly bool) error {
	flag := os.O_RDWR
	if readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return faultf("Virtio backend error: Error manipulating the backing file: %s %s", osError(err), path)
	}
	return f.Close()
}

func (r *resources) setDrive(d drive) error {
	r.bootSpecific = true
	if d.CacheType == "" {
		d.CacheType = "Unsafe"
	}
	if err := checkResourceID(d.ID); err != nil {
		return err
	}
	if d.PathOnHost == nil || d.Socket != nil {
		return faultf("Unable to create the virtio block device: Block config does not match the device type")
	}
	if err := openDrive(*d.PathOnHost, d.readOnly()); err != nil {
		return faultf("Unable to create the virtio block device: %w", err)
	}
	if d.IsRootDevice && slices.ContainsFunc(r.Drives, func(o drive) bool { return o.IsRootDevice && o.ID != d.ID }) {
		return faultf("A root block device already exists!")
	}
	same := slices.IndexFunc(r.Drives, func(o drive) bool { return o.ID == d.ID })
	switch {
	case same >= 0:
		r.Drives[same] = d
	case d.IsRootDevice: // the first one, whenever it comes
		r.Drives = slices.Insert(r.Drives, 0, d)
	default:
		r.Drives = append(r.Drives, d)
	}
	return nil
}

// setInterface opens a TAP of the host, which stays open (src/vmm/src/devices/virtio/net/tap.rs).
func (r *resources) setInterface(n netDevice) error {
	r.bootSpecific = true
	if err := checkResourceID(n.ID); err != nil {
		return err
	}
	if n.GuestMAC != nil {
		if _, err := net.ParseMAC(*n.GuestMAC); err != nil {
			return faultf("Invalid MAC address: %s", *n.GuestMAC)
		}
	}
	if len(r.Interfaces) > 0 {
		violation("a second network device, %q: banger gives one", n.ID)
	}
	f, err := tap.Open(n.HostDevName)
	if err != nil {
		return faultf("Could not create the network device: Open tap device failed: %s", err)
	}
	r.taps = append(r.taps, f)
	r.Interfaces = append(r.Interfaces, n)
	return nil
}

func (r *resources) setMachine(m machineConfig) error {
	r.bootSpecific = true
	if m.VCPUCount < 1 || m.VCPUCount > 32 || m.SMT && m.VCPUCount > 1 && m.VCPUCount%2 != 0 {
		return faultf("The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled.")
	}
	if m.MemSizeMiB == 0 || m.HugePages != nil && *m.HugePages == "2M" && m.MemSizeMiB%2 != 0 {
		return faultf("The memory size (MiB) is either 0, or not a multiple of the configured page size.")
	}
	if r.Balloon != nil && uint64(r.Balloon.AmountMiB) > m.MemSizeMiB {
		return faultf("The memory size (MiB) is smaller than the previously set balloon device target size.")
	}
	r.MachineConfig = &m
	return nil
}

func (r *resources) setVsock(v vsockConfig) error {
	r.bootSpecific = true
	if v.GuestCID < 3 {
		violation("a vsock device with guest_cid %d: at least 3", v.GuestCID)
	}
	if r.Vsock != nil { // the socket of the one before goes with it
		r.unbind()
		if err := os.Remove(r.Vsock.UDSPath); err != nil {
			return faultf("Cannot create backend for vsock device: %s", osError(err))
		}
		r.Vsock = nil
	}
	if err := r.bind(v); err != nil {
		return faultf("Cannot create backend for vsock device: Error binding to the host-side Unix socket: %s", osError(err))
	}
	r.Vsock = &v
	return nil
}

func (r *resources) setBalloon(b balloon) error {
	r.bootSpecific = true
	if uint64(b.AmountMiB) > r.MachineConfig.MemSizeMiB {
		return faultf("Amount of pages requested is too large.")
	}
	r.Balloon = &b
	return nil
}

func (r *resources) setEntropy(e entropy) error {
	r.bootSpecific = true
	r.Entropy = &e
	return nil
}

func (r *resources) setLogger(l loggerConfig) error {
	level := levels["info"]
	if l.Level != nil {
		var ok bool
		if level, ok = levels[strings.ToLower(*l.Level)]; !ok {
			return faultf("invalid value: string %q, expected one of Off, Trace, Debug, Info, Warn, Error", *l.Level)
		}
	}
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if l.LogPath != nil {
		fd, err := openLog(*l.LogPath)
		if err != nil {
			return faultf("Failed to open target file: %s", osError(err))
		}
		r.log.fd = fd
	}
	r.log.level = level
	if l.ShowLevel != nil {
		r.log.showLevel = *l.ShowLevel
	}
	return nil
}

func (r *resources) setMetrics(m metricsConfig) error {
	fd, err := openLog(m.MetricsPath)
	if err != nil {
		return faultf("Cannot initialize the metrics system due to bad user input: %s", osError(err))
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	r.Metrics = &m
	return nil
}

// section is one of a configuration file, with the words it gives its errors.
type section struct {
	// request is the one that the section stands for.
	request string
	words   string
	variant string
	set     func() error
}

// sections are those of c in the order in which Firecracker takes them.
func (r *resources) sections(c config) []section {
	var out []section
	add := func(given bool, s section) {
		if given {
			out = append(out, s)
		}
	}
	add(c.Logger != nil, section{"PUT /logger", "Logger error", "Logger", func() error { return r.setLogger(*c.Logger) }})
	add(c.Metrics != nil, section{"PUT /metrics", "Metrics error", "Metrics", func() error { return r.setMetrics(*c.Metrics) }})
	add(c.MachineConfig != nil, section{"PUT /machine-config", "VM config error", "VmConfig", func() error { return r.setMachine(*c.MachineConfig) }})
	add(c.BootSource != nil, section{"PUT /boot-source", "Boot source error", "BootSource", func() error { return r.setBootSource(*c.BootSource) }})
	for _, d := range c.Drives {
		add(true, section{"PUT /drives/" + d.ID, "Block device error", "BlockDevice", func() error { return r.setDrive(d) }})
	}
	for _, n := range c.Interfaces {
		add(true, section{"PUT /network-interfaces/" + n.ID, "Network config error", "NetDevice", func() error { return r.setInterface(n) }})
	}
	add(c.Vsock != nil, section{"PUT /vsock", "Vsock device error", "VsockDevice", func() error { return r.setVsock(*c.Vsock) }})
	add(c.Balloon != nil, section{"PUT /balloon", "Balloon device error", "BalloonDevice", func() error { return r.setBalloon(*c.Balloon) }})
	add(c.Entropy != nil, section{"PUT /entropy", "Entropy device error", "EntropyDevice", func() error { return r.setEntropy(*c.Entropy) }})
	return out
}

// load takes a configuration file. Firecracker passes over top-level names it does not know: here they are an error, since a name that is
// misspelt would be a device that is missing. debug is an error as Rust shows it.
func (r *resources) load(text []byte, spec *spec) (debug string, err error) {
	var c config
	if err := decode(text, &c); err != nil {
		if top := unknownTop(text); top != "" {
			violation("the configuration file has %q, which Firecracker ignores", top)
		}
		return fmt.Sprintf("ParseFromJson(InvalidJson(Error(%q)))", err.Error()), faultf("Invalid JSON: %w", err)
	}
	// The sections as they were given, not as they were understood.
	var given map[string]json.RawMessage
	if err := json.Unmarshal(text, &given); err != nil {
		return "", err
	}
	bodies := bodiesOf(given, c)
	for _, s := range r.sections(c) {
		method, path, _ := strings.Cut(s.request, " ")
		err := spec.check(method, path, bodies[s.request])
		if err == nil {
			err = s.set()
		}
		if err != nil {
			return fmt.Sprintf("ParseFromJson(%s(%q))", s.variant, err.Error()), faultf("%s: %w", s.words, err)
		}
	}
	return "", nil
}

// bodiesOf are the sections of a file as the bodies of their requests.
func bodiesOf(given map[string]json.RawMessage, c config) map[string][]byte {
	bodies := map[string][]byte{}
	for name, text := range given {
		bodies["PUT /"+name] = text
	}
	var drives []json.RawMessage
	if json.Unmarshal(given["drives"], &drives) == nil && len(drives) == len(c.Drives) {
		for i, d := range c.Drives {
			bodies["PUT /drives/"+d.ID] = drives[i]
		}
	}
	var interfaces []json.RawMessage
	if json.Unmarshal(given["network-interfaces"], &interfaces) == nil && len(interfaces) == len(c.Interfaces) {
		for i, n := range c.Interfaces {
			bodies["PUT /network-interfaces/"+n.ID] = interfaces[i]
		}
	}
	return bodies
}

// unknownTop is the first name in a configuration file that is not Firecracker's; serial is none of a file, though it has a request.
func unknownTop(text []byte) string {
	var given map[string]json.RawMessage
	if json.Unmarshal(text, &given) != nil {
		return ""
	}
	known := []string{"balloon", "drives", "boot-source", "cpu-config", "logger", "machine-config", "metrics", "mmds-config",
		"network-interfaces", "vsock", "entropy", "pmem", "memory-hotplug"}
	var unknown []string
	for name := range given {
		if !slices.Contains(known, name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	if len(unknown) == 0 {
		return ""
	}
	return unknown[0]
}
