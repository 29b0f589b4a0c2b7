package preview

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/suggest"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// trouble is a request that gets no answer of a guest, and why.
type trouble struct {
	status int
	// title is a few words, text a sentence, hint what to do; title and text are required.
	title, text, hint string
	// links are where to go instead.
	about string
	links []link
	// again is after how many seconds a browser is to ask once more; 0 for never.
	again int
	// end ends the connection, too.
	end bool
}

// link is a place to go.
type link struct{ URL, Text, Note string }

// tell answers with what went wrong: a page where the client shows pages, else lines of text.
func (s *Server) tell(w http.ResponseWriter, r *http.Request, tr trouble) {
	h := ownHeader(w)
	if tr.end {
		h.Set("Connection", "close")
	}
	if tr.again > 0 {
		h.Set("Retry-After", fmt.Sprint(tr.again))
	}
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		hint, command := cutCommand(tr.hint)
		s.render(w, r, tr.status, &page{Title: tr.title, Status: tr.status, Text: tr.text, Hint: hint, Command: command, About: tr.about,
			Links: tr.links, Again: tr.again})
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "banger: %s\n", tr.text)
	if tr.about != "" {
		fmt.Fprintf(&b, "%s:\n", tr.about)
	}
	for _, l := range tr.links {
		fmt.Fprintf(&b, "  %s  %s\n", l.URL, l.Note)
	}
	if tr.hint != "" {
		fmt.Fprintf(&b, "hint: %s\n", tr.hint)
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(tr.status)
	_, _ = w.Write([]byte(b.String())) // nothing to do for a client that left
}

// cutCommand divides a hint such as "start it: banger vm start web" in a beginning of a sentence and the command.
func cutCommand(hint string) (text, command string) {
	if hint == "" {
		return "", ""
	}
	text = strings.ToUpper(hint[:1]) + hint[1:]
	if i := strings.LastIndex(text, ": banger "); i >= 0 {
		return text[:i+1], text[i+2:]
	}
	if strings.HasPrefix(hint, "banger ") {
		text = hint // a command keeps its letters
	}
	return text, ""
}

// noVM says that a name is no VM's, and which it might have been meant to be.
func (s *Server) noVM(ctx context.Context, to target, err error) trouble {
	if api.KindOf(err) != api.KindNotFound {
		return s.failed(to, err)
	}
	tr := trouble{status: http.StatusNotFound, title: "No such VM", text: fmt.Sprintf("There is no VM %s.", to.vm), hint: "these are all: banger vm list"}
	vms, err := s.cfg.VMs.List(ctx)
	if err != nil || len(vms) == 0 {
		tr.hint = "make one: banger vm run --name " + to.vm
		return tr
	}
	names := make([]string, len(vms))
	for i, v := range vms {
		names[i] = v.Name
	}
	for _, n := range suggest.Near(to.vm, names) {
		tr.about = "Did you mean"
		tr.links = append(tr.links, link{URL: to.url(n, to.port), Text: n})
	}
	return tr
}

// noConnection says why there is no connection to the port of a VM.
func (s *Server) noConnection(ctx context.Context, to target, err error) trouble {
	if errors.Is(err, vmm.ErrRefused) {
		return s.nobody(ctx, to)
	}
	if api.KindOf(err) == api.KindNotFound {
		return s.noVM(ctx, to, err)
	}
	vm, e := s.cfg.VMs.VM(ctx, to.vm)
	if e != nil {
		return s.noVM(ctx, to, e)
	}
	tr := trouble{status: http.StatusServiceUnavailable, title: fmt.Sprintf("%s is %s", to.vm, vm.State), text: fmt.Sprintf("The VM %s is %s.", to.vm, vm.State)}
	if vm.Reason != "" {
		tr.text = fmt.Sprintf("The VM %s is %s: %s.", to.vm, vm.State, strings.TrimSuffix(vm.Reason, "."))
	}
	switch vm.State {
	case api.StateStopped, api.StateFailed, api.StateSuspended:
		tr.hint = "start it: banger vm start " + to.vm
	case api.StateCreating, api.StateStarting, api.StateStopping:
		tr.again = 2
		tr.hint = "this page tries again by itself"
	case api.StateRunning:
		tr = s.failed(to, err)
		if errors.Is(err, errSlow) {
			tr.status = http.StatusGatewayTimeout
			tr.text = fmt.Sprintf("The VM %s gave no connection within %s.", to.vm, dialWithin)
			tr.hint = "see whether it is well: banger vm show " + to.vm
		}
	}
	return tr
}

// nobody says that nothing listens on a port, and what does on others.
func (s *Server) nobody(ctx context.Context, to target) trouble {
	tr := trouble{status: http.StatusBadGateway, title: fmt.Sprintf("Nothing listens on port %d", to.port),
		text: fmt.Sprintf("In the VM %s nothing listens on port %d.", to.vm, to.port),
		hint: fmt.Sprintf("start it there, for instance: banger vm exec %s -- python3 -m http.server %d", to.vm, to.port)}
	ctx, cancel := context.WithTimeout(ctx, portsWithin)
	defer cancel()
	ports, err := s.cfg.VMs.Ports(ctx, to.vm)
	if err != nil {
		return tr
	}
	for _, p := range webPorts(ports) {
		if p.Port == to.port || shell(p) {
			continue
		}
		tr.about = "What does listen"
		tr.links = append(tr.links, link{URL: to.url(to.vm, p.Port), Text: fmt.Sprint(p.Port), Note: p.Process})
	}
	return tr
}

// failed is trouble that an error of banger's explains.
func (s *Server) failed(to target, err error) trouble {
	e := api.AsError(err)
	if e.Kind == api.KindInternal {
		s.cfg.Log.Error("a port of a VM cannot be shown", "vm", to.vm, "port", to.port, "err", err)
	}
	return trouble{status: e.Kind.Status(), title: "That did not work", text: sentence(e.Message), hint: e.Hint}
}
