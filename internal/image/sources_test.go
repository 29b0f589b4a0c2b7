package image

import "testing"

func TestGuestSources(t *testing.T) {
	for in, want := range map[aptSource]string{
		{mirror: "http://mirror.example/debian", suite: "bookworm"}:               "deb http://mirror.example/debian bookworm main",
		{mirror: "http://10.1.2.3/debian", suite: "bookworm-updates"}:             "deb http://10.1.2.3/debian bookworm-updates main",
		{mirror: "http://127.0.0.1:3142/debian", suite: "bookworm"}:               "deb http://public.example/x bookworm main",
		{mirror: "http://localhost/debian-security", suite: "bookworm-security"}:  "deb http://public.example/x bookworm-security main",
		{mirror: "http://[::1]/debian", suite: "bookworm"}:                        "deb http://public.example/x bookworm main",
		{mirror: "https://user:secret@mirror.example/debian", suite: "bookworm"}:  "deb http://public.example/x bookworm main",
		{mirror: "file:/srv/debian", suite: "bookworm"}:                           "deb http://public.example/x bookworm main",
		{mirror: "https://docker.example", suite: "trixie", guestKey: "/etc/key"}: "deb [signed-by=/etc/key] https://docker.example trixie main",
	} {
		in.component, in.public = "main", "http://public.example/x"
		if got := guestSources([]aptSource{in}); got != want {
			t.Errorf("guestSources(%+v) = %q, want %q", in, got, want)
		}
	}
}
