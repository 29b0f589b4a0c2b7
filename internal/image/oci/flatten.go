package oci

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

// indexers is how many layers are looked through at the same time.
const indexers = 2

// opener opens a layer, as it was served.
type opener func() (io.ReadCloser, error)

// flatten writes the tree that layers make, the lowest first, as a tar stream: parents before what is in them, and every path once.
func flatten(ctx context.Context, layers []opener, w io.Writer) error {
	t, err := index(ctx, layers)
	if err != nil {
		return err
	}
	dirs, others, files := t.collect()
	tw := tar.NewWriter(w)
	for _, i := range append(dirs, others...) {
		if err := writeAll(tw, i, nil); err != nil {
			return err
		}
	}
	for n, open := range layers {
		if err := writeFiles(ctx, tw, n, open, files); err != nil {
			return fmt.Errorf("layer %d: %w", n+1, err)
		}
	}
	return tw.Close()
}

// index reads the layers without their contents and puts them on each other.
func index(ctx context.Context, layers []opener) (*tree, error) {
	items := make([][]item, len(layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(indexers)
	for n, open := range layers {
		g.Go(func() (err error) {
			items[n], err = list(ctx, open)
			if err != nil {
				return fmt.Errorf("layer %d: %w", n+1, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	t := newTree()
	for n := range items {
		if err := t.apply(n, items[n]); err != nil {
			return nil, fmt.Errorf("layer %d: %w", n+1, err)
		}
		items[n] = nil
	}
	return t, nil
}

// list are the entries of a layer.
func list(ctx context.Context, open opener) ([]item, error) {
	f, err := open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []item
	err = walk(hostfile.Reader(ctx, f), func(n int, h *tar.Header, _ io.Reader) error {
		if n >= maxEntries {
			return fmt.Errorf("more than %d files", maxEntries)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			return nil
		}
		name, err := clean(h.Name)
		if err != nil {
			return err
		}
		slim := *h
		slim.Name = ""
		if isFile(h) { // it is read again, with its content
			slim = tar.Header{Typeflag: h.Typeflag}
		}
		out = append(out, item{n: n, name: name, h: &slim})
		return nil
	})
	return out, err
}

// writeFiles writes the files whose content is of one layer.
func writeFiles(ctx context.Context, tw *tar.Writer, layer int, open opener, files map[[2]int]*inode) error {
	f, err := open()
	if err != nil {
		return err
	}
	defer f.Close()
	return walk(hostfile.Reader(ctx, f), func(n int, h *tar.Header, content io.Reader) error {
		i := files[[2]int{layer, n}]
		if i == nil {
			return nil
		}
		i.h = h
		return writeAll(tw, i, content)
	})
}

// writeAll writes an inode by its first name, and hard links by the others.
func writeAll(tw *tar.Writer, i *inode, content io.Reader) error {
	src := i.h
	if src == nil {
		src = implicit()
	}
	first := i.names[0]
	h := tar.Header{
		Typeflag: src.Typeflag, Name: first, Linkname: src.Linkname, Mode: src.Mode & 0o7777, Uid: src.Uid, Gid: src.Gid, ModTime: src.ModTime,
		Devmajor: src.Devmajor, Devminor: src.Devminor, PAXRecords: xattrs(src),
	}
	switch {
	case src.Typeflag == tar.TypeDir:
		h.Name += "/"
		if first == "" {
			h.Name = "./"
		}
	case isFile(src):
		h.Typeflag, h.Size = tar.TypeReg, src.Size
	}
	if err := tw.WriteHeader(&h); err != nil {
		return fmt.Errorf("%q: %w", first, err)
	}
	if h.Size > 0 {
		if _, err := io.Copy(tw, content); err != nil {
			return fmt.Errorf("%q: %w", first, err)
		}
	}
	for _, name := range i.names[1:] {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, ModTime: src.ModTime}); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}

// xattrs are the extended attributes of an entry, as PAX records.
func xattrs(h *tar.Header) map[string]string {
	out := map[string]string{}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.") {
			out[k] = v
		}
	}
	for k, v := range h.Xattrs { //nolint:staticcheck // what libarchive writes arrives here only
		out["SCHILY.xattr."+k] = v
	}
	if len(out) == 0 {
		return nil
	}
	return maps.Clone(out)
}

// openFile is an opener of a file.
func openFile(path string) opener {
	return func() (io.ReadCloser, error) { return os.Open(path) }
}
