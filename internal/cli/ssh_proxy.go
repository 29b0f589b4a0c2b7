package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

type sshProxyOptions struct {
	name   string
	fdpass bool
}

func newSSHProxy(a *App) *cobra.Command {
	o := &sshProxyOptions{}
	cmd := &cobra.Command{
		Use:   "ssh-proxy NAME[.vm]",
		Short: "Connect stdin and stdout to the ssh server of a VM",
		Long: `Connect stdin and stdout to the ssh server of a VM. This is ssh's ProxyCommand in what banger ssh-config
prints; it is of no use by itself.`,
		Example: `  banger ssh-proxy testbox.vm
  banger ssh-proxy --fdpass testbox`,
		Hidden:            true,
		Args:              args(1, 1, "the name of a VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = vmOfHost(args[0])
			return runSSHProxy(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.fdpass, "fdpass", false, "pass the connection itself through stdout, a socket, for ssh's ProxyUseFdpass")
	return cmd
}

func runSSHProxy(ctx context.Context, a *App, o *sshProxyOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	conn, err := c.SSH(ctx, o.name)
	if err != nil {
		return inOneLine(err)
	}
	defer conn.Close()
	if o.fdpass {
		return passConn(a.Out, conn)
	}
	return relay(ctx, a.In, a.Out, conn)
}

// inOneLine puts the hint of an error into its message: ssh prints more below it.
func inOneLine(err error) error {
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Hint == "" {
		return err
	}
	return api.Errorf(e.Kind, "%w (%s)", err, e.Hint)
}

// passConn sends the descriptor of conn over out, a unix socket. OpenSSH takes one byte with it (mm_receive_fd).
func passConn(out io.Writer, conn net.Conn) error {
	file, ok := out.(*os.File)
	socket, isSocket := conn.(*net.UnixConn)
	if !ok || !isSocket {
		return usagef("leave out --fdpass", "--fdpass needs a socket as stdout")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return fmt.Errorf("pass the connection on: %w", err)
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendmsg(int(file.Fd()), []byte{0}, unix.UnixRights(int(fd)), nil, 0)
	})
	if errors.Is(sent, unix.ENOTSOCK) {
		return usagef("leave out --fdpass", "--fdpass needs a socket as stdout")
	}
	if err = errors.Join(err, sent); err != nil {
		return fmt.Errorf("pass the connection on: %w", err)
	}
	return nil
}

// relay copies both ways until the VM's side has ended; the end of in is passed on as such.
func relay(ctx context.Context, in io.Reader, out io.Writer, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, in) // an error shows in the other direction
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	_, err := io.Copy(out, conn)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
