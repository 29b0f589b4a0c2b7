package guestapi

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/filestream"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
)

// copyBuffer is the size of the buffers between a stream and a connection, in bytes.
const copyBuffer = 256 << 10

// putFiles unpacks a tar stream: with as=copy as api.PutFiles says, else into the absolute directory path.
func (s *server) putFiles(w http.ResponseWriter, r *http.Request) (any, error) {
	var (
		res files.Result
		err error
	)
	if r.URL.Query().Get("as") == "copy" {
		res, err = s.copyIn(r)
	} else {
		var dir string
		if dir, err = guestPath(r); err == nil {
			res, err = files.Unpack(r.Context(), dir, r.Body, files.Options{Special: true})
		}
	}
	if err == nil {
		return result(res), nil
	}
	e := asError(inWords(err))
	filestream.Refuse(w, r, func(w http.ResponseWriter) { reply(w, e.Kind.Status(), api.ErrorReply{Error: e}) })
	return answered{}, nil
}

// copyIn does what cp would.
func (s *server) copyIn(r *http.Request) (files.Result, error) {
	p := api.ParsePutFiles(r.URL.Query())
	user, err := s.cfg.Processes.User()
	if err != nil {
		return files.Result{}, err
	}
	name, err := inHome(p.Path, user.Home)
	if err != nil {
		return files.Result{}, err
	}
	return files.Receive(r.Context(), r.Body, files.Target{Path: name, Contents: p.Contents, Into: p.Into, Stream: p.Stream},
		files.Options{Merge: true, Own: !p.Archive, Special: p.Archive, Owner: &files.Owner{UID: user.UID, GID: user.GID}})
}

// getFiles packs what api.GetFiles says.
func (s *server) getFiles(w http.ResponseWriter, r *http.Request) (any, error) {
	g := api.ParseGetFiles(r.URL.Query())
	user, err := s.cfg.Processes.User()
	if err != nil {
		return nil, err
	}
	name, err := inHome(g.Path, user.Home)
	if err != nil {
		return nil, err
	}
	begun, err := filestream.Answer(w, func(out io.Writer) (api.FilesResult, error) {
		res, err := files.Pack(r.Context(), out, name, files.PackOptions{Follow: g.Follow})
		return result(res), inWords(err)
	})
	if begun {
		return answered{}, nil
	}
	return nil, err
}

// getRoot packs the root file system; with clean in the query without what its users put into their homes.
func (s *server) getRoot(w http.ResponseWriter, r *http.Request) (any, error) {
	if s.cfg.Root == nil {
		return nil, api.Errorf(api.KindInvalid, "this guest cannot pack its root")
	}
	begun, err := filestream.Answer(w, func(out io.Writer) (api.FilesResult, error) {
		if err := s.cfg.Sync(r.Context()); err != nil {
			return api.FilesResult{}, err
		}
		res, err := s.cfg.Root(r.Context(), out, r.URL.Query().Has("clean"))
		return result(res), err
	})
	if begun {
		return answered{}, nil
	}
	return nil, err
}

// inHome is a path of the guest as it is meant: absolute, or relative to the home directory. A slash at its end stays.
func inHome(name, home string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", api.Errorf(api.KindInvalid, "path %q contains a NUL", name)
	}
	if name == "~" {
		name = "."
	}
	name = strings.TrimPrefix(name, "~/")
	switch {
	case path.IsAbs(name):
		return name, nil
	case name == "" || name == ".":
		return path.Clean(home) + "/", nil
	}
	return path.Clean(home) + "/" + name, nil
}

// guestPath is the path a request is about.
func guestPath(r *http.Request) (string, error) {
	p := r.URL.Query().Get("path")
	if !path.IsAbs(p) {
		return "", api.Errorf(api.KindInvalid, "path %q is not absolute", p)
	}
	return path.Clean(p), nil
}

func result(r files.Result) api.FilesResult {
	return api.FilesResult{Entries: r.Entries, Bytes: r.Bytes, Skipped: r.Skipped}
}

// inWords gives a failure with a file of the guest the kind and the words for who reads it.
func inWords(err error) error {
	e, ok := errors.AsType[*files.EntryError](err)
	switch {
	case !ok:
		return err
	case errors.Is(e, unix.ENOSPC), errors.Is(e, unix.EDQUOT):
		return api.Errorf(api.KindUnavailable, "%s %q: the guest's disk is full", e.Op, e.Path).
			WithHint("make room in the guest, or create a VM with a larger --disk")
	case errors.Is(e, unix.EIO):
		return api.Errorf(api.KindUnavailable, "%w", err)
	case errors.Is(e, fs.ErrNotExist):
		return api.Errorf(api.KindNotFound, "%w in the guest", err)
	}
	return api.Errorf(api.KindInvalid, "%w", err)
}

// PutFiles unpacks a tar stream into a directory of the guest, an absolute path, which is made where it
// is missing. An error of r is in the chain of the result.
func (c *Client) PutFiles(ctx context.Context, dir string, r io.Reader) error {
	_, err := c.put(ctx, url.Values{"path": {dir}}, r)
	return err
}

// CopyFiles puts a tar stream where p says. An error of r is in the chain of the result.
func (c *Client) CopyFiles(ctx context.Context, p api.PutFiles, r io.Reader) (api.FilesResult, error) {
	return c.put(ctx, p.Values(), r)
}

// Files returns a file, link or directory of the guest as a tar stream. What it holds is the guest's: unpack it
// with package hostfiles.
func (c *Client) Files(ctx context.Context, g api.GetFiles) (*filestream.Stream, error) {
	resp, err := c.request(ctx, "GET", "/v1/files?"+g.Values().Encode(), nil) //nolint:bodyclose // the stream closes it
	if err != nil {
		return nil, err
	}
	return filestream.New(resp, func(e *api.Error) error { return believed(e) }), nil
}

// Root returns the guest's root file system as a tar stream; clean leaves out what its users put into their homes. What it holds is
// the guest's.
func (c *Client) Root(ctx context.Context, clean bool) (*filestream.Stream, error) {
	path := "/v1/root"
	if clean {
		path += "?clean=true"
	}
	resp, err := c.request(ctx, "GET", path, nil) //nolint:bodyclose // the stream closes it
	if err != nil {
		return nil, err
	}
	return filestream.New(resp, func(e *api.Error) error { return believed(e) }), nil
}

func (c *Client) put(ctx context.Context, query url.Values, r io.Reader) (out api.FilesResult, err error) {
	src := &source{r: r}
	resp, err := c.request(ctx, "PUT", "/v1/files?"+query.Encode(), io.NopCloser(src))
	if srcErr := src.failed(); srcErr != nil {
		if err == nil {
			_ = resp.Body.Close()
		}
		return out, srcErr
	}
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	return out, decodeAnswer(resp.Body, &out)
}
