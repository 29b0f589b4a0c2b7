package deb

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// Download returns the path of a package in the cache, fetched if it is not there, its SHA-256 verified. A download
// that was broken off goes on where it stopped.
func (c *Client) Download(ctx context.Context, p Package, rep progress.Reporter) (string, error) {
	if !isSHA256(p.SHA256) {
		return "", fmt.Errorf("download %q: bad digest %q", p.Name, p.SHA256)
	}
	dst := filepath.Join(c.cfg.CacheDir, "pool", p.SHA256[:16]+"_"+path.Base(p.Filename))
	rep.Step("download " + p.Name)
	if err := c.fetch(ctx, p.URL(), dst, fileSum{p.SHA256, p.Size}, rep); err != nil {
		return "", err
	}
	return dst, nil
}

// Prune removes downloaded packages from the cache, and parts of them: those whose file name, "NAME_VERSION_ARCH.deb", drop
// accepts. The file at the path keep stays.
func (c *Client) Prune(keep string, drop func(name string) bool) {
	dir := filepath.Join(c.cfg.CacheDir, "pool")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		_, name, ok := strings.Cut(e.Name(), "_") // the digest before it
		if ok && drop(strings.TrimSuffix(name, ".part")) && e.Name() != filepath.Base(keep) {
			_ = os.Remove(filepath.Join(dir, e.Name())) // a cache: what stays only takes room
		}
	}
}

// fetch brings the file with the given sum to dst. What was received of it is kept as dst.part until it is complete.
func (c *Client) fetch(ctx context.Context, addr, dst string, sum fileSum, rep progress.Reporter) error {
	unlock, err := c.lock(ctx, dst)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", addr, err)
	}
	defer unlock()
	if have, err := fileDigest(ctx, dst); err == nil && have == sum.sha256 {
		rep.Bytes(sum.size, sum.size)
		return nil
	} else if ctx.Err() != nil {
		return fmt.Errorf("fetch %s: %w", addr, context.Cause(ctx))
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return fmt.Errorf("fetch %s: %w", addr, err)
	}
	part := dst + ".part"
	for fresh := false; ; fresh = true {
		resumed := false
		err := c.retry(ctx, 4, func() error {
			did, err := c.transfer(ctx, addr, part, sum, rep)
			resumed = resumed || did
			return err
		})
		var local *localError
		switch {
		case errors.As(err, &local):
			return fmt.Errorf("fetch %s: %w", addr, local.err)
		case err != nil:
			return unreachable(ctx, addr, err)
		}
		got, err := fileDigest(ctx, part)
		if err != nil {
			return fmt.Errorf("fetch %s: %w", addr, err)
		}
		if got == sum.sha256 {
			break
		}
		// What was there before may be damaged, or of another file: once more from the start.
		if err := os.Remove(part); err != nil {
			return fmt.Errorf("fetch %s: %w", addr, err)
		}
		if fresh || !resumed {
			return api.Errorf(api.KindUnavailable, "fetch %s: digest mismatch: expected sha256 %s, got %s", addr, sum.sha256, got).
				WithHint("the mirror, or something between it and this host, changes files: try again, or name another mirror as debian_mirror in the configuration")
		}
	}
	if err := os.Rename(part, dst); err != nil {
		return fmt.Errorf("fetch %s: %w", addr, err)
	}
	return nil
}

// localError is a failure of this host's file system, as against one of the transfer.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// transfer appends to part what is missing; resumed tells whether there was something before.
func (c *Client) transfer(ctx context.Context, addr, part string, sum fileSum, rep progress.Reporter) (resumed bool, err error) {
	local := func(err error) error { return &permanentError{&localError{err}} }
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return false, local(err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = local(cerr)
		}
	}()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, local(err)
	}
	if have > sum.size {
		have = 0
	}
	if have == sum.size && have > 0 {
		return true, nil
	}
	b, err := c.get(ctx, addr, have)
	if isRangeError(err) {
		have = 0
		b, err = c.get(ctx, addr, 0)
	}
	if err != nil {
		return have > 0, err
	}
	defer b.Close()
	have = b.offset
	if b.total >= 0 && b.total != sum.size {
		return false, &permanentError{fmt.Errorf("the server has %d bytes of it, the index says %d", b.total, sum.size)}
	}
	if err := f.Truncate(have); err != nil {
		return false, local(err)
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return false, local(err)
	}
	src := &countingReader{r: io.LimitReader(b, sum.size-have), rep: rep, done: have, total: sum.size}
	_, err = io.Copy(f, src)
	switch {
	case err != nil && src.err == nil:
		return have > 0, local(err)
	case err == nil && src.done < sum.size:
		return have > 0, fmt.Errorf("the connection ended after %d of %d bytes", src.done, sum.size)
	case err != nil:
		return have > 0, err
	}
	if err := f.Sync(); err != nil {
		return have > 0, local(err)
	}
	return have > 0, nil
}

func isRangeError(err error) bool {
	var status *statusError
	return errors.As(err, &status) && status.status == http.StatusRequestedRangeNotSatisfiable
}

// countingReader reports progress and remembers whether it was reading that failed.
type countingReader struct {
	r           io.Reader
	rep         progress.Reporter
	done, total int64
	err         error
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.done += int64(n)
	r.rep.Bytes(r.done, r.total)
	if err != io.EOF {
		r.err = cmp.Or(r.err, err)
	}
	return n, err
}

// fileDigest returns the SHA-256 of a file in hex.
func fileDigest(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return "", err
	} else if !info.Mode().IsRegular() {
		return "", fmt.Errorf("read %q: %w", path, fs.ErrInvalid)
	}
	h := sha256.New()
	if _, err := io.Copy(h, hostfile.Reader(ctx, f)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
