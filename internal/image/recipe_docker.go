package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb"
)

// dockerFrom is where the Docker of an image comes from.
type dockerFrom string

const (
	dockerDebian dockerFrom = "debian" // docker.io of Debian; the default
	dockerCE     dockerFrom = "ce"     // Docker's own packages
	dockerNone   dockerFrom = "none"
)

// publicDocker is where Docker serves its packages for Debian, each release a suite, all in the component "stable"
// (docs.docker.com/engine/install/debian).
const publicDocker = "https://download.docker.com/linux/debian"

// guestDockerKey is where the key of Docker's archive is in an image.
const guestDockerKey = "/etc/apt/keyrings/docker.gpg"

// maxKey is the greatest size of a file of keys in bytes.
const maxKey = 1 << 20

// packagesOf returns what is installed: the packages listed, and those of the Docker that was asked for in place of other ones.
func (s source) packagesOf() []string {
	out := slices.Clone(s.Packages)
	add := func(names ...string) {
		for _, n := range names {
			if !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	switch s.Docker {
	case dockerNone:
	case dockerCE:
		// They conflict with Debian's.
		debians := []string{"docker.io", "docker-cli", "docker-buildx", "docker-compose", "docker-doc", "containerd", "runc"}
		out = slices.DeleteFunc(out, func(p string) bool { return slices.Contains(debians, p) })
		add("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin")
	default:
		add("docker.io")
		if s.Release != "bookworm" { // Debian 13 has the program docker in a package of its own, which docker.io only recommends
			add("docker-cli")
		}
	}
	return out
}

func (s source) checkDocker() error {
	switch s.Docker {
	case "", dockerDebian, dockerNone:
		if s.DockerMirror != "" || s.DockerKey != "" {
			return fmt.Errorf("docker_mirror, docker_key: these keys only go with docker = %q", dockerCE)
		}
		return nil
	case dockerCE:
	default:
		return fmt.Errorf("docker: expected %s, %s or %s, found %q", dockerDebian, dockerCE, dockerNone, s.Docker)
	}
	if !isHTTP(s.DockerMirror) || strings.ContainsAny(s.DockerMirror, " \n") {
		return fmt.Errorf("docker_mirror: expected the URL of Docker's archive, such as %s, found %q", publicDocker, s.DockerMirror)
	}
	if isFile(s.DockerKey) {
		return nil
	}
	if _, err := parseKeys([]byte(s.DockerKey)); err != nil {
		return fmt.Errorf("docker_key: expected the armored key of Docker's archive, or the absolute path of a file that holds it: %w", err)
	}
	return nil
}

// parseKeys reads OpenPGP keys, armored or not.
func parseKeys(data []byte) (openpgp.EntityList, error) {
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN PGP ")) {
		read = openpgp.ReadArmoredKeyRing
	}
	keys, err := read(bytes.NewReader(data))
	if err == nil && len(keys) == 0 {
		err = errors.New("there is no key in it")
	}
	return keys, err
}

// dockerKeys returns the keys of Docker's archive.
func (s source) dockerKeys() (openpgp.EntityList, error) {
	data := []byte(s.DockerKey)
	if isFile(s.DockerKey) {
		info, err := os.Stat(s.DockerKey)
		if err == nil && (!info.Mode().IsRegular() || info.Size() > maxKey) {
			err = errors.New("it is not a file of keys")
		}
		if err == nil {
			data, err = os.ReadFile(s.DockerKey)
		}
		if err != nil {
			return nil, api.Errorf(api.KindInvalid, "read the key of Docker's archive %q: %w", s.DockerKey, err).WithHint("correct docker_key in the catalog")
		}
	}
	keys, err := parseKeys(data)
	if err != nil {
		return nil, api.Errorf(api.KindInvalid, "read the key of Docker's archive: %w", err).WithHint("correct docker_key in the catalog")
	}
	return keys, nil
}

// dockerArchive adds Docker's archive to a, where the image has it: that it is there and signed by the key the catalog gives.
func (b *debian) dockerArchive(ctx context.Context, a *archive) error {
	if b.src.Docker != dockerCE {
		return nil
	}
	keys, err := b.src.dockerKeys()
	if err != nil {
		return err
	}
	s := b.store
	client := deb.New(deb.Config{CacheDir: filepath.Join(s.cfg.CacheDir, "image", "docker"), Keyring: keys, HTTP: s.cfg.HTTP, Now: s.cfg.Now, Log: s.cfg.Log})
	mirror := strings.TrimRight(b.src.DockerMirror, "/")
	rel, err := client.Release(ctx, mirror, b.src.Release)
	if err != nil {
		return fmt.Errorf("look up Docker's archive: %w", err)
	}
	a.add(aptSource{mirror: mirror, suite: b.src.Release, component: "stable", keyring: dockerKeyring, guestKey: guestDockerKey, public: publicDocker}, rel.Date)
	a.docker = keys
	return nil
}
