package deb

import (
	"cmp"
	"strings"
)

// Compare compares two package versions as Debian orders them (policy 5.6.12, deb-version(7)): negative where a is
// older than b, 0 where they are equal, positive where a is newer.
func Compare(a, b string) int {
	ea, ua, ra := splitVersion(a)
	eb, ub, rb := splitVersion(b)
	return cmp.Or(compareNumber(ea, eb), comparePart(ua, ub), comparePart(ra, rb))
}

// splitVersion splits [epoch:]upstream[-revision].
func splitVersion(v string) (epoch, upstream, revision string) {
	if i := strings.IndexByte(v, ':'); i >= 0 {
		epoch, v = v[:i], v[i+1:]
	}
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return epoch, v[:i], v[i+1:]
	}
	return epoch, v, ""
}

// comparePart compares runs of non-digits and numbers in turn.
func comparePart(a, b string) int {
	for a != "" || b != "" {
		var ta, tb, na, nb string
		ta, a = cut(a, false)
		tb, b = cut(b, false)
		if c := compareText(ta, tb); c != 0 {
			return c
		}
		na, a = cut(a, true)
		nb, b = cut(b, true)
		if c := compareNumber(na, nb); c != 0 {
			return c
		}
	}
	return 0
}

// cut splits s after its leading digits, or after its leading non-digits.
func cut(s string, digits bool) (head, tail string) {
	i := 0
	for i < len(s) && isDigit(s[i]) == digits {
		i++
	}
	return s[:i], s[i:]
}

// compareText compares by rank byte by byte; the end ranks between '~' and everything else.
func compareText(a, b string) int {
	for i := range max(len(a), len(b)) {
		if c := cmp.Compare(rank(a, i), rank(b, i)); c != 0 {
			return c
		}
	}
	return 0
}

func rank(s string, i int) int {
	switch {
	case i >= len(s):
		return 0
	case s[i] == '~':
		return -1
	case 'A' <= s[i] && s[i] <= 'Z' || 'a' <= s[i] && s[i] <= 'z':
		return int(s[i])
	default:
		return int(s[i]) + 256
	}
}

// compareNumber compares decimal numbers of any length; the empty one is 0.
func compareNumber(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
