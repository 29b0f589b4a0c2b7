package disk

import (
	"math"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

const sizeRule = "use a number with MiB or GiB, such as 2GiB"

var sizeUnits = map[string]int64{
	"k": 1 << 10, "kib": 1 << 10,
	"m": 1 << 20, "mib": 1 << 20,
	"g": 1 << 30, "gib": 1 << 30,
	"t": 1 << 40, "tib": 1 << 40,
}

// ParseSize reads a size of memory or of a disk: a whole number and KiB, MiB,
// GiB or TiB, or K, M, G, T for short, in either case. A number alone, decimal units
// (GB), zero and what does not fit 63 bits are api.KindInvalid with the rule as the hint.
func ParseSize(s string) (int64, error) {
	bad := func(why string) error {
		return api.Errorf(api.KindInvalid, "size %q: %s", s, why).WithHint(sizeRule)
	}
	text := strings.TrimSpace(s)
	end := len(text) - len(strings.TrimLeft(text, "0123456789"))
	number, unit := text[:end], strings.ToLower(strings.TrimLeft(text[end:], " "))
	if number == "" {
		return 0, bad("no whole number at its start")
	}
	if unit == "" {
		return 0, bad("the unit is missing")
	}
	factor, ok := sizeUnits[unit]
	if !ok {
		return 0, bad("the unit is unknown")
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n > math.MaxInt64/factor {
		return 0, bad("too large")
	}
	if n == 0 {
		return 0, bad("nothing at all")
	}
	return n * factor, nil
}

// FormatSize writes a number of bytes, 0 or more, for people: "20GiB", "874.3MiB", "12KiB",
// "512B". A whole number of KiB, MiB or GiB below 1,024 of them is exact.
func FormatSize(bytes int64) string {
	units := []struct {
		name string
		size int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}
	for _, u := range units {
		if bytes >= u.size {
			text := strconv.FormatFloat(float64(bytes)/float64(u.size), 'f', 1, 64)
			return strings.TrimSuffix(text, ".0") + u.name
		}
	}
	return strconv.FormatInt(bytes, 10) + "B"
}
