package deb

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// maxRelease is the longest InRelease that is read, in bytes; Debian's are below 200 KB.
const maxRelease = 8 << 20

// Release is a verified InRelease.
type Release struct {
	// URL is the archive it came from.
	URL string
	// Codename is such as "trixie" or "trixie-security".
	Codename string
	Date     time.Time
	// ByHash tells whether files can be fetched by their hash.
	ByHash bool
	files  map[string]fileSum
}

type fileSum struct {
	sha256 string // hex
	size   int64
}

// Release fetches and verifies the InRelease of a suite, which is given by its codename.
func (c *Client) Release(ctx context.Context, archive, codename string) (*Release, error) {
	addr := archive + "/dists/" + codename + "/InRelease"
	data, err := c.getSmall(ctx, addr, maxRelease)
	if err != nil {
		return nil, err
	}
	text, err := verify(data, c.cfg.Keyring, c.cfg.Now())
	if err != nil {
		return nil, api.Errorf(api.KindUnavailable, "verify %s: %w", addr, err).
			WithHint("check this host's clock (it says %s); if that is right, the mirror or something between it and this host serves a file that Debian did not sign: name another mirror as debian_mirror in the configuration",
				c.cfg.Now().Format(time.DateOnly))
	}
	rel, validUntil, err := parseRelease(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", addr, err)
	}
	rel.URL = archive
	if rel.Codename != codename {
		return nil, api.Errorf(api.KindUnavailable, "verify %s: it is of %q", addr, rel.Codename).
			WithHint("the mirror serves one release as another: name another mirror as debian_mirror in the configuration")
	}
	if now := c.cfg.Now(); !validUntil.IsZero() && now.After(validUntil) {
		return nil, api.Errorf(api.KindUnavailable, "verify %s: it was valid until %s, and now is %s", addr,
			validUntil.Format(time.RFC3339), now.UTC().Format(time.RFC3339)).
			WithHint("check this host's clock; if that is right the mirror is out of date: name another as debian_mirror in the configuration")
	}
	if err := c.remember(ctx, rel, addr); err != nil {
		return nil, err
	}
	return rel, nil
}

// verify returns the signed text of a clear-signed message with at least one good signature by a key of
// the keyring. Debian signs with several keys, of which older keyrings know only some.
func verify(message []byte, keyring openpgp.EntityList, now time.Time) ([]byte, error) {
	block, rest := clearsign.Decode(message)
	if block == nil {
		return nil, errors.New("it is not a signed file")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("text follows the signature")
	}
	cfg := &packet.Config{Time: func() time.Time { return now }}
	packets := packet.NewReader(block.ArmoredSignature.Body)
	err := errors.New("it carries no signature")
	for {
		p, perr := packets.Next()
		if perr != nil {
			break // the end, or a packet this library cannot read: what came before counts
		}
		sig, ok := p.(*packet.Signature)
		if !ok {
			continue
		}
		var raw bytes.Buffer
		if serr := sig.Serialize(&raw); serr != nil {
			err = serr
			continue
		}
		if _, cerr := openpgp.CheckDetachedSignature(keyring, bytes.NewReader(block.Bytes), &raw, cfg); cerr != nil {
			err = fmt.Errorf("no good signature by a known key: %w", cerr)
			continue
		}
		return block.Plaintext, nil
	}
	return nil, err
}

func parseRelease(text []byte) (rel *Release, validUntil time.Time, err error) {
	p, err := NewControlReader(bytes.NewReader(text)).Next()
	if err != nil {
		return nil, validUntil, err
	}
	rel = &Release{Codename: p["codename"], ByHash: p["acquire-by-hash"] == "yes", files: map[string]fileSum{}}
	if rel.Date, err = parseDate(p["date"]); err != nil {
		return nil, validUntil, err
	}
	if v := p["valid-until"]; v != "" {
		if validUntil, err = parseDate(v); err != nil {
			return nil, validUntil, err
		}
	}
	for line := range strings.Lines(p["sha256"]) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 || !isSHA256(f[0]) {
			return nil, validUntil, fmt.Errorf("line %q of SHA256: %w", strings.TrimSpace(line), ErrControl)
		}
		size, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || size < 0 {
			return nil, validUntil, fmt.Errorf("size %q in SHA256: %w", f[1], ErrControl)
		}
		rel.files[f[2]] = fileSum{f[0], size}
	}
	return rel, validUntil, nil
}

func parseDate(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC1123, "Mon, _2 Jan 2006 15:04:05 MST", time.RFC1123Z} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("date %q: %w", s, ErrControl)
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && strings.ToLower(s) == s
}

// datesVersion is the version of dates.json.
const datesVersion = 1

// dates is what dates.json in the cache directory holds: the newest date seen per codename. Debian's main suites
// never expire, so this is what keeps a mirror from serving yesterday's packages for ever.
type dates struct {
	Version int                  `json:"version"`
	Newest  map[string]time.Time `json:"newest"`
}

// remember refuses a release older than the newest seen and records a newer one.
func (c *Client) remember(ctx context.Context, rel *Release, addr string) error {
	path := filepath.Join(c.cfg.CacheDir, "dates.json")
	unlock, err := c.lock(ctx, path)
	if err != nil {
		return err
	}
	defer unlock()
	seen := dates{Version: datesVersion, Newest: map[string]time.Time{}}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("read the dates of releases: %w", err)
	default:
		var d dates
		if err := json.Unmarshal(data, &d); err != nil || d.Version != datesVersion {
			c.cfg.Log.Warn("dates of releases are unreadable and begin anew", "path", path)
		} else {
			seen.Newest = d.Newest
		}
	}
	newest, ok := seen.Newest[rel.Codename]
	if ok && rel.Date.Before(newest) {
		return api.Errorf(api.KindUnavailable, "verify %s: it is of %s, older than the one of %s seen before", addr,
			rel.Date.Format(time.RFC3339), newest.Format(time.RFC3339)).
			WithHint("the mirror is out of date: try again later, or name another as debian_mirror in the configuration")
	}
	if ok && rel.Date.Equal(newest) {
		return nil
	}
	if seen.Newest == nil {
		seen.Newest = map[string]time.Time{}
	}
	seen.Newest[rel.Codename] = rel.Date
	out, err := json.MarshalIndent(seen, "", "\t")
	if err != nil {
		return err
	}
	return writeFile(path, append(out, '\n'))
}

// writeFile writes a file so that after a crash it is either the old or the new one.
func writeFile(path string, data []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err = cmp.Or(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
