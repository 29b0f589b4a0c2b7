package template

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 8<<20 + 100
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 5000, 1<<20 - 3, 3 << 20, size - 5} {
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	want, err := Read(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if len(want.Extents) != 4 {
		t.Errorf("%d extents, want 4", len(want.Extents))
	}
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(want, got) {
		t.Errorf("%d extents became %d others", len(want.Extents), len(got.Extents))
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := got.WriteTo(out); err != nil {
		t.Fatal(err)
	}
	if err := out.Truncate(size); err != nil {
		t.Fatal(err)
	}
	x, _ := os.ReadFile(f.Name())
	y, _ := os.ReadFile(out.Name())
	if !bytes.Equal(x, y) {
		t.Error("the file differs after a round trip")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(magic + "\x00\x10\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00data"))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		tpl, err := decode(raw)
		if err != nil {
			return
		}
		end := int64(0)
		for _, e := range tpl.Extents {
			if e.Offset < end || e.Offset+int64(len(e.Data)) > tpl.Size {
				t.Errorf("extent of %d bytes at %d", len(e.Data), e.Offset)
			}
			end = e.Offset + int64(len(e.Data))
		}
	})
}
