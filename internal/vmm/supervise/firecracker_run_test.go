package supervise

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeguest"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
	"git.thaloco.com/thaloco/banger/internal/vmm/watch"
)

// snapDir is where the tests put snapshots, in the VM's directory.
const snapDir = "fakesnap"

// fcRequest is something that is asked of a Firecracker that runs.
type fcRequest struct {
	moment string // as fakefc's knobs name it
	do     func(*run) error
	// lie is what the error says where it answers and does nothing; empty where nobody can tell.
	lie string
}

func fcRequests() map[string]fcRequest {
	return map[string]fcRequest{
		"pause": {moment: "PATCH /vm Paused", do: func(r *run) error { return r.Pause(r.ctx) }},
		"resume": {moment: "PATCH /vm Resumed", do: func(r *run) error {
			if err := r.Pause(r.ctx); err != nil {
				return err
			}
			return r.Resume(r.ctx)
		}},
		"resize":  {moment: "PATCH /drives/data", do: func(r *run) error { return r.ResizeDrive(r.ctx, wire.DriveData) }},
		"balloon": {moment: "PATCH /balloon", do: func(r *run) error { return r.SetBalloon(r.ctx, 16) }},
		"snapshot": {moment: "PUT /snapshot/create", lie: "was not written", do: func(r *run) error {
			if err := os.Mkdir(filepath.Join(r.dir, snapDir), 0o700); err != nil {
				return err
			}
			if err := r.Pause(r.ctx); err != nil {
				return err
			}
			err := r.Snapshot(r.ctx, snapDir)
			if left, _ := os.ReadDir(filepath.Join(r.dir, snapDir)); err != nil && len(left) > 0 {
				return errors.Join(err, errors.New("a part of it is left"))
			}
			return err
		}},
	}
}

// TestFirecrackerRequestFails: what is asked of a Firecracker that runs ends in an error that says what happened, and soon. Where it lives, so
// does the VM, and can be killed.
func TestFirecrackerRequestFails(t *testing.T) {
	for name, q := range fcRequests() {
		asked, _, _ := strings.Cut(q.moment, " Paused")
		asked, _, _ = strings.Cut(asked, " Resumed")
		for how, c := range map[string]struct {
			knobs      fakefc.Knobs
			says, hint string
			dies       string // in the detail of its end
		}{
			"dies":   {knobs: fakefc.Knobs{DieAt: map[string]int{q.moment: 148}}, says: "system call that its filter forbids", dies: "system call that its filter forbids"},
			"killed": {knobs: fakefc.Knobs{SignalAt: map[string]int{q.moment: int(unix.SIGSEGV)}}, says: "ended by signal segmentation fault", dies: "signal segmentation fault"},
			"faults": {knobs: fakefc.Knobs{FaultAt: map[string]string{q.moment: "No space left on device (os error 28)"}}, says: asked + ": No space left on device", hint: "make room"},
			"hangs":  {knobs: fakefc.Knobs{HangAt: []string{q.moment}}, says: asked + ": no answer within 2s", hint: "banger vm kill dev"},
			"lies":   {knobs: fakefc.Knobs{LieAt: []string{q.moment}}, says: q.lie},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				r := startFC(t, c.knobs, nil, impatience(how)...)
				r.awaitFull(t)
				err := q.do(r)
				if c.says == "" {
					if err != nil {
						t.Error(err)
					}
				} else if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(api.AsError(err).Hint, c.hint) || strings.Contains(err.Error(), "is left") {
					t.Errorf("the error is %q, the hint %q, want %q, %q", err, api.AsError(err).Hint, c.says, c.hint)
				}
				if c.dies != "" {
					if end := r.awaitEnd(t); end.Cause != vmm.EndCrashed || !strings.Contains(end.Detail, c.dies) {
						t.Errorf("the end is %+v", end)
					}
				} else if st := r.Status(); st.Phase == vmm.PhaseEnded {
					t.Errorf("the status is %+v", st)
				}
				if how == "faults" {
					_ = r.Resume(r.ctx) // of resume it is refused again
					if name != "resume" {
						r.healthy(t)
					}
				}
				if err := r.Kill(r.ctx); err != nil {
					t.Error(err)
				}
				nothingLeft(t, r.dir)
				_ = os.RemoveAll(filepath.Join(r.dir, snapDir))
				worksAgain(t, r.dir, r.spec)
			})
		}
	}
}

// impatience are the supervisor's arguments where Firecracker hangs.
func impatience(how string) []string {
	if how == "hangs" {
		return []string{"--request-timeout", "2s"}
	}
	return nil
}

// TestFirecrackerKillDuringSnapshot: a snapshot may take minutes, and a kill does not wait for it.
func TestFirecrackerKillDuringSnapshot(t *testing.T) {
	t.Parallel()
	dir, spec := newFCVM(t, fakefc.Knobs{HangAt: []string{"PUT /snapshot/create"}})
	if err := os.Mkdir(filepath.Join(dir, snapDir), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, 30*time.Second)
	m, err := newEngine(t).Start(ctx, dir, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	r := &run{machine: m.(*machine), ctx: ctx, dir: dir, spec: spec}
	r.awaitFull(t)
	if err := r.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- r.Snapshot(ctx, snapDir) }()
	r.awaitRequest(t, "PUT /snapshot/create")
	if err := r.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("there is a snapshot")
	}
	nothingLeft(t, dir)
	worksAgain(t, dir, spec)
}

// awaitRequest waits until the fake was asked for something.
func (r *run) awaitRequest(t *testing.T, head string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if b, _ := os.ReadFile(filepath.Join(r.dir, fakefc.RequestsFile)); strings.Contains(string(b), head) {
			return
		}
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			t.Fatalf("nobody asked for %s", head)
		}
	}
}

// TestFirecrackerRestoreFails: a snapshot that cannot be gone on with is an error, and stays as it was.
func TestFirecrackerRestoreFails(t *testing.T) {
	t.Parallel()
	const load = "PUT /snapshot/load"
	r := startFC(t, fakefc.Knobs{}, nil)
	r.awaitFull(t)
	if err := os.Mkdir(filepath.Join(r.dir, snapDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Pause(r.ctx), r.Snapshot(r.ctx, snapDir), r.Kill(r.ctx)); err != nil {
		t.Fatal(err)
	}
	spec := r.spec
	spec.Restore = snapDir
	info := filepath.Join(r.dir, snapDir, paths.SnapshotInfo)
	whole, err := os.ReadFile(info)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		knobs      fakefc.Knobs
		info       string // in place of the right one
		says, hint string
		alive      bool
	}{
		"dies":         {knobs: fakefc.Knobs{DieAt: map[string]int{load: 148}}, says: "start firecracker: exit status 148"},
		"killed":       {knobs: fakefc.Knobs{SignalAt: map[string]int{load: int(unix.SIGSEGV)}}, says: "signal segmentation fault"},
		"faults":       {knobs: fakefc.Knobs{FaultAt: map[string]string{load: "Invalid data version: 9.9.9"}}, says: load + ": Invalid data version", hint: "without it"},
		"hangs":        {knobs: fakefc.Knobs{HangAt: []string{load}}, says: load + ": no answer within 2s"},
		"lies":         {knobs: fakefc.Knobs{LieAt: []string{load}}, says: `it is in state "Not started"`},
		"no kvm":       {knobs: fakefc.Knobs{KVM: fakefc.KVMPermission}, says: "Permission denied", hint: "usermod"},
		"not whole":    {info: "-", says: "holds no whole snapshot", alive: true},
		"a later one":  {info: `{"version":2,"engine":"firecracker","token":"x"}`, says: "version 2", alive: true},
		"other engine": {info: `{"version":1,"engine":"qemu","token":"x"}`, says: `engine "qemu"`, alive: true},
		"no JSON":      {info: "{", says: paths.SnapshotInfo, alive: true},
	} {
		t.Run(name, func(t *testing.T) {
			text := whole
			if c.info != "" {
				text = []byte(c.info)
			}
			if err := errors.Join(c.knobs.Write(r.dir), os.WriteFile(info, text, 0o600)); err != nil {
				t.Fatal(err)
			}
			if c.info == "-" {
				_ = os.Remove(info)
			}
			m, err := newEngine(t, impatience(name)...).Start(r.ctx, r.dir, spec)
			if err == nil {
				_ = m.Kill(r.ctx)
				t.Fatal("it was restored")
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(api.AsError(err).Hint, c.hint) || errors.Is(err, vmm.ErrStart) == c.alive {
				t.Errorf("the error is %q, the hint %q, a vmm.ErrStart: %v", err, api.AsError(err).Hint, !c.alive)
			}
			nothingLeft(t, r.dir)
		})
	}
	if err := os.WriteFile(info, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	worksAgain(t, r.dir, spec)
}

// TestFirecrackerEnds: whoever dies, nothing is left.
func TestFirecrackerEnds(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(*testing.T, *run, vmm.Status)
		cause vmm.EndCause
		says  string
	}{
		"VMM killed":         {func(t *testing.T, _ *run, st vmm.Status) { kill(t, st.VMMPID, syscall.SIGKILL) }, vmm.EndCrashed, "firecracker was ended by signal killed"},
		"VMM aborted":        {func(_ *testing.T, r *run, _ vmm.Status) { r.order("crash") }, vmm.EndCrashed, "firecracker was ended by signal aborted: Firecracker panicked at"},
		"VMM out of file":    {func(t *testing.T, _ *run, st vmm.Status) { kill(t, st.VMMPID, syscall.SIGXFSZ) }, vmm.EndCrashed, "ulimit -f"},
		"VMM, bus error":     {func(t *testing.T, _ *run, st vmm.Status) { kill(t, st.VMMPID, syscall.SIGBUS) }, vmm.EndCrashed, "firecracker lost memory"},
		"VMM hung up":        {func(t *testing.T, _ *run, st vmm.Status) { kill(t, st.VMMPID, syscall.SIGHUP) }, vmm.EndKilled, "a signal of the host"},
		"VMM terminated":     {func(t *testing.T, _ *run, st vmm.Status) { kill(t, st.VMMPID, syscall.SIGTERM) }, vmm.EndKilled, "a signal of the host"},
		"supervisor stopped": {func(t *testing.T, _ *run, st vmm.Status) { kill(t, st.SupervisorPID, syscall.SIGTERM) }, vmm.EndKilled, ""},
		"supervisor killed":  {func(t *testing.T, _ *run, st vmm.Status) { kill(t, st.SupervisorPID, syscall.SIGKILL) }, vmm.EndLost, "vanished"},
		"reboot fails": {func(t *testing.T, r *run, _ vmm.Status) {
			if err := (fakefc.Knobs{CrashAtStart: "no luck this time"}).Write(r.dir); err != nil {
				t.Fatal(err)
			}
			r.order("reboot")
		}, vmm.EndStart, "start firecracker: exit status 1: no luck this time"},
		"panic": {func(_ *testing.T, r *run, _ vmm.Status) { r.order(fakeguest.VerbPanic) }, vmm.EndUnexpected, "kernel panic"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startFC(t, fakefc.Knobs{}, nil)
			c.do(t, r, r.awaitFull(t))
			if end := r.awaitEnd(t); end.Cause != c.cause || !strings.Contains(end.Detail, c.says) {
				t.Errorf("the end is %+v", end)
			}
			_ = r.rec.Supervisor.Gone(r.ctx)
			if name == "supervisor killed" {
				nothingLeft(t, r.dir, paths.VMSupervisor) // by which the next one to look finds out
				var gone *vmm.GoneError
				if _, err := r.eng.Attach(r.ctx, r.dir); !errors.As(err, &gone) || gone.End == nil || gone.End.Cause != vmm.EndLost {
					t.Errorf("attach: %v", err)
				}
			} else {
				nothingLeft(t, r.dir)
			}
			worksAgain(t, r.dir, r.spec)
		})
	}
}

// TestFirecrackerSupervisorDiesUnseen: who attaches to what a killed supervisor left cleans up as well.
func TestFirecrackerSupervisorDiesUnseen(t *testing.T) {
	t.Parallel()
	r := startFC(t, fakefc.Knobs{}, nil)
	st := r.awaitFull(t)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	kill(t, st.SupervisorPID, syscall.SIGKILL)
	if err := r.rec.Supervisor.Gone(r.ctx); err != nil {
		t.Fatal(err)
	}
	var gone *vmm.GoneError
	if _, err := r.eng.Attach(r.ctx, r.dir); !errors.As(err, &gone) {
		t.Errorf("attach: %v", err)
	}
	nothingLeft(t, r.dir, paths.VMSupervisor)
	worksAgain(t, r.dir, r.spec)
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// TestFirecrackerBadGuests: a guest that does not call as it should ends as on the other engine.
func TestFirecrackerBadGuests(t *testing.T) {
	for name, c := range map[string]struct {
		knobs fakefc.Knobs
		cause vmm.EndCause // empty where it becomes full
		says  string
		boots int
		notes int
	}{
		"never calls":   {fakefc.Knobs{NeverCall: 9}, vmm.EndBootTimeout, "did not call within 700ms, twice", 2, 1},
		"calls second":  {fakefc.Knobs{NeverCall: 1}, "", "", 2, 1},
		"calls late":    {fakefc.Knobs{CallAfter: 300}, "", "", 1, 0},
		"garbage":       {fakefc.Knobs{Garbage: true}, vmm.EndBadAgent, "what is no call", 1, 0},
		"other version": {fakefc.Knobs{WrongVersion: true}, vmm.EndBadAgent, "version 2, this host 1", 1, 0},
		"secret twice":  {fakefc.Knobs{CallTwice: true}, "", "", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, spec := newFCVM(t, c.knobs)
			switch name {
			case "never calls":
				spec.BootDeadline = 700 * time.Millisecond
			case "calls second": // within as much
				spec.BootDeadline = 5 * time.Second
			}
			r, err := tryFC(t, dir, spec)
			if c.cause == vmm.EndBadAgent && err != nil && strings.Contains(err.Error(), c.says) {
				nothingLeft(t, dir) // it had ended before anybody could ask how it is
				worksAgain(t, dir, spec)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			st := r.awaitFull(t)
			if st.Boots != c.boots || len(st.Notes) != c.notes {
				t.Errorf("the status is %+v", st)
			}
			if c.cause != "" {
				if end := r.awaitEnd(t); end.Cause != c.cause || !strings.Contains(end.Detail, c.says) {
					t.Errorf("the end is %+v", end)
				}
			} else if r.healthy(t); st.Phase != vmm.PhaseRunning {
				t.Errorf("the status is %+v", st)
			}
			if _, err := os.Stat(filepath.Join(r.dir, fakefc.RefusedFile)); (err == nil) != c.knobs.CallTwice {
				t.Errorf("the second use of the secret: %v", err)
			}
			if err := r.Kill(r.ctx); err != nil {
				t.Error(err)
			}
			_ = r.rec.Supervisor.Gone(r.ctx)
			nothingLeft(t, r.dir)
			worksAgain(t, r.dir, r.spec)
		})
	}
}

// TestFirecrackerDiskNotes: what the log says of the host's disk is told, once each, and not without end.
func TestFirecrackerDiskNotes(t *testing.T) {
	t.Parallel()
	var lines []string
	for code := 1; code <= 40; code++ {
		lines = append(lines, `Failed to execute Out virtio block request: FileEngine(Sync(Transfer(IOError(Os { code: `+strings.Repeat("2", 1+code%3)+`, kind: Other, message: "x" }))))`)
	}
	lines = append(lines, `Failed to execute Out virtio block request: FileEngine(Sync(Transfer(IOError(Os { code: 28, kind: StorageFull, message: "No space left on device" }))))`)
	r := startFC(t, fakefc.Knobs{LogLine: strings.Join(lines, "\n")}, nil)
	const want = "a drive: no space left on device (the guest's write failed); make room on the host's disk, then restart the VM"
	st := r.await(t, func(st vmm.Status) bool { return slices.Contains(st.Notes, want) })
	if len(st.Notes) > watch.MaxNotes || st.Phase != vmm.PhaseRunning {
		t.Errorf("the status is %+v", st)
	}
	r.awaitFull(t)
	r.order("diskfull")
	r.healthy(t)
	if again := r.Status(); len(again.Notes) != len(st.Notes) {
		t.Errorf("the notes are %q", again.Notes)
	}
}

func TestFirecrackerFloodedConsoleIsBounded(t *testing.T) {
	t.Parallel()
	r := startFC(t, fakefc.Knobs{Flood: 20 << 20}, nil)
	r.awaitFull(t)
	for _, name := range []string{paths.VMConsoleLog, paths.VMConsoleLog + ".1"} {
		st, err := os.Stat(filepath.Join(r.dir, name))
		if err != nil || st.Size() > maxLog || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if err := r.Kill(r.ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, r.dir)
	worksAgain(t, r.dir, r.spec)
}

// TestFirecrackerHostDiskIsFull: a start on a disk without room says so, and works once there is some.
func TestFirecrackerHostDiskIsFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	_, spec := newFCVM(t, fakefc.Knobs{})
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("no small file system: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "data.ext4"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "archive")
	if err := errors.Join(os.WriteFile(archive, make([]byte, 4<<20), 0o600), os.Mkdir(filepath.Join(dir, "fakeguest"), 0o700)); err != nil {
		t.Fatal(err)
	}
	full := spec
	full.Initramfs = []string{archive}
	_, err := newEngine(t).Start(within(t, 30*time.Second), dir, full)
	if err == nil || !strings.Contains(err.Error(), "write the initrd: ") || !strings.Contains(err.Error(), "no space left on device") ||
		!strings.Contains(api.AsError(err).Hint, "make room") || errors.Is(err, vmm.ErrStart) {
		t.Errorf("start: %v, hint %q", err, api.AsError(err).Hint)
	}
	nothingLeft(t, dir)
	worksAgain(t, dir, spec)
}

// TestFirecrackerPortNet: other processes of the guest may call PortNet as well; they neither guess their way in nor disturb who is there. Even
// one that has the token harms only the guest's own network.
func TestFirecrackerPortNet(t *testing.T) {
	t.Parallel()
	n := &wire.Network{Device: wire.DeviceTAP, MAC: "52:54:ac:10:00:02", Address: "172.16.0.2/24", Gateway: "172.16.0.1", MTU: wire.NetMTU}
	r := startFC(t, fakefc.Knobs{}, func(s *vmm.Spec) { s.Identity.Network = n })
	r.awaitFull(t)
	link, err := r.OpenLink(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	stop := context.AfterFunc(r.ctx, func() { _ = link.Close() })
	defer stop()
	r.answersARP(t, link, n)
	for name, hello := range map[string]string{
		"a guess":         `{"version":1,"token":"` + strings.Repeat("0", 64) + `"}` + "\n",
		"no token":        `{"version":1}` + "\n",
		"another version": `{"version":9,"token":"x"}` + "\n",
		"no JSON":         "\x00\x2a" + strings.Repeat("\xff", 42) + "\n",
		"no end":          strings.Repeat("x", 1<<20),
	} {
		conn := r.callNet(t, hello)
		var rep wire.CallReply
		if err := wire.ReadLine(conn, &rep); err == nil && rep.Type != wire.ReplyRefused {
			t.Errorf("%s is answered %+v", name, rep)
		}
	}
	// All that may wait to be heard say nothing: the link that is there stays.
	var silent []net.Conn
	for range 2 * maxGuestStreams {
		silent = append(silent, r.callNet(t, ""))
	}
	r.answersARP(t, link, n)
	for _, conn := range silent {
		conn.Close()
	}

	// The token is in a snapshot. The one who uses it takes the frames over; what is no frame ends that, and the agent has them back.
	if err := os.Mkdir(filepath.Join(r.dir, snapDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Pause(r.ctx), r.Snapshot(r.ctx, snapDir), r.Resume(r.ctx)); err != nil {
		t.Fatal(err)
	}
	spec := r.spec
	spec.Restore = filepath.Join(r.dir, snapDir)
	info, err := readSnapshot(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, length := range []uint16{0, 13, wire.MaxEthernet + 1, 0xffff} {
		r.answersARP(t, link, n)
		conn := r.welcomed(t, info.Token)
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, length), make([]byte, 100)...)); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = conn.Read(make([]byte, 2048))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a frame of %d bytes is borne", length)
		}
	}
	r.answersARP(t, link, n)
	if err := r.Kill(r.ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, r.dir)
}

// callNet calls PortNet, as Firecracker does for any process of the guest, and says what is to be said.
func (r *run) callNet(t *testing.T, say string) net.Conn {
	t.Helper()
	conn, err := r.dial(r.ctx, portSocket(wire.PortNet))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = conn.Write([]byte(say)) // it may have hung up already
	return conn
}

// welcomed calls PortNet with the token, again where those before are not gone yet.
func (r *run) welcomed(t *testing.T, token string) net.Conn {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn := r.callNet(t, `{"version":1,"token":"`+token+`"}`+"\n")
		var rep wire.CallReply
		err := wire.ReadLine(conn, &rep)
		if err == nil && rep.Type == wire.ReplyWelcome {
			return conn
		}
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			t.Fatalf("with its token it is answered %+v, %v", rep, err)
		}
	}
}

// answersARP waits until the guest answers over link.
func (r *run) answersARP(t *testing.T, link vmm.Link, n *wire.Network) {
	t.Helper()
	own := netip.MustParsePrefix(n.Address).Addr()
	request := fakeguest.ARPRequest(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, netip.MustParseAddr(n.Gateway), own)
	done := make(chan struct{})
	defer close(done)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for link.WriteFrame([][]byte{request}) == nil {
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	buf := make([]byte, wire.MaxEthernet)
	for {
		k, err := link.ReadFrame(buf)
		if err != nil {
			t.Fatalf("read a frame: %v", err)
		}
		if mac := fakeguest.ParseARPReply(buf[:k], own); mac != nil {
			return
		}
	}
}
