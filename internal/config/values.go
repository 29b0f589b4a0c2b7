package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/guest/journal"
	"git.thaloco.com/thaloco/banger/internal/suggest"

	"github.com/pelletier/go-toml/v2"
)

// describe says what a value is, for a message.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		if len(v) > 60 {
			v = v[:60] + "…"
		}
		return fmt.Sprintf("the string %q", v)
	case int64:
		return fmt.Sprintf("the number %d", v)
	case float64:
		return fmt.Sprintf("the number %v", v)
	case bool:
		return fmt.Sprint(v)
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	case time.Time, toml.LocalDate, toml.LocalTime, toml.LocalDateTime:
		return "a date or time"
	}
	return fmt.Sprintf("a %T", v)
}

func asString(v any) (string, error) {
	s, ok := v.(string)
	if !ok {
		return "", errors.New("expected a string in quotes, found " + describe(v))
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", fmt.Errorf("%q has control characters", s)
	}
	return s, nil
}

// asStrings is a list of strings; one string is a list of one, the empty string an empty one.
func asStrings(v any) ([]string, error) {
	if s, ok := v.(string); ok {
		if s == "" {
			return nil, nil
		}
		v = []any{s}
	}
	list, ok := v.([]any)
	if !ok {
		return nil, errors.New("expected a string or a list of strings, found " + describe(v))
	}
	var out []string
	for _, e := range list {
		s, err := asString(e)
		if err != nil {
			return nil, err
		}
		if s == "" {
			return nil, errors.New("one of the list is empty")
		}
		out = append(out, s)
	}
	return out, nil
}

// oneOf accepts some words.
func oneOf(words ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(words, s) {
			return nil
		}
		if near := suggest.Near(s, words); len(near) > 0 {
			return fmt.Errorf("%q is not one of %s; did you mean %q?", s, strings.Join(words, ", "), near[0])
		}
		return fmt.Errorf("%q is not one of %s", s, strings.Join(words, ", "))
	}
}

// hostPath is a path of the host as absolute and clean; "~/" is the user's home.
func hostPath(s string, home func() (string, error)) (string, error) {
	rest, ok := strings.CutPrefix(s, "~/")
	switch {
	case filepath.IsAbs(s):
		return filepath.Clean(s), nil
	case ok:
		h, err := home()
		if err != nil {
			return "", fmt.Errorf("expand %q: %w", s, err)
		}
		return filepath.Join(h, rest), nil
	case strings.HasPrefix(s, "~"):
		return "", fmt.Errorf("%q: only ~/ is expanded, not ~user", s)
	}
	return "", fmt.Errorf("%q is not an absolute path (or one that begins with ~/)", s)
}

func checkImageName(s string) error {
	if s == "" || strings.ContainsAny(s, " \t") {
		return fmt.Errorf("%q is not the name of an image", s)
	}
	return nil
}

var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)

func checkInterfaceName(s string) error {
	if !interfaceName.MatchString(s) {
		return fmt.Errorf("%q is not a name of a network interface (1 to 15 of letters, digits, _ . -)", s)
	}
	return nil
}

func checkListenAddr(s string) error {
	if s == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port, such as %s", s, Default().WebListenAddr)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q: the port is not a number from 0 to 65535", s)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return fmt.Errorf("%q: the host is neither an IP address nor localhost", s)
	}
	return nil
}

// sizeOf accepts whole MiB of at least so many bytes, as disk.ParseSize reads them.
func sizeOf(least int64) func(string) error {
	return func(s string) error {
		n, err := disk.ParseSize(s)
		switch {
		case err != nil:
			return fmt.Errorf("%w; write it like 512MiB or 20GiB", err)
		case n < least:
			return fmt.Errorf("%q is less than %s", s, disk.FormatSize(least))
		case n%(1<<20) != 0:
			return fmt.Errorf("%q is not a whole number of MiB", s)
		}
		return nil
	}
}

// sessionLogSize accepts what a log file of a session may have.
func sessionLogSize(s string) error {
	if err := sizeOf(1 << 20)(s); err != nil {
		return err
	}
	if n, err := disk.ParseSize(s); err != nil || n > journal.MaxSegment {
		return fmt.Errorf("%q is more than %s", s, disk.FormatSize(journal.MaxSegment))
	}
	return nil
}

// checkDetachKey accepts a key and "none".
func checkDetachKey(s string) error {
	if _, ok := DetachByte(s); !ok && s != "none" {
		return fmt.Errorf(`%q is not a key: write "ctrl-" and a letter or one of @ [ \ ] ^ _, or "none"`, s)
	}
	return nil
}

// DetachByte is what a terminal sends for the key of that name, such as "ctrl-a"; false where it is none.
func DetachByte(name string) (byte, bool) {
	key, ok := strings.CutPrefix(strings.ToLower(name), "ctrl-")
	if !ok || len(key) != 1 {
		return 0, false
	}
	if c := key[0]; c >= 'a' && c <= 'z' || strings.IndexByte(`@[\]^_`, c) >= 0 {
		return c & 0x1f, true
	}
	return 0, false
}

func parseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || !p.Addr().Is4():
		return netip.Prefix{}, fmt.Errorf("%q is not an IPv4 network such as %s", s, Default().CIDR)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits of a host; did you mean %s?", s, p.Masked())
	case p.Bits() < 8 || p.Bits() > 29:
		return netip.Prefix{}, fmt.Errorf("%q: the network must have 8 to 29 bits", s)
	}
	a := p.Addr()
	if a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.As4()[0] == 0 || a.As4()[0] >= 240 {
		return netip.Prefix{}, fmt.Errorf("%q is not a network that machines can have addresses in", s)
	}
	return p, nil
}

// parseResolver is the address of a name server, with a port where it is not 53.
func parseResolver(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		a, addrErr := netip.ParseAddr(s)
		if addrErr != nil {
			return ap, fmt.Errorf("%q is not an IP address such as 1.1.1.1 or 1.1.1.1:5353", s)
		}
		ap = netip.AddrPortFrom(a, 53)
	}
	if !ap.Addr().IsValid() || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() || ap.Port() == 0 {
		return ap, fmt.Errorf("%q cannot be the address of a name server", s)
	}
	return ap, nil
}

// parseURL is an http or https URL, without a slash at its end.
func parseURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return "", fmt.Errorf("%q is not an http or https URL", s)
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q: a query or fragment makes no sense here", s)
	}
	return strings.TrimRight(s, "/"), nil
}

// parseCatalog is the place of a catalog of images: a file, or a URL with the digest of what is there.
func parseCatalog(s string, home func() (string, error)) (string, error) {
	address, pin, pinned := strings.Cut(s, "#")
	if !strings.Contains(s, "://") {
		path, err := hostPath(s, home)
		if err != nil {
			return "", fmt.Errorf("expected files (absolute or ~/…) and http or https URLs, found %s", describe(s))
		}
		return path, nil
	}
	address, err := parseURL(address)
	if err != nil {
		return "", err
	}
	sum, ok := strings.CutPrefix(pin, "sha256=")
	if b, err := hex.DecodeString(sum); !pinned || !ok || err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("%q is not pinned: write %s#sha256=HEX, where HEX is what sha256sum prints for the file there", s, address)
	}
	return address + "#sha256=" + strings.ToLower(sum), nil
}
