package disk

import (
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"2GiB": 2 << 30, "512MiB": 512 << 20, "30G": 30 << 30, "1t": 1 << 40, "64 kib": 64 << 10, " 7M ": 7 << 20, "8191PiB": 0,
		"2": 0, "2 potatoes": 0, "": 0, "GiB": 0, "-2GiB": 0, "+2GiB": 0, "2GB": 0, "1.5GiB": 0, "0GiB": 0, "2GiB2": 0,
		"9223372036854775807T": 0, "99999999999999999999G": 0, "8388608TiB": 0, "8388607TiB": 8388607 << 40, "２GiB": 0, "2\x00GiB": 0,
	} {
		got, err := ParseSize(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
		if err != nil && (api.KindOf(err) != api.KindInvalid || !strings.Contains(api.AsError(err).Hint, "such as 2GiB")) {
			t.Errorf("ParseSize(%q): %v without the rule", text, err)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0B", 512: "512B", 1 << 10: "1KiB", 512 << 20: "512MiB", 20 << 30: "20GiB", 3 << 40: "3TiB", 1536 << 20: "1.5GiB", 916455424: "874MiB",
	} {
		if got := FormatSize(bytes); got != want {
			t.Errorf("FormatSize(%d) = %s, want %s", bytes, got, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"2GiB", "30G", "2 potatoes", "-1", "9999999999999999999T"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err == nil && n <= 0 || err != nil && n != 0 {
			t.Errorf("ParseSize(%q) = %d, %v", s, n, err)
		}
	})
}
