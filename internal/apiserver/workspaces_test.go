package apiserver

import (
	"bufio"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// workspaceVMs keeps what was asked of it.
type workspaceVMs struct {
	fakeVMs
	asked any
}

func (f *workspaceVMs) CheckWorkspace(_ context.Context, req api.PrepareWorkspace) error {
	f.asked = req
	if req.Branch == "main" {
		return api.Errorf(api.KindConflict, "branch %q is there", req.Branch).WithHint("another")
	}
	return nil
}

func (f *workspaceVMs) PrepareWorkspace(_ context.Context, _ string, req api.PrepareWorkspace, _ progress.Reporter) (api.Workspace, error) {
	f.asked = req
	return api.Workspace{Path: req.Path, Files: 3}, nil
}

func (f *workspaceVMs) Workspaces(context.Context, string) ([]api.WorkspaceCopy, error) {
	return []api.WorkspaceCopy{{Path: "/h", GuestPath: "/root/h"}}, nil
}

func (f *workspaceVMs) WorkspaceStatus(_ context.Context, _ string, which api.AskWorkspace, _ progress.Reporter) (api.WorkspaceStatus, error) {
	f.asked = which
	return api.WorkspaceStatus{WorkspaceCopy: api.WorkspaceCopy{Path: "/h"}, Ahead: 2}, nil
}

func (f *workspaceVMs) PullWorkspace(_ context.Context, _ string, req api.PullWorkspace, _ progress.Reporter) (api.Pull, error) {
	f.asked = req
	return api.Pull{Current: "refs/banger/web/try"}, nil
}

func (f *workspaceVMs) Unpulled(context.Context, string) ([]api.Unpulled, error) {
	return []api.Unpulled{{Refs: []string{"refs/heads/try"}}}, nil
}

func (f *workspaceVMs) Delete(_ context.Context, _ string, req api.DeleteVM) error {
	f.asked = req
	return nil
}

func (f *workspaceVMs) Release(_ context.Context, _ string, req api.Release) error {
	f.asked = req
	return nil
}

// TestWorkspaceOperations: requests arrive whole, and results come back.
func TestWorkspaceOperations(t *testing.T) {
	owner := api.Owner{PID: 7, StartTime: 8, BootID: "b"}
	for _, c := range []struct {
		method, path, body string
		want               any
		result             string
	}{
		{"POST", "/v1/vms/web/workspace", `{"path":"/h","guest_path":"/g","branch":"b","from":"f","depth":2,"force":true,"no_tooling":true}`,
			api.PrepareWorkspace{Path: "/h", GuestPath: "/g", Branch: "b", From: "f", Depth: 2, Force: true, NoTooling: true}, `{"path":"/h","guest_path":"","git":false,"files":3,"bytes":0}`},
		{"POST", "/v1/vms/web/workspace/status", `{"guest_path":"/g"}`, api.AskWorkspace{GuestPath: "/g"}, `"path":"/h",`},
		{"POST", "/v1/vms/web/workspace/status", `{}`, api.AskWorkspace{}, `"ahead":2`},
		{"POST", "/v1/vms/web/workspace/pull", `{"guest_path":"/g","no_commits":true,"patch":"/p","apply":true,"max_bytes":5}`,
			api.PullWorkspace{AskWorkspace: api.AskWorkspace{GuestPath: "/g"}, NoCommits: true, Patch: "/p", Apply: true, MaxBytes: 5}, `"current":"refs/banger/web/try"`},
		{"DELETE", "/v1/vms/web?discard=true&force=false", "", api.DeleteVM{Discard: true}, `{}`},
		{"DELETE", "/v1/vms/web?force=true", "", api.DeleteVM{Force: true}, `{}`},
		{"POST", "/v1/vms/web/release", `{"owner":{"pid":7,"start_time":8,"boot_id":"b"},"keep":true}`, api.Release{Owner: owner, Keep: true}, `{}`},
	} {
		vms := &workspaceVMs{}
		srv, _ := serve(t, vms)
		res, body := request(t, srv, c.method, c.path, c.body)
		var op api.Operation
		if err := json.Unmarshal([]byte(body), &op); err != nil || res.StatusCode != 202 {
			t.Errorf("%s %s: status %d, %s", c.method, c.path, res.StatusCode, body)
			continue
		}
		_, events := request(t, srv, "GET", "/v1/operations/"+op.ID+"/events", "")
		last := ""
		for sc := bufio.NewScanner(strings.NewReader(events)); sc.Scan(); {
			if data, ok := strings.CutPrefix(sc.Text(), "data: "); ok {
				last = data
			}
		}
		if err := json.Unmarshal([]byte(last), &op); err != nil || op.State != api.OperationDone || !strings.Contains(string(op.Result), c.result) {
			t.Errorf("%s %s: %v, ended as %s; want %s", c.method, c.path, err, last, c.result)
		}
		if diff := cmp.Diff(c.want, vms.asked); diff != "" {
			t.Errorf("%s %s: %s", c.method, c.path, diff)
		}
	}
}

func TestWorkspaceAnswers(t *testing.T) {
	srv, _ := serve(t, &workspaceVMs{})
	for _, c := range []struct {
		method, path, body string
		status             int
		answer             string
	}{
		{"POST", "/v1/workspaces/check", `{"path":"/h"}`, 204, ""},
		{"POST", "/v1/workspaces/check", `{"path":"/h","branch":"main"}`, 409, `"hint":"another"`},
		{"POST", "/v1/workspaces/check", `{"path":"/h","depth":-1}`, 400, ""},
		{"POST", "/v1/vms/web/workspace/pull", `{"max_bytes":-1}`, 400, ""},
		{"POST", "/v1/vms/nope/workspace/pull", `{}`, 404, ""},
		{"POST", "/v1/vms/nope/workspace/status", `{}`, 404, ""},
		{"GET", "/v1/vms/web/workspaces", "", 200, `[{"path":"/h","guest_path":"/root/h",`},
		{"GET", "/v1/vms/web/unpulled", "", 200, `"refs":["refs/heads/try"]`},
	} {
		res, body := request(t, srv, c.method, c.path, c.body)
		if res.StatusCode != c.status || !strings.Contains(body, c.answer) {
			t.Errorf("%s %s %s: status %d, %s", c.method, c.path, c.body, res.StatusCode, body)
		}
	}
}
