package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"golang.org/x/sys/unix"
)

const (
	// tmpPrefix begins the names of directories an archive is unpacked in.
	tmpPrefix = ".tmp-"
	// partSuffix ends the name of an archive that is being downloaded.
	partSuffix = ".part"
	// lockPoll is how often a directory that somebody else fetches into is tried again.
	lockPoll = 50 * time.Millisecond
	// busyWait is how long a program that was just written may be refused as being written.
	busyWait = 2 * time.Second
)

// Config is what Fetch needs.
type Config struct {
	// Dir is where the release goes; made when it is not there.
	Dir string
	Pin Pin
	// HTTP is asked for the archive. It should use the proxy of the environment, and bound connecting and the answer's header in time.
	HTTP *http.Client
	// Idle is how long a connection may deliver nothing before it is given up; 0 for 30 s.
	Idle time.Duration
	// RetryDelay is how long is waited before a broken transfer is taken up again, longer each time; 0 for 1 s.
	RetryDelay time.Duration
}

// Fetch makes the release local and returns it: from the archive in Dir where it is there, else by a download. What is there is not
// fetched again; of two at once one fetches. Only what has the pinned digest and then tells the pinned version is ever in place.
//
// An error leaves what the next call goes on from, or removes. That of ctx wraps its cause; any other is an *api.Error
// of KindUnavailable that says how to do without a download.
func Fetch(ctx context.Context, cfg Config, rep progress.Reporter) (Program, error) {
	cfg.Idle, cfg.RetryDelay = cmp.Or(cfg.Idle, 30*time.Second), cmp.Or(cfg.RetryDelay, time.Second)
	f := &fetcher{Config: cfg, rep: rep}
	p, err := f.fetch(ctx)
	if err == nil {
		return p, nil
	}
	err = fmt.Errorf("get firecracker %s: %w", cfg.Pin.Version, err)
	if ctx.Err() != nil {
		return Program{}, err
	}
	if e, ok := errors.AsType[*api.Error](err); ok && e.Hint != "" {
		return Program{}, api.AsError(err)
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return Program{}, api.Errorf(api.KindUnavailable, "%w", err).WithHint("make room on the disk of %s", cfg.Dir)
	}
	return Program{}, api.Errorf(api.KindUnavailable, "%w", err).WithHint("%s", cfg.Pin.Offline(cfg.Dir))
}

// fetcher is one call of Fetch.
type fetcher struct {
	Config
	rep progress.Reporter
}

func (f *fetcher) fetch(ctx context.Context) (Program, error) {
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return Program{}, err
	}
	unlock, err := f.lock(ctx)
	if err != nil {
		return Program{}, err
	}
	defer unlock()
	if err := f.sweep(); err != nil {
		return Program{}, err
	}
	if p, ok := installed(f.Dir, f.Pin); ok {
		if p.Version, err = f.verify(ctx, p.Path); err == nil {
			return p, nil
		} else if ctx.Err() != nil {
			return Program{}, err
		} // it is replaced
	}
	archive, err := f.archive(ctx)
	if err != nil {
		return Program{}, err
	}
	if err := f.install(ctx, archive); err != nil {
		return Program{}, err
	}
	_ = os.Remove(f.path() + partSuffix)
	p, ok := installed(f.Dir, f.Pin)
	if !ok {
		return Program{}, fmt.Errorf("%s was there and is not any more", p.Path)
	}
	p.Version = f.Pin.Version
	return p, nil
}

// path is where the archive lies.
func (f *fetcher) path() string { return filepath.Join(f.Dir, f.Pin.Archive()) }

// lock makes the caller the only one, of all processes, that fetches into the directory.
func (f *fetcher) lock(ctx context.Context) (unlock func(), err error) {
	d, err := os.Open(f.Dir)
	if err != nil {
		return nil, err
	}
	poll := time.NewTicker(lockPoll)
	defer poll.Stop()
	for waited := false; ; waited = true {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			d.Close()
			return nil, &os.PathError{Op: "lock", Path: f.Dir, Err: err}
		}
		if !waited {
			f.rep.Step("wait for another fetch of firecracker")
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			d.Close()
			return nil, context.Cause(ctx)
		}
	}
}

// sweep removes what was half unpacked when somebody was killed, and what was half fetched of other releases.
func (f *fetcher) sweep() error {
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		other := strings.HasSuffix(e.Name(), partSuffix) && e.Name() != f.Pin.Archive()+partSuffix
		if other || strings.HasPrefix(e.Name(), tmpPrefix) {
			errs = append(errs, os.RemoveAll(filepath.Join(f.Dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// archive returns the path of the archive, its digest verified.
func (f *fetcher) archive(ctx context.Context) (string, error) {
	if !f.Pin.Supplied(f.Dir) {
		return f.download(ctx)
	}
	f.rep.Step("verify " + f.Pin.Archive())
	sum, err := content.Hash(ctx, f.Dir, f.Pin.Archive(), f.rep)
	if err != nil {
		return "", err
	}
	if sum.SHA256 != f.Pin.SHA256 {
		return "", api.Errorf(api.KindUnavailable, "%s has sha256 %s, expected %s", f.path(), sum.SHA256, f.Pin.SHA256).
			WithHint("replace it by the file of %s\nor remove it to have that fetched", f.Pin.URL)
	}
	return f.path(), nil
}

// install puts the programs of the archive in place: Firecracker last, so that the release is there as a whole or not at all.
func (f *fetcher) install(ctx context.Context, archive string) (err error) {
	f.rep.Step("unpack firecracker " + f.Pin.Version)
	tmp, err := os.MkdirTemp(f.Dir, tmpPrefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	fc, jailer := filepath.Join(tmp, "firecracker"), filepath.Join(tmp, "jailer")
	release := "release-v" + f.Pin.Version + "-" + f.Pin.Arch + "/"
	suffix := "-v" + f.Pin.Version + "-" + f.Pin.Arch
	if err := unpack(ctx, archive, map[string]string{release + "firecracker" + suffix: fc, release + "jailer" + suffix: jailer}); err != nil {
		return err
	}
	if _, err := f.verify(ctx, fc); err != nil {
		if errors.Is(err, syscall.EACCES) {
			return api.Errorf(api.KindUnavailable, "programs in %s cannot be run: %w", f.Dir, cause(err)).
				WithHint("where it is mounted noexec, unpack %s elsewhere and name the program as firecracker_bin in config.toml", f.Pin.URL)
		}
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	ownFC, ownJailer := f.Pin.Own(f.Dir)
	if err := os.Rename(jailer, ownJailer); err != nil {
		return err
	}
	if err := os.Rename(fc, ownFC); err != nil {
		return err
	}
	return hostfile.SyncDir(f.Dir)
}

// verify runs a Firecracker of the release and makes sure that it is what it should be.
func (f *fetcher) verify(ctx context.Context, path string) (string, error) {
	v, err := Version(ctx, path)
	poll, late := time.NewTicker(lockPoll), time.After(busyWait)
	defer poll.Stop()
	for busy(err) {
		select {
		case <-poll.C:
			v, err = Version(ctx, path)
			continue
		case <-late:
		case <-ctx.Done():
		}
		break
	}
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil:
		return "", err
	case v != f.Pin.Version:
		return "", fmt.Errorf("%s says that it is version %s, expected %s", path, v, f.Pin.Version)
	}
	return v, nil
}
