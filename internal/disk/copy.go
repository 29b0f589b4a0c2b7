package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"git.thaloco.com/thaloco/banger/internal/disk/sparse"
	"golang.org/x/sys/unix"
)

// copyChunk is how much is copied between two looks at the context, in bytes.
const copyChunk = 8 << 20

// Copy copies the drive src, which nobody may be writing to, to dst, which must
// not exist: as a reflink where the host's file system has them, else the data
// without the holes. dst appears complete and synced or not at all.
func Copy(ctx context.Context, src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("copy disk %q: %w", src, err)
	}
	defer in.Close()
	return hostError(writeNew(ctx, dst, func(out *os.File) error {
		err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
		if err == nil {
			return nil
		}
		return copySparse(ctx, in, out)
	}), "copy disk to", dst)
}

func copySparse(ctx context.Context, in, out *os.File) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	for run, err := range sparse.Runs(in, st.Size()) {
		if err != nil {
			return err
		}
		if err := copyRun(ctx, in, out, run); err != nil {
			return err
		}
	}
	return nil
}

// copyRun copies one run of data, in the kernel where it can.
func copyRun(ctx context.Context, in, out *os.File, run sparse.Run) error {
	var buf []byte
	for at, end := run.Offset, run.Offset+run.Len; at < end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		want := int(min(copyChunk, end-at))
		if buf == nil {
			from, to := at, at
			n, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, want, 0)
			if err == nil && n > 0 {
				at += int64(n)
				continue
			}
			if err != nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EIO) || errors.Is(err, unix.EDQUOT)) {
				return os.NewSyscallError("copy_file_range", err)
			}
			buf = make([]byte, copyChunk) // not on these file systems
		}
		n, err := in.ReadAt(buf[:want], at)
		if err == io.EOF {
			return errors.New("it became shorter meanwhile")
		}
		if err != nil {
			return err
		}
		if _, err := out.WriteAt(buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// Grow makes the drive at path size bytes, a multiple of 4,096; its VM must not
// run. The agent grows the file system at the next boot. A smaller size than it
// has is api.KindInvalid, the same size is fine.
func Grow(path string, size int64) error {
	if err := checkSize(size); err != nil {
		return err
	}
	old, _, err := Usage(path)
	if err != nil {
		return fmt.Errorf("grow disk %q: %w", path, err)
	}
	if size < old {
		return shrinkError(path, old, size)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return hostError(err, "grow disk", path)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return hostError(err, "grow disk", path)
	}
	return hostError(f.Sync(), "grow disk", path)
}
