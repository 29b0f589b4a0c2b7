// Package api holds the wire types of banger's HTTP API: what the CLI, other
// clients and the daemon exchange as JSON over the daemon's unix socket. It
// imports only the standard library, so that anything can import it.
//
// The files divide it by noun: vm.go, workspace.go, session.go, files.go, ssh.go, image.go (kernels too), operation.go,
// daemon.go, and error.go with the error kinds and their HTTP statuses.
//
// Routes, all under /v1 (apiserver/routes.go is the list that is served):
//
//	GET    /v1/daemon                       DaemonStatus
//	POST   /v1/daemon/stop                  clean shutdown; VMs go on
//	GET    /v1/config                       ConfigView
//	GET    /v1/events                       server-sent events, Event
//	GET    /v1/vms                          []VM
//	POST   /v1/vms                          CreateVM → 202 Operation (result: VM)
//	GET    /v1/vms/{name}                   VM
//	POST   /v1/vms/{name}/start             StartVM → 202 Operation (result: VM)
//	POST   /v1/vms/{name}/stop              StopVM → 202 Operation (result: VM)
//	POST   /v1/vms/{name}/restart           StopVM → 202 Operation (result: VM)
//	POST   /v1/vms/{name}/kill              → 202 Operation (result: VM)
//	DELETE /v1/vms/{name}?DeleteVM          → 202 Operation
//	POST   /v1/workspaces/check             PrepareWorkspace: 204 where nothing is wrong with it
//	POST   /v1/vms/{name}/workspace         PrepareWorkspace → 202 Operation (result: Workspace)
//	POST   /v1/vms/{name}/workspace/status  AskWorkspace → 202 Operation (result: WorkspaceStatus)
//	POST   /v1/vms/{name}/workspace/pull    PullWorkspace → 202 Operation (result: Pull)
//	GET    /v1/vms/{name}/workspaces        []WorkspaceCopy
//	GET    /v1/vms/{name}/unpulled          []Unpulled
//	GET    /v1/vms/{name}/sessions          []Session
//	POST   /v1/vms/{name}/sessions          StartSession → Session
//	GET    /v1/vms/{name}/sessions/{session}            Session
//	GET    /v1/vms/{name}/sessions/{session}/wait       Session, once it has ended or after half a minute
//	GET    /v1/vms/{name}/sessions/{session}/logs?SessionLogs  text/plain stream
//	POST   /v1/vms/{name}/sessions/{session}/stop       StopSession → 202 Operation (result: Session)
//	DELETE /v1/vms/{name}/sessions/{session}?force=true 204
//	GET    /v1/vms/{name}/exec              HTTP upgrade "banger-exec"; the stream is the exec
//	                                        protocol of internal/guest/wire, spoken with the agent
//	GET    /v1/vms/{name}/ssh-target        SSHTarget
//	GET    /v1/vms/{name}/ssh               HTTP upgrade "banger-ssh"; the stream is that of the guest's
//	                                        ssh server, which speaks first
//	POST   /v1/vms/{name}/release           Release: the owner of a --rm VM is done with it → 202 Operation
//	GET    /v1/vms/{name}/logs?source=console|agent|vmm&follow=true   text/plain stream
//	PUT    /v1/vms/{name}/files?PutFiles    a tar stream into the guest → FilesResult
//	GET    /v1/vms/{name}/files?GetFiles    a tar stream out of it, with FilesEnd as trailer
//	GET    /v1/images                       []Image
//	GET    /v1/images/{name}                Image
//	POST   /v1/images/pull                  PullImage → 202 Operation (result: Image)
//	DELETE /v1/images/{name}                204
//	GET    /v1/kernels                      []Kernel
//	POST   /v1/kernels/pull                 PullKernel → 202 Operation (result: Kernel)
//	DELETE /v1/kernels/{name}               204
//	GET    /v1/operations                   []Operation
//	GET    /v1/operations/{id}              Operation
//	GET    /v1/operations/{id}/events       server-sent events, one Operation per event, until it ended
//	DELETE /v1/operations/{id}              cancels it; 204
//
// A {name} of a VM is its name or its id. Errors are {"error": Error} with the
// status of the error's kind.
package api

// Version is the version of the API. A client and a daemon of different
// versions refuse each other by name.
const Version = 1

// Headers every request and every answer carries.
const (
	// HeaderAPIVersion carries Version as decimal digits.
	HeaderAPIVersion = "Banger-Api-Version"
	// HeaderBuildVersion carries the build's version, for messages.
	HeaderBuildVersion = "Banger-Version"
)
