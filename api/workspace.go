package api

import "time"

// PrepareWorkspace asks to copy a directory of the host into a VM.
type PrepareWorkspace struct {
	// Path is absolute, on the host: a git work tree (or a directory in one) or a plain directory.
	Path string `json:"path"`
	// GuestPath is absolute; empty for /root/<base name of the work tree>.
	GuestPath string `json:"guest_path,omitempty"`
	// Branch is a new branch to check out in the VM; the host's repository does not get it.
	Branch string `json:"branch,omitempty"`
	// From is the commit that Branch begins at, by any name of git's; the VM then gets the files of that commit. Empty for
	// the work tree as it is.
	From string `json:"from,omitempty"`
	// Depth limits the history of each ref to that many commits; 0 for all.
	Depth int `json:"depth,omitempty" minimum:"0"`
	// Force lets the host's side win where both sides have changed the same since the last copy.
	Force bool `json:"force,omitempty"`
	// NoTooling leaves the tools that the repository names (mise) alone.
	NoTooling bool `json:"no_tooling,omitempty"`
}

// Workspace is a directory of the host in a VM.
type Workspace struct {
	Path      string `json:"path"`
	GuestPath string `json:"guest_path"`
	// Git tells whether Path is a git work tree.
	Git bool `json:"git"`
	// Branch was made in the VM; empty for none.
	Branch string `json:"branch,omitempty"`
	// Files is how many files and links were sent, Bytes what they hold; Removed how many were removed in the VM.
	Files   int   `json:"files"`
	Bytes   int64 `json:"bytes"`
	Removed int   `json:"removed,omitempty"`
	// Updated: the VM had it already, and got what has changed since.
	Updated bool `json:"updated,omitempty"`
	// ToolingLog is the file in the VM that tells how the installation of the repository's tools goes; empty where there is none.
	ToolingLog string `json:"tooling_log,omitempty"`
	// Skipped names what was left behind and why, at most 20 lines.
	Skipped []string `json:"skipped,omitempty"`
}

// WorkspaceCopy is a directory of the host that a VM has a copy of.
type WorkspaceCopy struct {
	// Path is on the host, GuestPath in the VM; both absolute.
	Path      string `json:"path"`
	GuestPath string `json:"guest_path"`
	// Git tells whether Path was a git work tree.
	Git bool `json:"git"`
	// Branch was made in the VM; empty for none.
	Branch string `json:"branch,omitempty"`
	// Copying: the first copy has not ended, or was broken off.
	Copying bool `json:"copying,omitempty"`
	// CopiedAt is when the host's side was last read for a copy.
	CopiedAt time.Time `json:"copied_at"`
}

// AskWorkspace names a copy in a VM.
type AskWorkspace struct {
	// GuestPath is where it is in the VM; empty where the VM has one copy only.
	GuestPath string `json:"guest_path,omitempty"`
}

// ChangeKind is what became of a file of a copy.
type ChangeKind string

// What the VM has done to a file since the last copy.
const (
	ChangeAdded    ChangeKind = "added"
	ChangeModified ChangeKind = "modified"
	ChangeRemoved  ChangeKind = "removed"
)

// WorkspaceChange is a file of a copy that is not what it was at the last copy.
type WorkspaceChange struct {
	// Path is relative to the copy; bytes that are not UTF-8 are replaced.
	Path string     `json:"path"`
	Kind ChangeKind `json:"kind"`
	// Here: the host has changed it since, too.
	Here bool `json:"here,omitempty"`
}

// WorkspaceStatus is a copy in a running VM against what it is a copy of.
type WorkspaceStatus struct {
	WorkspaceCopy
	// GuestBranch is checked out in the VM, empty where HEAD is detached; GuestCommit is its commit, empty where there is none.
	GuestBranch string `json:"guest_branch,omitempty"`
	GuestCommit string `json:"guest_commit,omitempty"`
	// Against is what of the host's repository the VM's commit is compared with: a branch, HEAD, or what --from named. Ahead is how many
	// commits the VM has beyond it, Behind how many it lacks.
	Against string `json:"against,omitempty"`
	Ahead   int    `json:"ahead"`
	Behind  int    `json:"behind"`
	// Modified and Untracked are what git in the VM says of its work tree.
	Modified  int `json:"modified"`
	Untracked int `json:"untracked"`
	// Unpulled are the VM's refs with commits that the host's repository does not have.
	Unpulled []string `json:"unpulled,omitempty"`
	// Changes is what the files in the VM differ in from the last copy, committed or not, at most 10,000; More is how many more there are.
	Changes []WorkspaceChange `json:"changes,omitempty"`
	More    int               `json:"more,omitempty"`
	// ChangedHere is how many files the host has changed since the last copy.
	ChangedHere int `json:"changed_here"`
}

// PullWorkspace asks to bring work out of a VM.
type PullWorkspace struct {
	AskWorkspace
	// NoCommits leaves commits where they are: for a patch or an application alone.
	NoCommits bool `json:"no_commits,omitempty"`
	// Patch is an absolute path on the host: a file that gets, in place of what it holds, a patch with all that the VM has changed since the last
	// copy, committed or not. Empty for none.
	Patch string `json:"patch,omitempty"`
	// Apply makes these changes in the host's directory; where they do not fit it is an error and nothing is changed.
	Apply bool `json:"apply,omitempty"`
	// MaxBytes limits what is taken from the VM, in bytes; 0 for 4 GiB.
	MaxBytes int64 `json:"max_bytes,omitempty" minimum:"0"`
}

// PulledRef is a ref of the host's repository that has got commits of a VM.
type PulledRef struct {
	// Repository is where the repository is in the copy; empty for the copy's own.
	Repository string `json:"repository,omitempty"`
	// Ref is the host's, below refs/banger/<vm>/; Guest is the VM's.
	Ref   string `json:"ref"`
	Guest string `json:"guest"`
	// Old and New are commits; Old is empty where the ref is new.
	Old string `json:"old,omitempty"`
	New string `json:"new"`
	// Commits is how many New has that the host's repository did not have.
	Commits int `json:"commits"`
	// Rewritten: Old is not among the ancestors of New. It is kept as refs/banger/<vm>/@/kept/<Old>.
	Rewritten bool `json:"rewritten,omitempty"`
}

// Pull is what was brought out of a VM.
type Pull struct {
	WorkspaceCopy
	// Refs are those that were made or moved.
	Refs []PulledRef `json:"refs,omitempty"`
	// Current is the ref that has what the VM has checked out, whether it was moved or not; empty where the host's repository has that anyway.
	Current string `json:"current,omitempty"`
	// Uncommitted is how many files differ from the VM's commit, which no ref has.
	Uncommitted int `json:"uncommitted,omitempty"`
	// UncommittedUnknown: there are so many files that it was not found out in half a second, or the VM's git did not say.
	UncommittedUnknown bool `json:"uncommitted_unknown,omitempty"`
	// Patched is how many files are in the patch; Applied are the files that were changed in the host's directory.
	Patched int               `json:"patched,omitempty"`
	Applied []WorkspaceChange `json:"applied,omitempty"`
	// Skipped names what was not taken and why, at most 20 lines.
	Skipped []string `json:"skipped,omitempty"`
}

// Unpulled is work that would be lost with a VM.
type Unpulled struct {
	WorkspaceCopy
	// Refs are the VM's with commits that the host's repository does not have.
	Refs []string `json:"refs"`
}
