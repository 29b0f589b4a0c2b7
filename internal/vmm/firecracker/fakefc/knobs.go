package fakefc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Files of the fake. KnobsFile is read from the working directory, which is the VM's, or from beside the program; all others are
// written to the former.
const (
	// KnobsFile holds Knobs as JSON.
	KnobsFile = "fakefc.json"
	// BootsFile holds how often the fake booted a guest there, in decimal.
	BootsFile = "fakefc.boots"
	// RequestsFile holds a line for each request: method, path and the body with its keys in order; for a configuration
	// file "CONFIG", its name and its content. What repeats the line before is left out.
	RequestsFile = "fakefc.requests"
	// ViolationFile appears when a request was one the real Firecracker's document forbids, or that it would pass over.
	ViolationFile = "fakefc.violation"
	// RefusedFile appears when a second use of the boot's secret was refused.
	RefusedFile = "fakefc.refused"
)

// Environment of the fake. Each does what the knob of that name does, and wins over it.
const (
	// EnvSpec names Firecracker's API document, against which every request is checked.
	EnvSpec = "BANGER_FIRECRACKER_SPEC"
	// EnvVersion is the version it claims to be.
	EnvVersion = "FAKEFC_VERSION"
	// EnvBackend is BackendGuest or BackendQEMU.
	EnvBackend = "FAKEFC_BACKEND"
)

// Version is what the fake claims to be where nobody says otherwise.
const Version = "1.17.0"

// SnapshotVersion is the version of the format of snapshots (SNAPSHOT_VERSION of Firecracker 1.17).
const SnapshotVersion = "11.0.0"

// Backends: what is behind the fake.
const (
	// BackendGuest is a fakeguest.
	BackendGuest = "guest"
	// BackendQEMU boots what it is given in QEMU.
	BackendQEMU = "qemu"
)

// What may be wrong with KVM.
const (
	KVMMissing    = "missing"    // there is no /dev/kvm
	KVMPermission = "permission" // it may not be opened
	KVMNoHardware = "hardware"   // its module is there, what it needs of the CPU is not
	KVMTooOld     = "old"        // it lacks capabilities
)

// MomentBoot is a moment at which something may happen: the VM is being built. Any other is a request, as "PATCH /vm": its
// method and path, and behind a space something that is in its body.
const MomentBoot = "boot"

// Knobs are ways to misbehave. The zero value behaves.
type Knobs struct {
	// Version, Spec and Backend are as the environment of that name.
	Version string `json:"version,omitempty"`
	Spec    string `json:"spec,omitempty"`
	Backend string `json:"backend,omitempty"`
	// CrashAtStart: exit status 1 and this on stderr, before anything else.
	CrashAtStart string `json:"crash_at_start,omitempty"`
	// HangAtStart: no socket of the API appears.
	HangAtStart bool `json:"hang_at_start,omitempty"`
	// KVM is one of KVMMissing and so on.
	KVM string `json:"kvm,omitempty"`
	// HangAt are moments that do not end, DieAt those at which it exits with a status, SignalAt those at which a signal ends it.
	HangAt   []string       `json:"hang_at,omitempty"`
	DieAt    map[string]int `json:"die_at,omitempty"`
	SignalAt map[string]int `json:"signal_at,omitempty"`
	// FaultAt answers 400 and this fault_message, LieAt answers 204 and does nothing.
	FaultAt map[string]string `json:"fault_at,omitempty"`
	LieAt   []string          `json:"lie_at,omitempty"`
	// LogLine is logged, as an error, when the guest boots.
	LogLine string `json:"log_line,omitempty"`
	// NeverCall: the guest of the first so many boots does not call.
	NeverCall int `json:"never_call,omitempty"`
	// CallAfter: the guest does not call before so many milliseconds.
	CallAfter int64 `json:"call_after_ms,omitempty"`
	// Garbage: the guest sends noise where it should call.
	Garbage bool `json:"garbage,omitempty"`
	// WrongVersion: the agent is of another version.
	WrongVersion bool `json:"wrong_version,omitempty"`
	// CallTwice: the secret is used a second time after the first.
	CallTwice bool `json:"call_twice,omitempty"`
	// Flood writes so many bytes to the console before anything else.
	Flood int64 `json:"flood,omitempty"`
	// Wedge: an announced end does not happen.
	Wedge bool `json:"wedge,omitempty"`
}

// Write writes the knobs for the VM in dir.
func (k Knobs) Write(dir string) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, KnobsFile), b, 0o600)
}

// readKnobs reads the knobs of this VM, else those of this program.
func readKnobs() (k Knobs, err error) {
	b, err := os.ReadFile(KnobsFile)
	if errors.Is(err, os.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join(filepath.Dir(os.Args[0]), KnobsFile))
	}
	switch {
	case err == nil:
		if err = decode(b, (*knobsJSON)(&k)); err != nil {
			return k, fmt.Errorf("%s: %w", KnobsFile, err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return k, err
	}
	for name, to := range map[string]*string{EnvVersion: &k.Version, EnvSpec: &k.Spec, EnvBackend: &k.Backend} {
		if v := os.Getenv(name); v != "" {
			*to = v
		}
	}
	if k.Version == "" {
		k.Version = Version
	}
	return k, nil
}

// knobsJSON is Knobs to decode, whose fields are all there is.
type knobsJSON Knobs

// is reports whether moment is the one a knob names.
func is(knob, moment string) bool {
	if method, rest, ok := strings.Cut(knob, " "); ok {
		path, text, _ := strings.Cut(rest, " ")
		head := method + " " + path
		return moment == head && text == "" || strings.HasPrefix(moment, head+" ") && strings.Contains(moment[len(head):], text)
	}
	return knob == moment
}

func find[V any](knobs map[string]V, moment string) (V, bool) {
	for knob, v := range knobs {
		if is(knob, moment) {
			return v, true
		}
	}
	var none V
	return none, false
}

// countBoot returns how often there was a boot in this directory, this one included.
func countBoot() (int, error) {
	b, _ := os.ReadFile(BootsFile) // not there: 0
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	n++
	return n, os.WriteFile(BootsFile, []byte(strconv.Itoa(n)), 0o600)
}
