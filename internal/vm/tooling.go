package vm

import (
	"context"
	"net"
	"path"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/workspace"
)

// toolFiles are the files in which a repository names its tools, for mise (mise.jdx.dev/configuration.html) and, the last, for asdf.
var toolFiles = []string{".mise.toml", "mise.toml", ".tool-versions"}

// toolingScript installs the tools of the directory it runs in; $1 is its log.
const toolingScript = `mkdir -p "$(dirname "$1")" && exec >"$1" 2>&1 </dev/null
date
command -v mise >/dev/null || { echo "mise is not installed in this VM, so nothing was done"; exit 0; }
mise trust --yes --quiet || true
echo "+ mise install"
mise install --yes
echo "mise install ended with status $?"
date`

// startTooling lets the guest install the tools that a workspace names, in the background, and returns the log of that; empty where
// there is nothing to install. That it cannot be started is for the log only: nobody waits for it.
func (p *prepare) startTooling(ctx context.Context, base *workspace.Manifest) string {
	wanted := false
	for _, name := range toolFiles {
		if f, ok := base.Files[name]; ok && f.Mode.IsRegular() {
			wanted = true
		}
	}
	if !wanted {
		return ""
	}
	log := "/root/.cache/banger/vm-run-tooling-" + strings.Map(plainName, path.Base(p.guestPath)) + ".log"
	_, err := exec.Run(ctx, exec.Options{
		Dial: func(ctx context.Context) (net.Conn, error) { return p.live.machine.Dial(ctx, wire.PortExec) },
		Start: wire.ExecStart{Argv: []string{"/bin/sh", "-c", toolingScript, "sh", log}, Dir: p.guestPath, User: "root", NoStdin: true, Detach: true,
			Env: []string{"HOME=/root", "MISE_YES=1", "MISE_TRUSTED_CONFIG_PATHS=" + p.guestPath}},
	})
	if err != nil {
		p.s.cfg.Log.Warn("cannot start the installation of a workspace's tools", "vm", p.rec.Name, "error", err.Error())
		return ""
	}
	return log
}

// plainName leaves out of a name what a shell or a terminal would take for something else.
func plainName(r rune) rune {
	if r == '-' || r == '_' || r == '.' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
		return r
	}
	return '_'
}
