// Package sshkeys makes and finds the keys that ssh between host and VMs rests on: the user's key, which VMs let in;
// the host key of each VM; and the file of known hosts that lets OpenSSH know a VM without asking.
//
// user.go is the user's key, known.go the known hosts, file.go how files that others read meanwhile are written.
package sshkeys

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Pair is a key as the files of OpenSSH have it.
type Pair struct {
	// Private is an OpenSSH private key in PEM, without a passphrase.
	Private string
	// Public is "ssh-ed25519 AAAA…" and, where it has one, a comment; no newline.
	Public string
}

// Generate makes an ed25519 key. The comment, which may be empty, must not contain a line end.
func Generate(comment string) (Pair, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make an ssh key: %w", err)
	}
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		return Pair{}, fmt.Errorf("make an ssh key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return Pair{}, fmt.Errorf("make an ssh key: %w", err)
	}
	return Pair{Private: string(pem.EncodeToMemory(block)), Public: publicLine(public, comment)}, nil
}

// publicLine is a line of authorized_keys, without the newline.
func publicLine(key ssh.PublicKey, comment string) string {
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
	if comment != "" {
		line += " " + comment
	}
	return line
}
