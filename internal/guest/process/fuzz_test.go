package process

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// FuzzClient lets an attached client say anything: the stream ends, and the process can be ended.
func FuzzClient(f *testing.F) {
	seed := func(fill func(w *wire.FrameWriter)) {
		var b bytes.Buffer
		w := wire.NewFrameWriter(&b)
		fill(w)
		_ = w.Flush()
		f.Add(b.Bytes())
	}
	seed(func(w *wire.FrameWriter) {
		copy(w.Chunk(wire.FrameStdin, 0, 3), "abc")
		w.Size(3, 4)
		w.Ack(1, 0)
		_ = w.Bytes(wire.FrameSignal, []byte("USR1"))
		w.Offset(wire.FrameStdinEOF, 3)
		_ = w.Bytes(wire.FrameCollect, nil)
	})
	seed(func(w *wire.FrameWriter) { w.Chunk(wire.FrameStdin, 1<<40, 1) })
	f.Fuzz(func(t *testing.T, said []byte) {
		m := newManager(t, Config{})
		if _, err := m.Start(wire.ExecStart{Version: wire.Version, ID: request(1, "").ID, Argv: []string{"cat"}}); err != nil {
			t.Fatal(err)
		}
		p := dial(t, m).attach(1, 0, 0)
		go func() {
			for {
				if _, err := p.fr.ReadFrame(); err != nil {
					return
				}
			}
		}()
		_ = p.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = p.conn.Write(said)
		_ = p.conn.Close()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzAccounts reads whatever a guest has for passwd and group.
func FuzzAccounts(f *testing.F) {
	f.Add("dev:x:1000:1000::/home/dev:/bin/sh\n", "dev:x:1000:\nwheel:x:10:dev,root\n", "dev:wheel")
	f.Add("::::::\nx:x:-1:99999999999::\x00:\n", ":::\n", "1000")
	f.Add("", "", "root:root")
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		etc := t.TempDir()
		for name, text := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if a, err := lookupAccount(etc, user); err == nil && (a.name == "" || a.home == "" || a.shell == "") {
			t.Fatalf("%+v", a)
		}
	})
}
