package cli

import (
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

func TestModeText(t *testing.T) {
	for want, f := range map[string]api.ImageFile{
		"-rw-r--r--": {Type: "file", Mode: 0o644}, "drwxr-xr-x": {Type: "dir", Mode: 0o755}, "lrwxrwxrwx": {Type: "symlink", Mode: 0o777},
		"-rws--x--x": {Type: "file", Mode: 0o4711}, "-rwSr-Sr-T": {Type: "file", Mode: 0o7644}, "drwxrwxrwt": {Type: "dir", Mode: 0o1777},
		"crw-rw-rw-": {Type: "char", Mode: 0o666}, "brw-------": {Type: "block", Mode: 0o600}, "prw-------": {Type: "fifo", Mode: 0o600},
		"s---------": {Type: "socket"}, "?---------": {Type: "unknown"}, "-rwxrwsr-x": {Type: "file", Mode: 0o2775},
	} {
		if got := modeText(f); got != want {
			t.Errorf("%+v: %s, want %s", f, got, want)
		}
	}
}
