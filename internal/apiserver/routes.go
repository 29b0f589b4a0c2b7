// Package apiserver serves banger's HTTP API. Its handlers translate between
// HTTP and the services and decide nothing; routes.go is the list of routes,
// stream.go has those that are not one JSON answer, errors.go how errors travel,
// guard.go who may speak at all.
package apiserver

import (
	"log/slog"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"git.thaloco.com/thaloco/banger/api"
)

// Config is what a Server needs. Every field is required.
type Config struct {
	VMs        VMs
	Images     Images
	Kernels    Kernels
	Operations Operations
	Daemon     Daemon
	Log        *slog.Logger
}

// Server is the API as an http.Handler.
type Server struct {
	cfg     Config
	handler http.Handler
}

// New returns a server of the API.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg}
	mux := http.NewServeMux()
	s.routes(mux)
	s.streams(mux)
	s.handler = s.guard(mux)
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

func (s *Server) routes(mux *http.ServeMux) {
	cfg := huma.DefaultConfig("banger", "v1")
	cfg.OpenAPIPath, cfg.DocsPath, cfg.SchemasPath = "/v1/openapi", "", ""
	cfg.CreateHooks = nil // no $schema links in answers
	h := humago.New(mux, cfg)

	get, post, del := http.MethodGet, http.MethodPost, http.MethodDelete
	ok, accepted, none := http.StatusOK, http.StatusAccepted, http.StatusNoContent

	register(h, get, "/v1/daemon", ok, "daemon-status", s.daemonStatus)
	register(h, post, "/v1/daemon/stop", none, "daemon-stop", s.daemonStop)
	register(h, get, "/v1/config", ok, "config-show", s.configShow)

	register(h, get, "/v1/vms", ok, "vm-list", s.listVMs)
	register(h, post, "/v1/vms", accepted, "vm-create", s.createVM)
	register(h, get, "/v1/vms/{name}", ok, "vm-show", s.showVM)
	register(h, get, "/v1/vms/{name}/ports", ok, "vm-ports", s.vmPorts)
	register(h, get, "/v1/vms/{name}/stats", ok, "vm-stats", s.vmStats)
	register(h, post, "/v1/vms/{name}/start", accepted, "vm-start", s.startVM)
	register(h, post, "/v1/vms/{name}/stop", accepted, "vm-stop", s.stopVM)
	register(h, post, "/v1/vms/{name}/restart", accepted, "vm-restart", s.restartVM)
	register(h, post, "/v1/vms/{name}/kill", accepted, "vm-kill", s.killVM)
	register(h, del, "/v1/vms/{name}", accepted, "vm-delete", s.deleteVM)
	register(h, post, "/v1/workspaces/check", none, "workspace-check", s.checkWorkspace)
	register(h, post, "/v1/vms/{name}/workspace", accepted, "vm-workspace", s.prepareWorkspace)
	register(h, post, "/v1/vms/{name}/workspace/status", accepted, "vm-workspace-status", s.workspaceStatus)
	register(h, post, "/v1/vms/{name}/workspace/pull", accepted, "vm-workspace-pull", s.pullWorkspace)
	register(h, get, "/v1/vms/{name}/workspaces", ok, "vm-workspace-list", s.listWorkspaces)
	register(h, get, "/v1/vms/{name}/unpulled", ok, "vm-unpulled", s.unpulled)
	register(h, get, "/v1/vms/{name}/ssh-target", ok, "vm-ssh-target", s.sshTarget)
	register(h, get, "/v1/vms/{name}/forwards", ok, "vm-forward-list", s.listForwards)
	register(h, post, "/v1/vms/{name}/forwards", ok, "vm-forward-add", s.addForward)
	register(h, del, "/v1/vms/{name}/forwards", ok, "vm-forward-remove", s.removeForward)
	register(h, get, "/v1/vms/{name}/sessions", ok, "vm-session-list", s.listSessions)
	register(h, post, "/v1/vms/{name}/sessions", ok, "vm-session-start", s.startSession)
	register(h, get, "/v1/vms/{name}/sessions/{session}", ok, "vm-session-show", s.showSession)
	register(h, get, "/v1/vms/{name}/sessions/{session}/wait", ok, "vm-session-wait", s.waitSession)
	register(h, post, "/v1/vms/{name}/sessions/{session}/stop", accepted, "vm-session-stop", s.stopSession)
	register(h, del, "/v1/vms/{name}/sessions/{session}", none, "vm-session-delete", s.deleteSession)
	register(h, post, "/v1/vms/{name}/release", accepted, "vm-release", s.releaseVM)

	register(h, get, "/v1/catalog", ok, "image-catalog", s.imageCatalog)
	register(h, get, "/v1/images", ok, "image-list", s.listImages)
	register(h, get, "/v1/images/{name}", ok, "image-show", s.showImage)
	register(h, post, "/v1/images/pull", accepted, "image-pull", s.pullImage)
	register(h, post, "/v1/images/register", accepted, "image-register", s.registerImage)
	register(h, post, "/v1/images/promote", accepted, "image-promote", s.promoteImage)
	register(h, post, "/v1/images/import", accepted, "image-import", s.importImage)
	register(h, post, "/v1/images/prune", accepted, "image-prune", s.pruneImages)
	register(h, post, "/v1/images/{name}/export", accepted, "image-export", s.exportImage)
	register(h, post, "/v1/images/{name}/tag", ok, "image-tag", s.tagImage)
	register(h, del, "/v1/images/{name}", none, "image-delete", s.deleteImage)

	register(h, get, "/v1/kernels", ok, "kernel-list", s.listKernels)
	register(h, get, "/v1/kernels/{name}", ok, "kernel-show", s.showKernel)
	register(h, post, "/v1/kernels/pull", accepted, "kernel-pull", s.pullKernel)
	register(h, post, "/v1/kernels/register", accepted, "kernel-register", s.registerKernel)
	register(h, del, "/v1/kernels/{name}", none, "kernel-delete", s.deleteKernel)

	register(h, get, "/v1/operations", ok, "operation-list", s.listOperations)
	register(h, get, "/v1/operations/{id}", ok, "operation-show", s.showOperation)
	register(h, del, "/v1/operations/{id}", none, "operation-cancel", s.cancelOperation)
}

// register adds one route. Handlers return errors as they get them; the server translates.
func register[I, O any](h huma.API, method, path string, status int, id string, handler handlerFunc[I, O]) {
	huma.Register(h, huma.Operation{OperationID: id, Method: method, Path: path, DefaultStatus: status,
		MaxBodyBytes: 1 << 20}, translated(handler))
}

func (s *Server) streams(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/events", s.events)
	mux.HandleFunc("GET /v1/operations/{id}/events", s.operationEvents)
	mux.HandleFunc("GET /v1/images/{name}/files", s.imageFiles)
	mux.HandleFunc("GET /v1/vms/{name}/exec", s.exec)
	mux.HandleFunc("GET /v1/vms/{name}/ssh", s.ssh)
	mux.HandleFunc("GET /v1/vms/{name}/logs", s.logs)
	mux.HandleFunc("GET /v1/vms/{name}/sessions/{session}/logs", s.sessionLogs)
	mux.HandleFunc("PUT /v1/vms/{name}/files", s.putFiles)
	mux.HandleFunc("GET /v1/vms/{name}/files", s.getFiles)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, r, api.Errorf(api.KindNotFound, "no route %s %s", r.Method, r.URL.Path))
	})
}
