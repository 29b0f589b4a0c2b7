package guestapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/filestream"
	"git.thaloco.com/thaloco/banger/internal/guest/tree"
)

// TreeEntry is a file, link or directory below a root.
type TreeEntry = tree.Entry

// TreeState is what has become of a path below a root.
type TreeState = tree.State

// listTree lists what is below a directory; with git in the query what git knows or would add.
func (s *server) listTree(w http.ResponseWriter, r *http.Request) (any, error) {
	root, err := guestPath(r)
	if err != nil {
		return nil, err
	}
	opt := tree.ListOptions{Git: r.URL.Query().Has("git"), Started: s.cfg.Started}
	if opt.Git {
		user, err := s.cfg.Processes.User()
		if err != nil {
			return nil, err
		}
		opt.Home = user.Home
	}
	return records(w, r, func(out *tree.Writer) error { return tree.List(r.Context(), out, root, opt) })
}

// hashTree answers with the state of paths.
func (s *server) hashTree(w http.ResponseWriter, r *http.Request) (any, error) {
	root, paths, err := treePaths(r)
	if err != nil {
		return nil, err
	}
	format := tree.Format(r.URL.Query().Get("format"))
	return records(w, r, func(out *tree.Writer) error { return tree.Hash(r.Context(), out, root, format, paths) })
}

// packTree packs paths.
func (s *server) packTree(w http.ResponseWriter, r *http.Request) (any, error) {
	root, paths, err := treePaths(r)
	if err != nil {
		return nil, err
	}
	begun, err := filestream.Answer(w, func(out io.Writer) (api.FilesResult, error) {
		res, err := tree.Pack(r.Context(), out, root, paths)
		return res, inWords(err)
	})
	if begun {
		return answered{}, nil
	}
	return nil, err
}

// removeTree removes paths.
func (s *server) removeTree(_ http.ResponseWriter, r *http.Request) (any, error) {
	root, paths, err := treePaths(r)
	if err != nil {
		return nil, err
	}
	return nil, inWords(tree.Remove(r.Context(), root, paths))
}

// treePaths are the root and the paths a request is about.
func treePaths(r *http.Request) (root string, paths tree.Paths, err error) {
	if root, err = guestPath(r); err == nil {
		paths, err = tree.ReadPaths(r.Body)
	}
	return root, paths, err
}

// records answers with the records that fill writes, and why there are no more; what goes wrong before the first is an answer of its own.
func records(w http.ResponseWriter, r *http.Request, fill func(*tree.Writer) error) (any, error) {
	late := &lateWriter{w: w, contentType: "application/octet-stream"}
	out := tree.NewWriter(r.Context(), late)
	err := inWords(fill(out))
	if err != nil && !late.begun {
		return nil, err
	}
	var failed *api.Error
	if err != nil {
		failed = asError(err)
	}
	return late.end(out.End(failed))
}

// ListTree calls fn with what is below root, an absolute path of the guest: files, links and directories but what is named .git, in any
// case, with all in it. With git it is the files and links git lists or would add, there and in the repositories that are in the work tree, and
// no directories. They come in no order, and each path once; that paths go together, a file not being above another, is not seen to. A pipe, a
// socket or a device is not listed.
func (c *Client) ListTree(ctx context.Context, root string, git bool, fn func(TreeEntry) error) error {
	query := url.Values{"path": {root}}
	if git {
		query.Set("git", "true")
	}
	resp, err := c.request(ctx, "GET", "/v1/tree?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for in := tree.NewReader(resp.Body); ; {
		e, err := in.Entry()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return treeError(ctx, err)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// HashTree calls fn with the state of paths below root, in their order. Format is "sha1" or "sha256". It is fastest where paths of one directory
// follow each other.
func (c *Client) HashTree(ctx context.Context, root, format string, paths []string, fn func(TreeState) error) error {
	digits, err := tree.Format(format).Digits()
	if err != nil {
		return err
	}
	resp, err := c.tree(ctx, "/v1/tree/hash", url.Values{"path": {root}, "format": {format}}, paths)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	in := tree.NewReader(resp.Body)
	for _, p := range paths {
		s, err := in.State(p, digits)
		if err != nil {
			return treeError(ctx, err)
		}
		if err := fn(s); err != nil {
			return err
		}
	}
	if err := in.End(); err != nil {
		return treeError(ctx, err)
	}
	return nil
}

// PackTree returns files and links below root as a tar stream, under the names of paths; what is not there, or something else, is left out. What
// it holds is the guest's.
func (c *Client) PackTree(ctx context.Context, root string, paths []string) (*filestream.Stream, error) {
	resp, err := c.tree(ctx, "/v1/tree/pack", url.Values{"path": {root}}, paths) //nolint:bodyclose // the stream closes it
	if err != nil {
		return nil, err
	}
	return filestream.New(resp, func(e *api.Error) error { return believed(e) }), nil
}

// RemoveTree removes files, links and empty directories below root, and then the directories above them that are empty, but not root. What is
// not there is fine, and so is a directory that is not empty.
func (c *Client) RemoveTree(ctx context.Context, root string, paths []string) error {
	resp, err := c.tree(ctx, "/v1/tree/remove", url.Values{"path": {root}}, paths)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// tree makes a call about paths.
func (c *Client) tree(ctx context.Context, path string, query url.Values, paths []string) (*http.Response, error) {
	body, err := tree.EncodePaths(paths)
	if err != nil {
		return nil, err
	}
	return c.request(ctx, "POST", path+"?"+query.Encode(), bytes.NewReader(body))
}

// treeError is why an answer could not be read to its end.
func treeError(ctx context.Context, err error) error {
	if f, ok := errors.AsType[*tree.Failure](err); ok {
		return believed(f.Said)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return api.Errorf(api.KindGuest, "read the answer of the guest's agent: %w", err)
}
