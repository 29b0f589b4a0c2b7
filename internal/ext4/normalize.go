package ext4

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"math"
	"strings"
	"time"
)

// Limits of what goes into a file system. maxFile is where tar2ext4's extent
// trees would need a second leaf, which it gets wrong.
const (
	maxFile    = 340*128<<20 - 1
	maxSymlink = 4095
	maxMajor   = 1<<12 - 1
	maxMinor   = 1<<20 - 1

	tarBlock    = 512
	xattrRecord = "SCHILY.xattr."
	aclAccess   = "system.posix_acl_access"
	aclDefault  = "system.posix_acl_default"
)

// normalizer reads a tar stream and is one again, in the form tar2ext4 expects:
// every time set, only attributes ext4 has, no global headers, values in range.
type normalizer struct {
	src  *countReader
	tr   *tar.Reader
	tw   *tar.Writer
	buf  bytes.Buffer
	hash hash.Hash
	left int64 // bytes of the current entry
	err  error // what Read returns once buf is empty
	// check looks at each entry; may be nil.
	check func(*tar.Header) error
}

func newNormalizer(r io.Reader) *normalizer {
	src := &countReader{r: r}
	n := &normalizer{src: src, tr: tar.NewReader(src), hash: sha256.New()}
	n.tw = tar.NewWriter(io.MultiWriter(&n.buf, n.hash))
	return n
}

// countReader counts what is read from r.
type countReader struct {
	r     io.Reader
	count int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.count += int64(n)
	return n, err
}

// sum is the digest of everything read so far.
func (n *normalizer) sum() []byte { return n.hash.Sum(nil) }

func (n *normalizer) Read(p []byte) (int, error) {
	for n.buf.Len() == 0 {
		if n.err != nil {
			return 0, n.err
		}
		n.err = n.fill()
	}
	return n.buf.Read(p)
}

// fill adds the next header or the next piece of a file to buf.
func (n *normalizer) fill() error {
	if n.left > 0 {
		m, err := io.CopyN(n.tw, n.tr, min(n.left, 256<<10))
		n.left -= m
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	h, err := n.tr.Next()
	if err == io.EOF {
		if n.src.count%tarBlock != 0 { // archive/tar takes a cut between a PAX record and its padding for the end
			return fmt.Errorf("read tar: %w", io.ErrUnexpectedEOF)
		}
		if err := n.tw.Close(); err != nil {
			return err
		}
		return io.EOF
	}
	if err != nil {
		return fmt.Errorf("read tar: %w", err)
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if n.check != nil {
		if err := n.check(h); err != nil {
			return err
		}
	}
	return n.begin(h)
}

// begin writes the header of an entry.
func (n *normalizer) begin(h *tar.Header) error {
	out, err := normalHeader(h)
	if err != nil {
		return fmt.Errorf("%q: %w", h.Name, err)
	}
	if out.Typeflag == tar.TypeReg {
		n.left = out.Size
	}
	return n.tw.WriteHeader(out)
}

// normalHeader returns what becomes of an entry.
func normalHeader(h *tar.Header) (*tar.Header, error) {
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Mode: h.Mode & 0o7777,
		Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, AccessTime: h.ModTime, ChangeTime: h.ModTime,
		Format: tar.FormatPAX,
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > math.MaxUint32 || int64(h.Gid) > math.MaxUint32 {
		return nil, fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	// What is older than the epoch was meant to have no time.
	if out.ModTime.Before(time.Unix(0, 0)) {
		out.ModTime, out.AccessTime, out.ChangeTime = time.Unix(0, 0), time.Unix(0, 0), time.Unix(0, 0)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		out.Typeflag, out.Size, out.Linkname = tar.TypeReg, h.Size, ""
		if h.Size > maxFile {
			return nil, fmt.Errorf("file of %d bytes is larger than the %d a base drive can hold", h.Size, int64(maxFile))
		}
	case tar.TypeSymlink:
		if len(h.Linkname) == 0 || len(h.Linkname) > maxSymlink {
			return nil, fmt.Errorf("symbolic link of %d bytes", len(h.Linkname))
		}
	case tar.TypeChar, tar.TypeBlock:
		out.Devmajor, out.Devminor = h.Devmajor, h.Devminor
		if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
			return nil, fmt.Errorf("device %d:%d is out of range", h.Devmajor, h.Devminor)
		}
	case tar.TypeLink, tar.TypeDir, tar.TypeFifo:
	default:
		return nil, fmt.Errorf("entry of unknown type %q", h.Typeflag)
	}
	return out, normalAttributes(h, out)
}

// normalAttributes copies the extended attributes that ext4 can hold.
func normalAttributes(h, out *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || h.Typeflag == tar.TypeLink {
			continue
		}
		switch {
		case name == aclAccess, name == aclDefault:
			acl, err := diskACL([]byte(value))
			if err != nil {
				return fmt.Errorf("attribute %s: %w", name, err)
			}
			value = string(acl)
		case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "trusted."), strings.HasPrefix(name, "security."):
		default:
			continue // of another system
		}
		if out.PAXRecords == nil {
			out.PAXRecords = map[string]string{}
		}
		out.PAXRecords[key] = value
	}
	return nil
}

// diskACL turns a POSIX access control list from the form system calls (and
// tar) use, linux/posix_acl_xattr.h, to the one in ext4's attributes,
// fs/ext4/acl.h: entries that name nobody are shorter there.
func diskACL(b []byte) ([]byte, error) {
	const callVersion, diskVersion, entrySize = 2, 1, 8
	const user, group = 0x02, 0x08
	le := binary.LittleEndian
	if len(b) < 4 || (len(b)-4)%entrySize != 0 || le.Uint32(b) != callVersion {
		return nil, fmt.Errorf("access control list of %d bytes makes no sense", len(b))
	}
	out := le.AppendUint32(nil, diskVersion)
	for e := b[4:]; len(e) > 0; e = e[entrySize:] {
		out = append(out, e[:4]...)
		if tag := le.Uint16(e); tag == user || tag == group {
			out = append(out, e[4:8]...)
		}
	}
	return out, nil
}
