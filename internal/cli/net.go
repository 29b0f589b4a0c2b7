package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/network/bridge"
	"git.thaloco.com/thaloco/banger/internal/paths"
)

// hostNetwork is this host's network, of which bridge mode needs more than a user may change.
type hostNetwork interface {
	// Setup and Teardown return a line for each thing they did.
	Setup(ctx context.Context, cfg bridge.Config) ([]string, error)
	SetupAtBoot(ctx context.Context, cfg bridge.Config) ([]string, error)
	Teardown(ctx context.Context, name string, force bool) ([]string, error)
	Status(ctx context.Context, cfg bridge.Config) (bridge.Report, error)
	// Load is what SetupAtBoot was given.
	Load(name string) (bridge.Config, error)
}

// thisHost is the real one.
type thisHost struct{ bridge.Boot }

// Setup implements hostNetwork.
func (h thisHost) Setup(ctx context.Context, cfg bridge.Config) ([]string, error) {
	return bridge.Setup(ctx, cfg)
}

// SetupAtBoot implements hostNetwork.
func (h thisHost) SetupAtBoot(ctx context.Context, cfg bridge.Config) ([]string, error) {
	return h.Boot.Setup(ctx, cfg)
}

// hostNetwork is the host's network.
func (a *App) hostNetwork() (hostNetwork, error) {
	if a.Network != nil {
		return a.Network, nil
	}
	exe, err := a.Executable()
	if err == nil {
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err != nil {
		return nil, err
	}
	return thisHost{bridge.Boot{Root: "/", Program: exe}}, nil
}

// netOwner is a user whose VMs are, or are to be, on a bridge, with the configuration that says so.
type netOwner struct {
	uid    int
	file   string
	config config.Config
}

// netOwner finds out for whom a command about the bridge is: the user of that name or uid, else who called sudo, else this one.
func (a *App) netOwner(name string) (netOwner, error) {
	own := os.Geteuid()
	if a.UID != nil {
		own = a.UID()
	}
	o := netOwner{uid: own}
	getenv := a.Getenv
	if wanted := cmp.Or(name, a.Getenv("SUDO_UID")); wanted != "" {
		u, err := a.account(wanted)
		if err != nil {
			return o, err
		}
		if o.uid, err = strconv.Atoi(u.Uid); err != nil {
			return o, fmt.Errorf("user %q: %w", wanted, err)
		}
		if o.uid != own { // where that user's files are, this one's environment does not say
			getenv = func(key string) string {
				if key == "HOME" {
					return u.HomeDir
				}
				return ""
			}
		}
	}
	p, err := paths.FromEnv(getenv)
	if err != nil {
		return o, err
	}
	o.file = p.ConfigFile()
	o.config, _, err = config.Load(o.file)
	return o, err
}

// account looks a user up by name or uid.
func (a *App) account(wanted string) (*user.User, error) {
	lookup := a.LookupUser
	if lookup == nil {
		lookup = func(wanted string) (*user.User, error) {
			u, err := user.Lookup(wanted)
			if err != nil {
				if byID, idErr := user.LookupId(wanted); idErr == nil {
					return byID, nil
				}
			}
			return u, err
		}
	}
	u, err := lookup(wanted)
	if err != nil {
		return nil, usagef("banger net setup --owner $USER", "there is no user %q: %s", wanted, err)
	}
	return u, nil
}

// netError gives an error that only root can help the command that does: sudo may look for programs elsewhere than this user.
func (a *App) netError(err error, subcommand string) error {
	e := new(api.Error)
	if err == nil || bridge.Privileged() || a.Network != nil || !errors.As(err, &e) || e.Kind != api.KindUnavailable {
		return err
	}
	exe, xerr := a.Executable()
	if xerr != nil {
		return err
	}
	return api.Errorf(e.Kind, "%w", err).WithHint("sudo %s net %s", exe, subcommand)
}

// did prints what was done.
func (a *App) did(lines []string) error {
	for _, l := range lines {
		if _, err := fmt.Fprintln(a.Out, safeText(l)); err != nil {
			return err
		}
	}
	return nil
}
