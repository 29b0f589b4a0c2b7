package suggest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNear(t *testing.T) {
	keys := []string{"default_cpus", "default_dns", "default_disk", "engine", "network"}
	for _, tc := range []struct {
		word string
		want []string
	}{
		{"defualt_cpus", []string{"default_cpus"}},
		{"Engine", []string{"engine"}},
		{"engin", []string{"engine"}},
		{"default", []string{"default_dns", "default_cpus", "default_disk"}},
		{"zzz", nil},
		{"", nil},
	} {
		if diff := cmp.Diff(tc.want, Near(tc.word, keys)); diff != "" {
			t.Errorf("Near(%q): (-want +got)\n%s", tc.word, diff)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"ab", "ba", 1}, {"kitten", "sitting", 3}, {"web", "web", 0}, {"ü", "u", 1}} {
		if got := distance(tc.a, tc.b); got != tc.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
		if got := distance(tc.b, tc.a); got != tc.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tc.b, tc.a, got, tc.want)
		}
	}
}
