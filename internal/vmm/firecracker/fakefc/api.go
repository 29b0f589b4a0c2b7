package fakefc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// States, as GET / gives them.
const (
	stateNotStarted = "Not started"
	stateRunning    = "Running"
	statePaused     = "Paused"
)

// Faults of requests in the wrong order (src/vmm/src/rpc_interface.rs).
const (
	errPostBoot       = fault("The requested operation is not supported after starting the microVM.")
	errPreBoot        = fault("The requested operation is not supported before starting the microVM.")
	errLoadNotAllowed = fault("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	errEmptyID        = fault("The ID cannot be empty.")
	errIDMismatch     = fault("The id from the path does not match the id from the body!")
	errNoBalloon      = fault("Balloon config error: No balloon device found.")
)

// handle answers a request of the API, after the knobs had their say.
func (f *fake) handle(r request) (status int, body []byte) {
	f.note(r.method+" "+r.path, r.body)
	text := ""
	if r.hasBody {
		text = fmt.Sprintf(" with body %q", r.body)
	}
	f.log.apif("The API server received a %s request on %q%s.", strings.ToUpper(r.method[:1])+strings.ToLower(r.method[1:]), r.path, text)
	moment := r.method + " " + r.path
	if r.hasBody {
		moment += " " + string(r.body)
	}
	f.moment(moment)
	out, err := f.lied(moment, r)
	switch {
	case err != nil:
		f.log.errorf("Received Error. Status code: 400 Bad Request. Message: %s", err)
		b, _ := json.Marshal(map[string]string{"fault_message": err.Error()})
		return 400, b
	case out == nil:
		f.log.apif("The request was executed successfully. Status code: 204 No Content.")
		return 204, nil
	}
	b, err := json.Marshal(out)
	if err != nil {
		violation("the fake's own answer: %v", err)
	}
	f.log.apif("The request was executed successfully. Status code: 200 OK.")
	return 200, b
}

// lied is the answer, unless a knob has one.
func (f *fake) lied(moment string, r request) (any, error) {
	if err := f.spec.check(r.method, r.path, r.body); err != nil {
		return nil, err
	}
	if text, ok := find(f.knobs.FaultAt, moment); ok {
		return nil, fault(text)
	}
	for _, knob := range f.knobs.LieAt {
		if is(knob, moment) {
			return nil, nil
		}
	}
	return f.answer(r)
}

// note writes a line to RequestsFile.
func (f *fake) note(head string, body []byte) {
	line := head
	if len(body) > 0 {
		var v any
		if err := json.Unmarshal(body, &v); err == nil {
			body, _ = json.Marshal(v) // keys in order
		}
		line += " " + string(body)
	}
	if line == f.noted {
		return
	}
	f.noted = line
	file, err := os.OpenFile(RequestsFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fakefc:", err)
		return
	}
	defer file.Close()
	fmt.Fprintln(file, line)
}

// answer parses a request and does what it asks for (src/firecracker/src/api_server/parsed_request.rs).
func (f *fake) answer(r request) (any, error) {
	path := strings.Split(strings.TrimSuffix(strings.TrimPrefix(r.path, "/"), "/"), "/")
	if r.method == "GET" && r.hasBody {
		return nil, faultf("GET request cannot have a body.")
	}
	if r.method != "GET" && !r.hasBody {
		return nil, faultf("Empty %s request.", r.method)
	}
	rest := path[1:]
	switch r.method {
	case "GET":
		return f.get(path[0], rest)
	case "PUT":
		return nil, f.put(path[0], rest, r.body)
	}
	return nil, f.patch(path[0], rest, r.body)
}

func unknown(method, head string) error {
	return faultf("Invalid request method and/or path: %s %s.", method, head)
}

func (f *fake) get(head string, rest []string) (any, error) {
	switch head + " " + strings.Join(rest, "/") {
	case " ":
		return map[string]string{"id": f.opt.id, "state": f.state, "vmm_version": f.knobs.Version, "app_name": "Firecracker"}, nil
	case "version ":
		return map[string]string{"firecracker_version": f.knobs.Version}, nil
	case "vm config":
		return f.res.config, nil
	case "machine-config ":
		return f.res.MachineConfig, nil
	case "balloon ":
		if f.res.Balloon == nil {
			return nil, errNoBalloon
		}
		return f.res.Balloon, nil
	}
	return nil, unknown("GET", head)
}

// body reads a request's body.
func body[T any](text []byte) (v T, err error) {
	if err := decode(text, &v); err != nil {
		return v, faultf("An error occurred when deserializing the json body of a request: %w.", err)
	}
	return v, nil
}

// preBoot reads a body and sets what it is, where that is still possible.
func preBoot[T any](f *fake, text []byte, words string, set func(T) error) error {
	v, err := body[T](text)
	if err != nil {
		return err
	}
	if f.state != stateNotStarted {
		return errPostBoot
	}
	if err := set(v); err != nil {
		return faultf("%s: %w", words, err)
	}
	return nil
}

// idOf is the name in a path of two.
func idOf(rest []string) (string, error) {
	if len(rest) == 0 || rest[0] == "" {
		return "", errEmptyID
	}
	return rest[0], checkResourceID(rest[0])
}

func (f *fake) put(head string, rest []string, text []byte) error {
	switch head {
	case "boot-source":
		return preBoot(f, text, "Boot source error", f.res.setBootSource)
	case "machine-config":
		return preBoot(f, text, "Machine config error", f.res.setMachine)
	case "vsock":
		return preBoot(f, text, "Vsock config error", f.res.setVsock)
	case "balloon":
		return preBoot(f, text, "Balloon config error", f.res.setBalloon)
	case "entropy":
		return preBoot(f, text, "Entropy device error", f.res.setEntropy)
	case "logger":
		return preBoot(f, text, "Logger error", f.res.setLogger)
	case "metrics":
		return preBoot(f, text, "Metrics error", f.res.setMetrics)
	case "drives":
		return f.putDrive(rest, text)
	case "actions":
		return f.putAction(text)
	case "snapshot":
		switch strings.Join(rest, "/") {
		case "create":
			return f.createSnapshot(text)
		case "load":
			return f.loadSnapshot(text)
		case "":
			return faultf("Missing snapshot operation type.")
		}
	case "serial", "network-interfaces", "mmds", "pmem", "hotplug", "cpu-config":
		violation("PUT /%s: banger has no use for it", head)
		return faultf("fakefc has no %s", head)
	}
	return unknown("PUT", head)
}

func (f *fake) putDrive(rest []string, text []byte) error {
	id, err := idOf(rest)
	if err != nil {
		return err
	}
	d, err := body[drive](text)
	if err == nil && d.ID != id {
		err = errIDMismatch
	}
	if err != nil {
		return err
	}
	return preBoot(f, text, "Drive config error", f.res.setDrive)
}

// guestReacts is how long a guest takes to do something about its keyboard.
const guestReacts = 50 * time.Millisecond

// action is the body of PUT /actions.
type action struct {
	Type string `json:"action_type" fc:"required" enum:"FlushMetrics|InstanceStart|SendCtrlAltDel"`
}

func (f *fake) putAction(text []byte) error {
	a, err := body[action](text)
	if err != nil {
		return err
	}
	switch {
	case a.Type == "InstanceStart" && f.state != stateNotStarted:
		return errPostBoot
	case a.Type == "InstanceStart":
		if err := f.build(); err != nil {
			return faultf("Start microvm error: %w", err)
		}
	case f.state == stateNotStarted:
		return errPreBoot
	case a.Type == "SendCtrlAltDel":
		time.AfterFunc(guestReacts, f.guest.ctrlAltDel) // the answer comes first, as with a guest that runs programs for it
	}
	return nil
}

// vmState is the body of PATCH /vm.
type vmState struct {
	State string `json:"state" fc:"required" enum:"Paused|Resumed"`
}

// drivePatch is the body of PATCH /drives/{id}.
type drivePatch struct {
	ID          string       `json:"drive_id" fc:"required"`
	PathOnHost  *string      `json:"path_on_host,omitempty"`
	RateLimiter *rateLimiter `json:"rate_limiter,omitempty"`
}

// balloonPatch is the body of PATCH /balloon.
type balloonPatch struct {
	AmountMiB uint32 `json:"amount_mib" fc:"required"`
}

func (f *fake) patch(head string, rest []string, text []byte) error {
	switch head {
	case "vm":
		v, err := body[vmState](text)
		if err != nil {
			return err
		}
		return f.setState(v.State)
	case "drives":
		return f.patchDrive(rest, text)
	case "balloon":
		if len(rest) > 0 {
			violation("PATCH /balloon/%s: banger has no use for it", rest[0])
			return unknown("PATCH", head)
		}
		return f.patchBalloon(text)
	case "machine-config":
		return preBoot(f, text, "Machine config error", f.res.setMachine)
	}
	return unknown("PATCH", head)
}

// setState pauses or resumes; both as often as one likes.
func (f *fake) setState(to string) error {
	if f.state == stateNotStarted {
		return errPreBoot
	}
	var err error
	if to == "Paused" {
		err = f.guest.pause()
		f.state = statePaused
	} else {
		err = f.guest.resume()
		f.state = stateRunning
	}
	if err != nil {
		return faultf("Internal VMM error: %w", err)
	}
	return nil
}

func (f *fake) patchDrive(rest []string, text []byte) error {
	id, err := idOf(rest)
	if err != nil {
		return err
	}
	p, err := body[drivePatch](text)
	switch {
	case err != nil:
		return err
	case p.ID != id:
		return errIDMismatch
	case f.state == stateNotStarted:
		return errPreBoot
	}
	for i, d := range f.res.Drives {
		if d.ID != id {
			continue
		}
		if p.PathOnHost == nil {
			if p.RateLimiter != nil {
				return nil
			}
			return faultf("Drive config error: Unable to patch the block device: Running method expected different backend. Please verify the request arguments.")
		}
		err := openDrive(*p.PathOnHost, d.readOnly())
		if err == nil {
			f.res.Drives[i].PathOnHost = p.PathOnHost
			err = f.guest.resizeDrive(id, *p.PathOnHost)
		}
		if err != nil {
			return faultf("Drive config error: Unable to patch the block device: %w Please verify the request arguments.", err)
		}
		return nil
	}
	return faultf("Drive config error: Unable to patch the block device: Device not found. Please verify the request arguments.")
}

func (f *fake) patchBalloon(text []byte) error {
	p, err := body[balloonPatch](text)
	switch {
	case err != nil:
		return err
	case f.state == stateNotStarted:
		return errPreBoot
	case f.res.Balloon == nil:
		return errNoBalloon
	case !f.guest.active():
		return faultf("Balloon config error: Device is inactive, check if balloon driver is enabled in guest kernel.")
	case uint64(p.AmountMiB) > f.res.MachineConfig.MemSizeMiB:
		return faultf("Balloon config error: Amount of pages requested is too large.")
	}
	f.res.Balloon.AmountMiB = p.AmountMiB
	return nil
}

// kvmError is what opening /dev/kvm may give.
func kvmError(knob string) error {
	const advice = " Make sure the user launching the firecracker process is configured on the /dev/kvm file's ACL."
	creating := func(text string) error { return faultf("Kvm error: Error creating KVM object: %s%s", text, advice) }
	switch knob {
	case "":
		return nil
	case KVMMissing:
		return creating("No such file or directory (os error 2)")
	case KVMPermission:
		return creating("Permission denied (os error 13)")
	case KVMNoHardware:
		return creating("No such device (os error 19)")
	case KVMTooOld:
		return faultf("Kvm error: Missing KVM capabilities: 0x15")
	}
	return errors.New("fakefc: no such knob for KVM: " + knob)
}
