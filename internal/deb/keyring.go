package deb

import (
	"bytes"
	_ "embed"
	"fmt"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// archiveKeys holds the automatic signing keys of Debian 12 and 13 and of their security archives:
// debian-archive-{bookworm,trixie}-{automatic,security-automatic}.gpg, one after the other, as the
// package debian-archive-keyring 2023.3+deb12u2 installs them in /usr/share/keyrings. Public data;
// the keys of Debian 12 expire in 2031, those of Debian 13 in 2035. TestDebianKeyring lists their fingerprints.
//
//go:embed debian-archive.gpg
var archiveKeys []byte

// DebianKeyring returns the keys that sign the archives of Debian 12 and 13.
func DebianKeyring() (openpgp.EntityList, error) {
	keys, err := openpgp.ReadKeyRing(bytes.NewReader(archiveKeys))
	if err != nil {
		return nil, fmt.Errorf("read the shipped keyring of Debian: %w", err)
	}
	return keys, nil
}
