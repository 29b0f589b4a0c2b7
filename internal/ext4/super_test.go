package ext4

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestSuperblockOfMkfs reads file systems that mke2fs made.
func TestSuperblockOfMkfs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 3<<30); err != nil {
		t.Fatal(err)
	}
	tool(t, "mke2fs", "-q", "-t", "ext4", "-O", "64bit", "-L", "sixteen letters!", "-U", "01234567-89ab-cdef-0123-456789abcdef", path)
	s, err := Superblock(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.UUID.String() != "01234567-89ab-cdef-0123-456789abcdef" || s.Label != "sixteen letters!" || s.Bytes() != 3<<30 || !s.Clean {
		t.Errorf("%+v", s)
	}
	tool(t, "debugfs", "-w", "-R", "feature needs_recovery", path)
	if s, err = Superblock(path); err != nil || s.Clean || !s.NeedsRecovery {
		t.Errorf("after needs_recovery was set: %+v, %v", s, err)
	}
}

func TestNotExt4(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string][]byte{"empty": nil, "short": make([]byte, 1500), "zeros": make([]byte, 1<<20)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Superblock(path); !errors.Is(err, ErrNotExt4) {
			t.Errorf("%s: error %v, want ErrNotExt4", name, err)
		}
	}
	if _, err := Superblock(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

func FuzzParseSuper(f *testing.F) {
	sb := make([]byte, superSize)
	sb[0x38], sb[0x39] = 0x53, 0xEF
	f.Add(sb)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSuper(b)
		if err != nil {
			return
		}
		if s.Bytes() <= 0 || s.groups() == 0 || s.BlockSize < 1024 || s.BlockSize > 64<<10 {
			t.Errorf("accepted %+v", s)
		}
	})
}
