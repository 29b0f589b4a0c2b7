// Package wire is the protocol between banger on the host and
// banger-vsock-agent in the guest: port numbers, the boot configuration, the
// call of the agent to its supervisor, and the frames of the exec protocol.
// Both ends import it; it imports only the standard library.
//
// # Channel
//
// Every stream between host and guest has a port number on the side that
// listens. On Firecracker streams are vsock connections. On QEMU there is one
// byte stream, the virtio-serial port PortName: the supervisor sends a Hello
// (magic and nonce) until the agent answers with the same nonce, then both
// speak yamux over it (the supervisor is yamux client, the agent server; both
// may open streams). The opener of a yamux stream writes the port as 4 bytes big-endian; the
// other side answers one byte, StreamOK or StreamRefused, and on StreamRefused
// closes it.
//
// # Call
//
// At every boot the agent opens one stream to the host's PortCall and speaks
// one JSON object per line, at most MaxCallLine bytes each, both ways: Call
// messages up, CallReply messages down. The first is a hello with the secret of this boot; the
// supervisor answers welcome once per boot and refuses every other. The
// stream stays open; when it breaks, the agent calls again with
// CallToken, which the welcome gave it.
package wire

// Version is the version of everything in this package. An agent and a host of
// different versions refuse each other by name.
const Version = 1

// PortName is the name of the virtio-serial port of the agent.
const PortName = "org.banger.agent"

// Ports the agent listens on.
const (
	// PortAPI speaks HTTP/1.1; the routes are in internal/guest/guestapi.
	PortAPI uint32 = 1000
	// PortExec speaks the exec protocol, one process (or attachment to one) per stream.
	PortExec uint32 = 1001
	// PortDial reaches ports of the guest: a Dial, a DialReply, each a line as of the call; where that says it is open, what package
	// tunnel says follows.
	PortDial uint32 = 1002
	// PortSSH is the agent's ssh server.
	PortSSH uint32 = 1022
)

// MaxEthernet is the longest Ethernet frame a guest may send or be sent, in bytes: its header and NetMTU.
const MaxEthernet = 14 + NetMTU

// NetMTU is the MTU of a guest's eth0 in the user network, in bytes. The largest that virtio-net and a TAP take: a
// frame costs about the same whatever its size.
const NetMTU = 65520

// Ports of the host.
const (
	// PortCall is the port the agent calls.
	PortCall uint32 = 1024
	// PortNet carries the Ethernet frames of a guest whose eth0 is a DeviceTAP: a NetHello, a CallReply (ReplyWelcome without
	// a token, or ReplyRefused), each a line as of the call; then frames both ways, each behind its length as 2 bytes big-endian,
	// 14 to MaxEthernet. Neither side ends one direction alone. A new stream takes the place of the one before.
	PortNet uint32 = 1025
)

// Dial asks the agent to connect to a port of its guest: to what listens on 127.0.0.1, else on an address of the guest's, else on ::1.
type Dial struct {
	Version int `json:"version"`
	// Network is "tcp" or "udp".
	Network string `json:"network"`
	Port    uint16 `json:"port"`
}

// Kinds of DialReply.
const (
	DialOpen    = "open"
	DialRefused = "refused" // nobody listens there
	DialFailed  = "failed"
)

// DialReply answers a Dial. After anything but DialOpen the agent closes the stream.
type DialReply struct {
	Type   string `json:"type"`
	Reason string `json:"reason,omitempty"`
}

// NetHello opens a stream to PortNet.
type NetHello struct {
	Version int `json:"version"`
	// Token is the one the welcome of the call gave: any process of the guest could open the stream.
	Token string `json:"token"`
}

// Answers to the port number that opens a stream on QEMU.
const (
	StreamOK      byte = 0
	StreamRefused byte = 1
)

// MaxCallLine is the longest line of the call in bytes, newline included.
const MaxCallLine = 64 << 10

// BootFile is where the boot configuration lies in the initramfs: the
// supervisor appends a cpio archive with it at every start of the VMM.
const BootFile = "/banger/boot.json"

// Boot is the content of BootFile.
type Boot struct {
	Version int `json:"version"`
	// Secret is 64 hex digits, good for one hello.
	Secret string `json:"secret"`
	// Transport is TransportSerial or TransportVsock.
	Transport string   `json:"transport"`
	Identity  Identity `json:"identity"`
}

// Kinds of Boot.Transport.
const (
	TransportSerial = "virtio-serial"
	TransportVsock  = "vsock"
)

// Drives are found by their order on every engine: vda base, vdb data, vdc
// modules. On QEMU /sys/block/*/serial carries these names as well, and wins.
const (
	DriveBase    = "base"
	DriveData    = "data"
	DriveModules = "modules"
)

// Identity is what makes a guest this VM.
type Identity struct {
	VM       string `json:"vm"` // the VM's id
	Hostname string `json:"hostname"`
	// MachineID is 32 hex digits.
	MachineID string `json:"machine_id"`
	// Env is KEY=VALUE: the image's environment, then the VM's; later wins.
	Env []string `json:"env,omitempty"`
	// WorkDir and User are the image's; empty for /root and root.
	WorkDir string `json:"work_dir,omitempty"`
	User    string `json:"user,omitempty"`
	// Cmd is the image's entrypoint and command, which run where a shell is asked for and the image has none.
	Cmd []string `json:"cmd,omitempty"`
	// DataBytes is the size the data file system is to have; grown online where it is smaller.
	DataBytes int64 `json:"data_bytes,omitempty"`
	// AuthorizedKeys are lines of authorized_keys for the agent's ssh server.
	AuthorizedKeys []string `json:"authorized_keys,omitempty"`
	// SSHHostKey is an OpenSSH private key in PEM.
	SSHHostKey string `json:"ssh_host_key,omitempty"`
	// Network is nil for a guest without one.
	Network *Network `json:"network,omitempty"`
}

// Kinds of Network.Device.
const (
	// DeviceVirtio is a network device of the VMM's.
	DeviceVirtio = ""
	// DeviceTAP is a TAP that the agent makes in the guest, and whose frames it carries over PortNet.
	DeviceTAP = "tap"
)

// Network is how a guest sets up its eth0.
type Network struct {
	// Device says what eth0 is: DeviceVirtio, or DeviceTAP.
	Device string `json:"device,omitempty"`
	// MAC is the address of eth0, as 52:54:00:12:34:56.
	MAC string `json:"mac"`
	// Address is the guest's own with the length of the prefix: 172.16.0.2/24.
	Address string `json:"address"`
	Gateway string `json:"gateway"`
	// DNS are resolvers, Search is the domain behind names without a dot.
	DNS    []string `json:"dns,omitempty"`
	Search string   `json:"search,omitempty"`
	// MTU is in bytes.
	MTU int `json:"mtu"`
}

// Kinds of Call.
const (
	CallHello  = "hello"
	CallMark   = "mark"
	CallEnding = "ending"
	// CallLog carries a line of the agent's log in Text; the supervisor appends it to agent.log and does not answer.
	CallLog = "log"
)

// Call is a message of the agent to its supervisor.
type Call struct {
	Type string `json:"type"`
	// hello: Secret at the first, Token at a later one.
	Secret  string `json:"secret,omitempty"`
	Token   string `json:"token,omitempty"`
	Version int    `json:"version,omitempty"`
	Agent   string `json:"agent,omitempty"`   // build version
	BootID  string `json:"boot_id,omitempty"` // /proc/sys/kernel/random/boot_id
	Init    string `json:"init,omitempty"`    // systemd, other, none
	// mark: agent, ready or full (api.Mark).
	Mark string `json:"mark,omitempty"`
	// log: one line, without the newline.
	Text string `json:"text,omitempty"`
	// ending: poweroff, reboot or halt. The supervisor answers ack before the guest goes on.
	Verb string `json:"verb,omitempty"`
}

// Kinds of CallReply.
const (
	ReplyWelcome = "welcome"
	ReplyRefused = "refused"
	ReplyAck     = "ack"
)

// CallReply is a message of the supervisor to the agent.
type CallReply struct {
	Type   string `json:"type"`
	Reason string `json:"reason,omitempty"` // refused
	// welcome: what later hellos of this boot carry, the host's clock, and 64 random bytes (base64).
	Token        string `json:"token,omitempty"`
	TimeUnixNano int64  `json:"time_unix_nano,omitempty"`
	Entropy      []byte `json:"entropy,omitempty"`
}

// HelloMagic and ReplyMagic start the hand-shake on a virtio-serial port: the
// supervisor writes HelloMagic and a nonce of NonceLen bytes, again every 300 ms with the same nonce until
// the agent answered ReplyMagic and that nonce; then yamux frames follow.
// The agent drops repetitions of a hello it has answered. A hello with another nonce, which it
// looks for at the boundaries of yamux frames only (their first byte is 0), ends the session and starts
// a new one: what streams carry can never be taken for it.
var (
	HelloMagic = [16]byte{0xb6, 'b', 'a', 'n', 'g', 'e', 'r', '-', 'h', 'e', 'l', 'l', 'o', 0x0d, 0x0a, Version}
	ReplyMagic = [16]byte{0xb6, 'b', 'a', 'n', 'g', 'e', 'r', '-', 'r', 'e', 'p', 'l', 'y', 0x0d, 0x0a, Version}
)

// NonceLen is the length of a hello's nonce in bytes.
const NonceLen = 16
