package quarantine

import (
	"fmt"
	"testing"
)

// BenchmarkPull is a pull of nothing, of one commit, and of a branch that was amended.
func BenchmarkPull(b *testing.B) {
	for name, work := range map[string]func(w *world, i int){
		"nothing": func(*world, int) {},
		"commit":  func(w *world, i int) { w.commit(w.guest, fmt.Sprint(i)) },
		"amend":   func(w *world, i int) { w.git(w.guest, "commit", "-q", "--allow-empty", "--amend", "-m", fmt.Sprint(i)) },
	} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			w.commit(w.guest, "first of the guest's")
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				work(w, i)
				req := w.request()
				b.StartTimer()
				if _, err := Pull(b.Context(), w.cfg, req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
