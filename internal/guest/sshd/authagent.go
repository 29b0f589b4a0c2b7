package sshd

import (
	"net"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

// authAgent is a socket behind which the client's authentication agent answers.
type authAgent struct {
	path string
	l    net.Listener
	dir  func() // removes the directory of the socket
}

func (a *authAgent) close() {
	_ = a.l.Close()
	a.dir()
}

// authAgent returns the path of the socket, which it makes for the first who asks: in a new directory that is the
// user's alone. It is gone with the connection.
func (c *connection) authAgent() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return "", net.ErrClosed
	}
	if c.agent != nil {
		return c.agent.path, nil
	}
	var dir string
	err := asUser(c.user, func() (err error) {
		dir, err = os.MkdirTemp("/tmp", "ssh-")
		return err
	})
	if err != nil {
		return "", err
	}
	a := &authAgent{path: filepath.Join(dir, "agent"), dir: func() {
		_ = asUser(c.user, func() error { return os.RemoveAll(dir) })
	}}
	if a.l, err = c.listenUnix(a.path); err != nil {
		a.dir()
		return "", err
	}
	c.agent = a
	c.accept(a.l, func(net.Conn) (ssh.Channel, <-chan *ssh.Request, error) {
		return c.ssh.OpenChannel("auth-agent@openssh.com", nil)
	})
	return a.path, nil
}
