package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// handler is the agent's HTTP API.
func (a *agent) handler() http.Handler {
	return guestapi.Handler(guestapi.Config{
		Processes: a.procs,
		Sessions:  a.sessions,
		State:     a.state,
		Shutdown:  a.shutdown,
		End:       a.end,
		GrowDisk: func(_ context.Context, bytes int64) (int64, error) {
			return growData(a.data, a.dataDev, bytes)
		},
		SetIdentity:  a.setIdentity,
		ResetOutside: a.resetOutside,
		Logs:         a.book.copyTo,
		Root:         packRoot,
		Started:      started,
		Log:          a.log,
	})
}

// setIdentity makes the guest another VM.
func (a *agent) setIdentity(_ context.Context, id wire.Identity) error {
	a.mu.Lock()
	a.id = id
	a.mu.Unlock()
	if err := a.renewSSH(); err != nil {
		a.log.Error("the ssh server keeps its keys", "error", err)
	}
	err := setIdentity(id)
	if id.Network != nil {
		err = errors.Join(err, a.setUpNetwork(*id.Network))
	}
	return err
}

// shutdown asks PID 1 for an end.
func (a *agent) shutdown(ctx context.Context, verb string) error {
	a.log.Info("shutting down", "verb", verb)
	if a.init == initOther {
		return a.shutdownOther(ctx, verb)
	}
	sig := sigPoweroff
	switch verb {
	case verbReboot:
		sig = sigReboot
	case verbHalt:
		sig = sigHalt
	}
	if err := unix.Kill(1, sig); err != nil {
		return fmt.Errorf("signal init: %w", err)
	}
	return nil
}

// shutdownOther ends a guest with an init that knows nothing of banger: with the program of that name which all
// of them bring, or with the signals of busybox. The host is told at once, for the agent may not live to tell it later.
func (a *agent) shutdownOther(ctx context.Context, verb string) error {
	a.mu.Lock()
	a.asked = verb
	a.mu.Unlock()
	told, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	if err := a.call.announce(told, verb); err != nil {
		a.log.Warn("the host was not told of the end", "error", err)
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails, says its documentation
	_, err := a.procs.Start(wire.ExecStart{
		Version: wire.Version, ID: hex.EncodeToString(id[:]), Argv: []string{verb}, Dir: "/", User: "root", NoStdin: true, Detach: true,
	})
	if err == nil {
		return nil
	}
	for sig, v := range map[unix.Signal]string{unix.SIGUSR2: verbPoweroff, unix.SIGTERM: verbReboot, unix.SIGUSR1: verbHalt} {
		if v == verb {
			return unix.Kill(1, sig)
		}
	}
	return err
}
