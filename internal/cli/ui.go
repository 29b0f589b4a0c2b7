package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// opener is the program that shows a URL in the user's browser (xdg-utils).
const opener = "xdg-open"

type uiOptions struct{ open bool }

func newUI(a *App) *cobra.Command {
	o := &uiOptions{}
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Print where a browser finds the VMs and what listens in them",
		Long: `Print the URL of a page of this host that shows the VMs and what listens in them. Each TCP port of a VM has a URL of its own,
http://PORT.NAME.localhost:7777/, which reaches it whatever address it listens on in the VM, its 127.0.0.1 included. Only this
user's own programs on this host are served.`,
		Example: `  banger ui
  banger ui --open`,
		GroupID:           groupMain,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runUI(cmd.Context(), a, o) },
	}
	cmd.Flags().BoolVar(&o.open, "open", false, "show it in the browser, too")
	return cmd
}

func runUI(ctx context.Context, a *App, o *uiOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	st, err := c.Daemon(ctx)
	if err != nil {
		return err
	}
	url := st.WebURL()
	if url == "" {
		return noWeb(st, a)
	}
	if st.WebWarning != "" {
		a.say("%s", st.WebWarning)
	}
	if _, err := fmt.Fprintln(a.Out, safeText(url)); err != nil || !o.open {
		return err
	}
	return a.openURL(url)
}

// noWeb is the error for a daemon without a web port.
func noWeb(st api.DaemonStatus, a *App) error {
	if st.WebWarning != "" {
		return api.Errorf(api.KindUnavailable, "%s", st.WebWarning).WithHint("set web_listen_addr = \"127.0.0.1:7777\", then: banger daemon stop")
	}
	file := "the configuration"
	if p, err := a.paths(); err == nil {
		file = p.ConfigFile()
	}
	return api.Errorf(api.KindUnavailable, "the daemon serves no web pages").
		WithHint("set web_listen_addr = \"127.0.0.1:7777\" in %s, then: banger daemon stop (VMs go on)", file)
}

// openURL shows a URL in the user's browser, which goes on after this program.
func (a *App) openURL(url string) error {
	bin, err := a.lookPath(opener)
	if err != nil {
		return api.Errorf(api.KindUnavailable, "open %s: %w", url, err).WithHint("open it yourself, or install xdg-utils")
	}
	if _, err := (hostexec.Runner{}).StartDaemon(hostexec.Daemon{Argv: []string{bin, url}, Dir: "/"}); err != nil {
		return fmt.Errorf("open %s: %w", url, err)
	}
	return nil
}
