package preview

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed" // page.html
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/disk"
)

const (
	// portsWithin is how long a page waits to be told what listens in a VM, asking is how many it asks at a time.
	portsWithin, asking = 2 * time.Second, 16
	// soon is after how many seconds a page with something on the move asks again.
	soon = 2
)

//go:embed page.html
var pageHTML string

// pages is the template of all pages, pageCSP their Content-Security-Policy: nothing but the style that is in them, and the icon.
var (
	pages   = template.Must(template.New("page").Parse(pageHTML))
	pageCSP = "default-src 'none'; style-src 'sha256-" + styleHash() + "'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// styleHash is the SHA-256 of what stands in the page's style element.
func styleHash() string {
	_, rest, _ := strings.Cut(pageHTML, "<style>")
	style, _, _ := strings.Cut(rest, "</style>")
	sum := sha256.Sum256([]byte(style))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// page is what the template shows: VMs, or trouble.
type page struct {
	Title string
	// Home is the URL of the page of all VMs; empty on it.
	Home string
	// Again is after how many seconds it asks again; 0 for never.
	Again int

	Status int // 0 where all is well
	Text   string
	// Hint is what to do, by the command Command.
	Hint, Command string
	About         string
	Links         []link

	VMs []card
	// Running counts those of VMs that run.
	Running int
}

// card is a VM on a page.
type card struct {
	Name, URL     string
	State, Reason string
	// Facts are a few words each.
	Facts []string
	// Ports are what listens, Shell the one for ssh; Quiet says why there is none to show, with the command Command.
	Ports          []portLink
	Shell          *portLink
	Quiet, Command string
}

// portLink is a port that listens; URL is empty where it is not for browsers, and Own is the command for it.
type portLink struct {
	Port              uint16
	URL, Process, Own string
}

// ownHeader sets what every page of banger's own has.
func ownHeader(w http.ResponseWriter) http.Header {
	h := w.Header()
	h.Set("Content-Security-Policy", pageCSP)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	return h
}

// render writes a page. to is nil for one that stands alone.
func (s *Server) render(w http.ResponseWriter, r *http.Request, status int, p *page) {
	if to, err := parseHost(r.Host); err == nil && (to.vm != "" || p.Status != 0) {
		p.Home = to.url("", 0)
	}
	var b bytes.Buffer
	if err := pages.Execute(&b, p); err != nil {
		s.cfg.Log.Error("write a page", "err", err)
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b.Bytes()) // nothing to do for a client that left
	}
}

// onlyPage answers what asks a page of banger's for something else than the page; false where that was so.
func (s *Server) onlyPage(w http.ResponseWriter, r *http.Request, to target) bool {
	switch {
	case !safe(r.Method):
		w.Header().Set("Allow", "GET, HEAD")
		s.tell(w, r, trouble{status: http.StatusMethodNotAllowed, title: "Only to look at", text: "This page can be read, and nothing else.",
			hint: "a port of a VM is at " + to.url(cmp.Or(to.vm, "NAME"), 3000)})
	case r.URL.Path != "/":
		s.tell(w, r, trouble{status: http.StatusNotFound, title: "No such page", text: fmt.Sprintf("There is nothing at %q here.", clip(r.URL.Path)),
			hint: "a port of a VM has its name in front: " + to.url(cmp.Or(to.vm, "NAME"), 3000)})
	default:
		return true
	}
	return false
}

// indexPage shows all VMs and what listens in them.
func (s *Server) indexPage(w http.ResponseWriter, r *http.Request, to target) {
	if !s.onlyPage(w, r, to) {
		return
	}
	vms, err := s.cfg.VMs.List(r.Context())
	if err != nil {
		s.tell(w, r, s.failed(to, err))
		return
	}
	slices.SortStableFunc(vms, func(a, b api.VM) int {
		return cmp.Or(cmp.Compare(rank(a.State), rank(b.State)), cmp.Compare(a.Name, b.Name))
	})
	s.show(w, r, to, "VMs", vms)
}

// vmPage shows one VM.
func (s *Server) vmPage(w http.ResponseWriter, r *http.Request, to target) {
	if !s.onlyPage(w, r, to) {
		return
	}
	vm, err := s.cfg.VMs.VM(r.Context(), to.vm)
	if err == nil && vm.Name != to.vm {
		err = api.Errorf(api.KindNotFound, "vm %q does not exist", to.vm)
	}
	if err != nil {
		s.tell(w, r, s.noVM(r.Context(), to, err))
		return
	}
	s.show(w, r, to, vm.Name, []api.VM{vm})
}

// rank puts VMs in order: what runs first.
func rank(st api.VMState) int {
	switch st {
	case api.StateRunning:
		return 0
	case api.StateCreating, api.StateStarting, api.StateStopping:
		return 1
	case api.StatePaused:
		return 2
	}
	return 3
}

// show asks the VMs that run what listens in them, all at once, and renders them.
func (s *Server) show(w http.ResponseWriter, r *http.Request, to target, title string, vms []api.VM) {
	p := &page{Title: title, VMs: make([]card, len(vms))}
	ctx, cancel := context.WithTimeout(r.Context(), portsWithin)
	defer cancel()
	var wg sync.WaitGroup
	turn := make(chan struct{}, asking)
	for i, v := range vms {
		p.VMs[i] = newCard(v, to)
		switch v.State {
		case api.StateRunning:
			p.Running++
			wg.Go(func() {
				turn <- struct{}{}
				defer func() { <-turn }()
				p.VMs[i].listen(ctx, s.cfg.VMs, to)
			})
		case api.StateCreating, api.StateStarting, api.StateStopping, api.StateDeleting:
			p.Again = soon
		}
	}
	wg.Wait()
	ownHeader(w)
	s.render(w, r, http.StatusOK, p)
}

// newCard is a VM without its ports.
func newCard(v api.VM, to target) card {
	c := card{Name: v.Name, URL: to.url(v.Name, 0), State: string(v.State), Reason: v.Reason}
	c.Facts = append(c.Facts, v.Image, cpus(v.CPUs), disk.FormatSize(v.MemoryBytes))
	if v.Address.IsValid() {
		c.Facts = append(c.Facts, v.Address.String())
	}
	switch v.State {
	case api.StateRunning:
		if v.StartedAt != nil {
			c.Facts = append(c.Facts, "up "+lasting(time.Since(*v.StartedAt)))
		}
	case api.StateStopped, api.StateFailed, api.StateSuspended:
		c.Quiet, c.Command = "Start it:", "banger vm start "+v.Name
	case api.StatePaused:
		c.Quiet = "Its CPUs stand still."
	case api.StateDeleting:
		c.Quiet = "It is being deleted."
	default:
		c.Quiet = "A moment …"
	}
	return c
}

// listen finds what listens in the VM.
func (c *card) listen(ctx context.Context, vms VMs, to target) {
	ports, err := vms.Ports(ctx, c.Name)
	if err != nil {
		c.Quiet, c.Command = "What listens there cannot be told: "+clip(api.AsError(err).Message)+".", "banger vm show "+c.Name
		return
	}
	for _, p := range webPorts(ports) {
		l := portLink{Port: p.Port, URL: to.url(c.Name, p.Port), Process: p.Process}
		if !shell(p) {
			c.Ports = append(c.Ports, l)
		} else if l.URL, l.Own = "", "banger vm ssh "+c.Name; c.Shell == nil {
			c.Shell = &l
		}
	}
	if len(c.Ports) == 0 {
		c.Quiet, c.Command = "Nothing to show yet. A server in the VM appears here, such as:", "banger vm exec "+c.Name+" -- python3 -m http.server 3000"
	}
}

// shell reports whether a port is for ssh, banger's or the image's own.
func shell(p api.GuestPort) bool { return p.Agent || p.Port == 22 }

func cpus(n int) string {
	if n == 1 {
		return "1 CPU"
	}
	return fmt.Sprintf("%d CPUs", n)
}

// webPorts are the TCP ports among what listens, each once and in order.
func webPorts(ports []api.GuestPort) []api.GuestPort {
	const most = 200 // a guest may listen on all of them; a page has an end
	tcp := slices.DeleteFunc(slices.Clone(ports), func(p api.GuestPort) bool { return p.Protocol != api.TCP || p.Port == 0 })
	slices.SortStableFunc(tcp, func(a, b api.GuestPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), compareAddr(a.Address, b.Address))
	})
	tcp = slices.CompactFunc(tcp, func(a, b api.GuestPort) bool { return a.Port == b.Port })
	return tcp[:min(len(tcp), most)]
}

func compareAddr(a, b netip.Addr) int { return a.Compare(b) }

// lasting is a time span for people.
func lasting(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours())/24)
}
