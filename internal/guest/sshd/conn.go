package sshd

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/process"
)

// connection is a client that has logged in, and all it has.
type connection struct {
	s    *Server
	ctx  context.Context // ends with the connection
	ssh  *ssh.ServerConn
	user process.Account
	wg   sync.WaitGroup // everything that works for the connection

	mu       sync.Mutex          // guards what follows
	channels int                 // open
	forwards map[string]*forward // by forwardKey, or the path of a socket
	agent    *authAgent          // nil until somebody asks for it
	ended    bool
}

func newConnection(ctx context.Context, s *Server, sc *ssh.ServerConn, user process.Account) *connection {
	return &connection{s: s, ctx: ctx, ssh: sc, user: user, forwards: map[string]*forward{}}
}

// openChannel takes a channel the client asks for, or refuses it.
func (c *connection) openChannel(ch ssh.NewChannel) {
	var serve func(ssh.NewChannel)
	switch ch.ChannelType() {
	case "session":
		serve = c.session
	case "direct-tcpip":
		serve = c.directTCP
	case "direct-streamlocal@openssh.com":
		serve = c.directUnix
	default:
		_ = ch.Reject(ssh.UnknownChannelType, "unknown channel type")
		return
	}
	if !c.take() {
		_ = ch.Reject(ssh.ResourceShortage, fmt.Sprintf("%d channels are open already", c.s.cfg.Limits.Channels))
		return
	}
	c.wg.Go(func() {
		defer c.give()
		serve(ch)
	})
}

// take counts a channel in, unless there are too many.
func (c *connection) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.channels >= c.s.cfg.Limits.Channels {
		return false
	}
	c.channels++
	return true
}

func (c *connection) give() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.channels--
}

// serveRequests answers the requests that belong to no channel, until the connection ends.
func (c *connection) serveRequests(requests <-chan *ssh.Request) {
	for req := range requests {
		ok, reply, err := c.request(req)
		if err != nil {
			c.s.log.Debug("an ssh request was refused", "request", req.Type, "error", err)
		}
		_ = req.Reply(ok && err == nil, reply)
	}
}

// request does what a request asks. The reply goes with an ok.
func (c *connection) request(req *ssh.Request) (ok bool, reply []byte, err error) {
	switch req.Type {
	case "keepalive@openssh.com":
		return true, nil, nil
	case "tcpip-forward":
		reply, err = c.forwardTCP(req.Payload)
	case "cancel-tcpip-forward":
		err = c.cancelTCP(req.Payload)
	case "streamlocal-forward@openssh.com":
		err = c.forwardUnix(req.Payload)
	case "cancel-streamlocal-forward@openssh.com":
		err = c.cancelUnix(req.Payload)
	default:
		return false, nil, nil
	}
	return true, reply, err
}

// end closes what the connection still has, and waits until nothing works for it any more.
func (c *connection) end() {
	c.mu.Lock()
	c.ended = true
	forwards, agent := c.forwards, c.agent
	c.forwards, c.agent = map[string]*forward{}, nil
	c.mu.Unlock()
	for _, f := range forwards {
		f.close()
	}
	if agent != nil {
		agent.close()
	}
	c.wg.Wait()
}

// env says where the connection comes from, in the variables of every ssh server. One that came by the channel has no addresses.
func (c *connection) env() []string {
	host, port := addrPort(c.ssh.RemoteAddr())
	here, herePort := addrPort(c.ssh.LocalAddr())
	return []string{
		fmt.Sprintf("SSH_CLIENT=%s %s %s", host, port, herePort),
		fmt.Sprintf("SSH_CONNECTION=%s %s %s %s", host, port, here, herePort),
	}
}

func addrPort(a net.Addr) (host, port string) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return "UNKNOWN", "65535"
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("").String(), strconv.Itoa(tcp.Port)
}

// asUser calls f with the rights a user has in the file system. f runs on a thread of its own that ends with it, so that no other
// goroutine ever has them.
func asUser(u process.Account, f func() error) error {
	if unix.Geteuid() != 0 || u.UID == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := becomeInFiles(u); err != nil {
			done <- fmt.Errorf("become user %q: %w", u.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// becomeInFiles gives the calling thread, and it alone, a user's groups and file system ids.
func becomeInFiles(u process.Account) error {
	groups := make([]int, len(u.Groups))
	for i, g := range u.Groups {
		groups[i] = int(g)
	}
	if err := unix.Setgroups(groups); err != nil {
		return err
	}
	// Neither says whether it did anything; asking for an impossible id answers with the present one.
	_, _ = unix.SetfsgidRetGid(int(u.GID))
	_, _ = unix.SetfsuidRetUid(int(u.UID))
	gid, _ := unix.SetfsgidRetGid(-1)
	uid, _ := unix.SetfsuidRetUid(-1)
	if uid != int(u.UID) || gid != int(u.GID) {
		return unix.EPERM
	}
	return nil
}
