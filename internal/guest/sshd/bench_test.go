package sshd

import (
	"io"
	"testing"

	"golang.org/x/crypto/ssh"
)

// BenchmarkTrue is what "ssh guest true" costs, client and server.
func BenchmarkTrue(b *testing.B) {
	g := newGuest(b, nil)
	for b.Loop() {
		c := g.dial()
		if err := newSession(b, c).Run("true"); err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
}

// BenchmarkChannel is a command in a connection that is there.
func BenchmarkChannel(b *testing.B) {
	c := newGuest(b, nil).dial()
	for b.Loop() {
		if err := newSession(b, c).Run("true"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBulk is what a command reads and writes, client and server.
func BenchmarkBulk(b *testing.B) {
	c := newGuest(b, nil).dial()
	const size = 64 << 20
	for name, move := range map[string]func(*ssh.Session) error{
		"out": func(s *ssh.Session) error { s.Stdout = io.Discard; return s.Run("head -c 67108864 /dev/zero") },
		"in": func(s *ssh.Session) error {
			s.Stdin = io.LimitReader(zeros{}, size)
			return s.Run("cat >/dev/null")
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if err := move(newSession(b, c)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
