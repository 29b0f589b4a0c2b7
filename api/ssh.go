package api

// SSHTarget is what an ssh client must know to connect to a VM that runs. The connection itself is GET /v1/vms/{name}/ssh.
type SSHTarget struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// HostKeyAlias is the name under which KnownHosts has HostKey.
	HostKeyAlias string `json:"host_key_alias"`
	// User is who the image's commands run as.
	User string `json:"user"`
	// KnownHosts and IdentityFile are files of the host.
	KnownHosts   string `json:"known_hosts"`
	IdentityFile string `json:"identity_file"`
	// HostKey is the VM's public key: "ssh-ed25519 AAAA…".
	HostKey string `json:"host_key"`
}
