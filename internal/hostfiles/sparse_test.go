package hostfiles_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
	"git.thaloco.com/thaloco/banger/internal/hostfiles"
)

// huge is the size the files of TestSparseFilesAreRefused are said to have.
const huge = "9223372036854775807"

// paxSparse is a stream of a file of holes alone, with these records of GNU tar.
func paxSparse(t *testing.T, typ byte, body string, records map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Name: "f", Typeflag: typ, Mode: 0o600, Size: int64(len(body)), Format: tar.FormatPAX, PAXRecords: map[string]string{}}
	for k, v := range records {
		h.PAXRecords["XNU.sparse."+k] = v
	}
	err := w.WriteHeader(h)
	if err == nil {
		_, err = w.Write([]byte(body))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("XNU.sparse"), []byte("GNU.sparse")) // the writer does not write such records
}

// gnuSparse is the same in the old format of GNU tar.
func gnuSparse() []byte {
	b := make([]byte, 3*512)
	copy(b, "f")
	copy(b[100:], "0000600\x00")
	copy(b[108:], "0000000\x000000000\x0000000000000\x0000000000000\x00")
	b[156] = tar.TypeGNUSparse
	copy(b[257:], "ustar  \x00")
	copy(b[386:], "77777777777\x0000000000000\x00") // a hole up to 8 GiB, and then no bytes
	copy(b[483:], "77777777777\x00")
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// A few bytes that stand for a file without an end would keep the host busy for as long as it takes to count to that.
func TestSparseFilesAreRefused(t *testing.T) {
	v01 := map[string]string{"size": huge, "numblocks": "1", "map": "0,0"}
	for name, stream := range map[string][]byte{
		"gnu":            gnuSparse(),
		"pax 0.1":        paxSparse(t, tar.TypeReg, "", v01),
		"pax 1.0":        paxSparse(t, tar.TypeReg, "1\n0\n0\n"+strings.Repeat("\x00", 506), map[string]string{"major": "1", "minor": "0", "realsize": huge, "name": "f"}),
		"not even files": paxSparse(t, tar.TypeCont, "", v01),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := hostfiles.Receive(ctx, bytes.NewReader(stream), files.Target{Path: dir}, nil)
			if api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), "sparse") {
				t.Errorf("receive a sparse file: %v", err)
			}
			if _, err := os.Lstat(filepath.Join(dir, "f")); !os.IsNotExist(err) {
				t.Errorf("it is there: %v", err)
			}
		})
	}
}
