package sshkeys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"git.thaloco.com/thaloco/banger/api"
)

// maxKeyFile is the longest file that is taken for a key, in bytes.
const maxKeyFile = 64 << 10

// UserKey is the key by which VMs know their user.
type UserKey struct {
	// Identity is the file OpenSSH is given as IdentityFile: a private key or, where an ssh agent holds that, a public one.
	Identity string
	// Public is a line of authorized_keys, without the newline.
	Public string
}

// User returns the user's key: that of the file configured or, where that is empty, banger's own in the file own, which is made
// where it is not there. Several processes may do that at once and all get the same key.
func User(configured, own string) (UserKey, error) {
	if configured != "" {
		return configuredKey(configured)
	}
	key, err := ownKey(own)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeOwnKey(own)
	}
	if err != nil {
		return UserKey{}, fmt.Errorf("banger's ssh key: %w", err)
	}
	return key, nil
}

func configuredKey(path string) (UserKey, error) {
	const hint = "set ssh_key_path in banger's configuration to a key that is there, or remove it: then banger uses a key of its own"
	data, err := readKey(path)
	if err != nil {
		return UserKey{}, api.Errorf(api.KindInvalid, "ssh_key_path: %w", err).WithHint("%s", hint)
	}
	public, err := publicOf(data)
	if err == nil {
		return UserKey{Identity: path, Public: public}, nil
	}
	// A key of hardware, or one with a passphrase in an old format: only the file beside it tells the public half.
	beside, berr := readKey(path + ".pub")
	if berr == nil {
		if key, comment, _, _, perr := ssh.ParseAuthorizedKey(beside); perr == nil {
			return UserKey{Identity: path, Public: publicLine(key, plainComment(comment))}, nil
		}
		berr = errors.New("it is no public key")
	}
	e := api.Errorf(api.KindInvalid, "ssh_key_path: %q: %w", path, err)
	if errors.As(err, new(*ssh.PassphraseMissingError)) {
		return UserKey{}, e.WithHint("put its public key beside it, in %s.pub: ssh-keygen -y -f %s", path, path)
	}
	if !errors.Is(berr, fs.ErrNotExist) {
		return UserKey{}, e.WithHint("%s.pub: %v", path, berr)
	}
	return UserKey{}, e.WithHint("%s", hint)
}

// readKey reads a file that may be a key.
func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("%q is too long to be a key", path)
	}
	return data, nil
}

// publicOf is the public key, as a line, of a file that holds a private or a public one.
func publicOf(data []byte) (string, error) {
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		key, comment, _, _, err := ssh.ParseAuthorizedKey(data)
		if err != nil {
			return "", errors.New("it is no ssh key")
		}
		return publicLine(key, plainComment(comment)), nil
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err == nil {
		return publicLine(signer.PublicKey(), ""), nil
	}
	if locked, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok && locked.PublicKey != nil {
		return publicLine(locked.PublicKey, ""), nil
	}
	return "", err
}

// plainComment is a comment that cannot end its line.
func plainComment(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' }), " ")
}

// ownKey reads banger's own key, and makes sure that OpenSSH will not refuse it for its mode.
func ownKey(path string) (UserKey, error) {
	data, err := readKey(path)
	if err != nil {
		return UserKey{}, err
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return UserKey{}, api.Errorf(api.KindUnavailable, "%q: %w", path, err).
			WithHint("remove it, and banger makes a new one; VMs know that from their next start on")
	}
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return UserKey{}, err
	}
	return UserKey{Identity: path, Public: publicLine(signer.PublicKey(), ownComment())}, nil
}

// ownComment is the comment of banger's own key.
func ownComment() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	return "banger@" + plainComment(host)
}

func makeOwnKey(path string) (UserKey, error) {
	unlock, err := LockDir(filepath.Dir(path))
	if err != nil {
		return UserKey{}, err
	}
	defer unlock()
	if key, err := ownKey(path); !errors.Is(err, fs.ErrNotExist) { // somebody was faster
		return key, err
	}
	pair, err := Generate(ownComment())
	if err != nil {
		return UserKey{}, err
	}
	// The public half first: it is for people and for ssh-copy-id, nobody takes it for the key.
	if err := WriteFile(path+".pub", []byte(pair.Public+"\n"), 0o644); err != nil {
		return UserKey{}, err
	}
	if err := WriteFile(path, []byte(pair.Private), 0o600); err != nil {
		return UserKey{}, err
	}
	return ownKey(path)
}
