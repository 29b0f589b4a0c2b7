package image

import (
	"testing"

	"git.thaloco.com/thaloco/banger/internal/deb"
)

func TestGuestSources(t *testing.T) {
	for in, want := range map[string]string{
		"http://mirror.example/debian bookworm main":              "deb http://mirror.example/debian bookworm main",
		"http://10.1.2.3/debian bookworm-updates main":            "deb http://10.1.2.3/debian bookworm-updates main",
		"http://127.0.0.1:3142/debian bookworm main":              "deb " + deb.PublicMirror + " bookworm main",
		"http://localhost/debian-security bookworm-security main": "deb " + deb.PublicSecurity + " bookworm-security main",
		"http://[::1]/debian bookworm main":                       "deb " + deb.PublicMirror + " bookworm main",
		"https://user:secret@mirror.example/debian bookworm main": "deb " + deb.PublicMirror + " bookworm main",
		"file:/srv/debian bookworm main":                          "deb " + deb.PublicMirror + " bookworm main",
	} {
		if got := guestSources([]string{in}); got != want {
			t.Errorf("guestSources(%q) = %q, want %q", in, got, want)
		}
	}
}
