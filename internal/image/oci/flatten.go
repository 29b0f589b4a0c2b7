package oci

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

const (
	// indexers is how many layers are looked through at the same time.
	indexers = 2
	// writeBuffer is how much is written at a time: a pipe hands over each write by itself.
	writeBuffer = 256 << 10
)

// source is a layer, as it was served.
type source struct {
	open   func() (io.ReadCloser, error)
	digest v1.Hash
	known  *listed // nil where its entries are not known yet
}

// listed are the entries of a layer.
type listed struct {
	items []item
	cost  int64
}

// damaged is the error of a layer that is not what its digest says.
type damaged struct{ digest v1.Hash }

func isDamaged(err error) bool {
	_, is := errors.AsType[damaged](err)
	return is
}

// Error implements error.
func (d damaged) Error() string { return fmt.Sprintf("layer %s is not what its digest says", d.digest) }

// Flatten writes the tree of an image whose layers are in the cache as a tar stream: parents before what is in them, and every path once. What it has
// written is worth nothing where it ends with an error. A layer that was damaged in the cache is removed from it: the error has the kind
// KindUnavailable then, and Fetch brings it anew.
func (c *Client) Flatten(ctx context.Context, img *Image, w io.Writer) error {
	known := img.index.takeAll(img.Layers)
	layers := make([]source, len(img.Layers))
	for n, l := range img.Layers {
		name := c.path(l.Digest)
		layers[n] = source{open: func() (io.ReadCloser, error) { return os.Open(name) }, digest: l.Digest, known: known[l.Digest]}
	}
	err := flatten(ctx, layers, w)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if bad, ok := errors.AsType[damaged](err); ok {
		return api.Errorf(api.KindUnavailable, "merge the layers of %s: %w", img.ref, errors.Join(err, os.Remove(c.path(bad.digest)))).
			WithHint("its file in %s was damaged, and is removed: pull the image again", c.cfg.Cache)
	}
	if err != nil {
		return fmt.Errorf("merge the layers of %s: %w", img.ref, err)
	}
	return nil
}

// flatten writes the tree that layers make, the lowest first.
func flatten(ctx context.Context, layers []source, w io.Writer) error {
	t, err := merge(ctx, layers)
	if err != nil {
		return err
	}
	dirs, others, files := t.collect(len(layers))
	out := bufio.NewWriterSize(&writer{ctx, w}, writeBuffer)
	tw := tar.NewWriter(out)
	for _, is := range [][]*inode{dirs, others} {
		for _, i := range is {
			if err := writeInode(tw, i, i.meta, 0, nil); err != nil {
				return err
			}
		}
	}
	if err := writeLayers(ctx, tw, layers, files); err != nil {
		return err
	}
	return errors.Join(tw.Close(), out.Flush())
}

// writer ends with its context.
type writer struct {
	ctx context.Context
	w   io.Writer
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.w.Write(p)
}

// merge reads the layers without their contents and puts them on each other.
func merge(ctx context.Context, layers []source) (*tree, error) {
	cost := newBudget(maxEntries, maxMemory)
	all := make([]*listed, len(layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(indexers)
	first, uses := map[v1.Hash]int{}, map[v1.Hash]int{} // the same layer may be there twice
	for n, l := range layers {
		uses[l.digest]++
		if _, ok := first[l.digest]; ok {
			continue
		}
		first[l.digest] = n
		if all[n] = l.known; l.known != nil {
			if err := cost.take(0, l.known.cost); err != nil {
				return nil, errors.Join(err, g.Wait())
			}
			continue
		}
		g.Go(func() (err error) {
			if all[n], err = l.list(ctx, cost); err != nil {
				return fmt.Errorf("layer %d: %w", n+1, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	t := newTree(cost)
	for n, l := range layers {
		of := first[l.digest]
		if err := t.apply(n, all[of].items); err != nil {
			return nil, fmt.Errorf("layer %d: %w", n+1, err)
		}
		if uses[l.digest]--; uses[l.digest] == 0 {
			cost.give(all[of].cost)
			all[of], layers[of].known = nil, nil
		}
	}
	return t, nil
}

// list reads the entries of a layer. A layer that is not what its digest says has none.
func (s source) list(ctx context.Context, cost *budget) (*listed, error) {
	f, err := s.open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	check := newChecked(hostfile.Reader(ctx, f), s.digest)
	before := cost.bytes.Load()
	items, err := list(ctx, check, cost)
	if bad := check.rest(); bad != nil {
		return nil, bad
	}
	return &listed{items: items, cost: before - cost.bytes.Load()}, err
}

// writeLayers writes the files of all layers. While one is written the next is read already.
func writeLayers(ctx context.Context, tw *tar.Writer, layers []source, files [][]*inode) error {
	ctx, cancel := context.WithCancel(ctx)
	next := newAhead(ctx, layers, 0)
	defer func() {
		cancel()
		_ = next.Close() // nothing of this is left
	}()
	for n := range layers {
		a := next
		next = newAhead(ctx, layers, n+1)
		err := writeFiles(tw, a, files[n])
		if bad := a.Close(); bad != nil && (err == nil || isDamaged(bad)) {
			err = bad
		}
		if err != nil {
			return fmt.Errorf("layer %d: %w", n+1, err)
		}
	}
	return nil
}

// errEnough ends a walk.
var errEnough = errors.New("all is read that is wanted")

// writeFiles writes files of one layer, which are in the order of its entries.
func writeFiles(tw *tar.Writer, r io.Reader, files []*inode) error {
	if len(files) == 0 {
		return nil
	}
	err := walk(r, func(n int, h *tar.Header, content io.Reader) error {
		i := files[0]
		if int(i.n) != n {
			return nil
		}
		if !isFile(h.Typeflag) {
			return fmt.Errorf("%q is no regular file any more", i.first.path())
		}
		if err := writeInode(tw, i, metaOf(h), h.Size, content); err != nil {
			return err
		}
		if files = files[1:]; len(files) == 0 {
			return errEnough
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		return nil
	case err == nil:
		return fmt.Errorf("%q is not there any more", files[0].first.path())
	}
	return err
}

// writeInode writes an inode by its first name, and hard links by the others.
func writeInode(tw *tar.Writer, i *inode, m *meta, size int64, content io.Reader) error {
	first := i.first.path()
	h := tar.Header{
		Typeflag: i.typ, Name: first, Linkname: m.link, Size: size, Mode: m.mode, Uid: m.uid, Gid: m.gid, ModTime: m.mtime,
		Devmajor: m.major, Devminor: m.minor, PAXRecords: m.xattrs, Format: tar.FormatPAX, // for the times' nanoseconds
	}
	switch i.typ {
	case tar.TypeDir:
		h.Name += "/"
		if first == "" {
			h.Name = "./"
		}
		h.Linkname = ""
	case tar.TypeReg:
		h.Linkname = ""
	}
	if err := tw.WriteHeader(&h); err != nil {
		return fmt.Errorf("%q: %w", first, err)
	}
	if size > 0 {
		if _, err := io.Copy(tw, content); err != nil {
			return fmt.Errorf("%q: %w", first, err)
		}
	}
	for _, n := range i.more {
		name := n.path()
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, ModTime: m.mtime, Format: tar.FormatPAX}); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}
