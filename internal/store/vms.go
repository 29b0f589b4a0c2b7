package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/suggest"
)

// VM is the record of a VM: what is remembered of it while nothing runs.
type VM struct {
	ID    string      `json:"id"`
	Name  string      `json:"name"`
	State api.VMState `json:"state"`
	// Reason says why it is in State, where there is more to say.
	Reason string `json:"reason,omitempty"`
	// Image and Kernel are the names it was made with; the digests are what it is pinned to for life.
	Image        string   `json:"image"`
	ImageDigest  string   `json:"image_digest"`
	Kernel       string   `json:"kernel"`
	KernelDigest string   `json:"kernel_digest"`
	Engine       string   `json:"engine,omitempty"`
	Accel        string   `json:"accel,omitempty"`
	CPUs         int      `json:"cpus"`
	MemoryBytes  int64    `json:"memory_bytes"`
	DiskBytes    int64    `json:"disk_bytes"`
	Env          []string `json:"env,omitempty"`
	RemoveOnExit bool     `json:"remove_on_exit,omitempty"`
	// Owner is the process a RemoveOnExit VM lives for; nil where it goes when it stops.
	Owner *api.Owner `json:"owner,omitempty"`
	// MachineID is the guest's /etc/machine-id, 32 hex digits.
	MachineID string `json:"machine_id"`
	// SSHHostKey is the private key of the VM's ssh server, in PEM, SSHHostPublic its public half; empty in the record of a VM
	// that was not started since banger makes them.
	SSHHostKey    string     `json:"ssh_host_key,omitempty"`
	SSHHostPublic string     `json:"ssh_host_public,omitempty"`
	CreatedAt     time.Time  `json:"created_at"`
	StartedAt     *time.Time `json:"started_at,omitempty"`
	// Address is the VM's lease: see Lease. The zero value where it has none yet.
	Address netip.Addr `json:"-"`
	// WasReady tells that the guest became ready since StartedAt; a RemoveOnExit VM that ended before stays for its logs.
	WasReady bool `json:"was_ready,omitempty"`
	// TAP is the TAP of the host it was started with last; empty in user mode.
	TAP string `json:"tap,omitempty"`
	// Forwards are ports of the host that lead to the VM, none with HostPort 0. HostPorts are those of the host's loopback it may reach.
	Forwards  []api.Forward `json:"forwards,omitempty"`
	HostPorts []uint16      `json:"host_ports,omitempty"`
}

const (
	vmColumns = "id, name, state, image_digest, kernel_digest, created_at, record_version, record"
	vmFields  = vmColumns + ", (SELECT address FROM leases WHERE leases.vm = vms.id)"
)

func scanVM(row scanner) (VM, error) {
	var vm VM
	var id, name, state, image, kernel, record string
	var created int64
	var version int
	var address sql.NullString
	if err := row.Scan(&id, &name, &state, &image, &kernel, &created, &version, &record, &address); err != nil {
		return VM{}, err
	}
	if err := decodeRecord(version, record, &vm); err != nil {
		return VM{}, fmt.Errorf("read vm %q: %w", name, err)
	}
	vm.ID, vm.Name, vm.State, vm.ImageDigest, vm.KernelDigest = id, name, api.VMState(state), image, kernel
	vm.CreatedAt = time.Unix(0, created).UTC()
	vm.Address, _ = netip.ParseAddr(address.String) // none, or as Lease wrote it
	return vm, nil
}

// decodeRecord reads a record column.
func decodeRecord(version int, record string, into any) error {
	if version != recordVersion {
		return fmt.Errorf("its record has version %d, this banger knows %d", version, recordVersion)
	}
	return json.Unmarshal([]byte(record), into)
}

// InsertVM adds a VM. A name in use is a KindConflict; so is an image or kernel that is not in the store (any more).
func (s *Store) InsertVM(ctx context.Context, vm VM) error {
	if vm.CreatedAt.IsZero() {
		return fmt.Errorf("add vm %q: it has no time of creation", vm.Name)
	}
	record, err := json.Marshal(vm)
	if err != nil {
		return fmt.Errorf("add vm %q: %w", vm.Name, err)
	}
	return s.tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO vms ("+vmColumns+") VALUES (?,?,?,?,?,?,?,?)",
			vm.ID, vm.Name, string(vm.State), vm.ImageDigest, vm.KernelDigest, vm.CreatedAt.UnixNano(), recordVersion, string(record))
		return vmWriteError("add", vm, err)
	})
}

// vmWriteError makes user-facing errors of violated constraints.
func vmWriteError(verb string, vm VM, err error) error {
	switch {
	case err == nil:
		return nil
	case isUnique(err):
		return api.Errorf(api.KindConflict, "vm %q already exists", vm.Name).
			WithHint("choose another name, or remove it: banger vm delete --force %s", vm.Name)
	case isForeignKey(err):
		return api.Errorf(api.KindConflict, "%s vm %q: its image %q or kernel %q was deleted meanwhile", verb, vm.Name, vm.Image, vm.Kernel).
			WithHint("try again")
	}
	return fmt.Errorf("%s vm %q: %w", verb, vm.Name, err)
}

// UpdateVM changes the record of the VM with this id in one transaction and returns it as it is then. Where
// change returns an error nothing is changed and UpdateVM returns that error as it is. change must be quick and
// must not use the store; the id and the time of creation are not its to change. A VM that is not there is a KindNotFound.
func (s *Store) UpdateVM(ctx context.Context, id string, change func(*VM) error) (VM, error) {
	var vm VM
	var name string
	err := s.tx(ctx, func(tx *sql.Tx) error {
		var err error
		vm, err = scanVM(tx.QueryRowContext(ctx, "SELECT "+vmFields+" FROM vms WHERE id = ?", id))
		if errors.Is(err, sql.ErrNoRows) {
			return noVM(id, nil)
		}
		if err != nil {
			return err
		}
		created := vm.CreatedAt
		name = vm.Name
		if err := change(&vm); err != nil {
			return err
		}
		if vm.ID != id || !vm.CreatedAt.Equal(created) {
			return fmt.Errorf("update vm %q: its id and time of creation cannot change", vm.Name)
		}
		record, err := json.Marshal(vm)
		if err != nil {
			return fmt.Errorf("update vm %q: %w", vm.Name, err)
		}
		_, err = tx.ExecContext(ctx, `UPDATE vms SET name = ?, state = ?, image_digest = ?, kernel_digest = ?,
			record_version = ?, record = ? WHERE id = ?`,
			vm.Name, string(vm.State), vm.ImageDigest, vm.KernelDigest, recordVersion, string(record), id)
		return vmWriteError("update", vm, err)
	})
	if err != nil {
		return VM{}, err
	}
	if vm.Name != name {
		s.leasesVersion.Add(1)
	}
	return vm, nil
}

// VM returns the VM with this id or, where none has it, this name; KindNotFound, with near names in the hint, where there is none.
func (s *Store) VM(ctx context.Context, nameOrID string) (VM, error) {
	vm, err := scanVM(s.read.QueryRowContext(ctx,
		"SELECT "+vmFields+" FROM vms WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1", nameOrID))
	if !errors.Is(err, sql.ErrNoRows) {
		return vm, s.explain(err)
	}
	names, err := collect(ctx, s.read, scanString, "SELECT name FROM vms ORDER BY name")
	if err != nil {
		return VM{}, s.explain(err)
	}
	return VM{}, noVM(nameOrID, names)
}

func noVM(name string, names []string) error {
	err := api.Errorf(api.KindNotFound, "no vm %q", name)
	if near := suggest.Near(name, names); len(near) > 0 {
		return err.WithHint("did you mean %s? banger vm list shows all", strings.Join(near, " or "))
	}
	return err.WithHint("banger vm list shows what there is")
}

// VMs returns all VMs in order of creation.
func (s *Store) VMs(ctx context.Context) ([]VM, error) {
	vms, err := collect(ctx, s.read, scanVM, "SELECT "+vmFields+" FROM vms ORDER BY created_at, id")
	return vms, s.explain(err)
}

// DeleteVM removes the record of the VM with this id; nil where there is none.
func (s *Store) DeleteVM(ctx context.Context, id string) error {
	defer s.leasesVersion.Add(1)
	return s.tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM vms WHERE id = ?", id)
		return err
	})
}

// vmNames returns the names of the VMs a query finds, sorted.
func vmNames(ctx context.Context, q queryer, where string, args ...any) ([]string, error) {
	names, err := collect(ctx, q, scanString, "SELECT name FROM vms WHERE "+where, args...)
	slices.Sort(names)
	return names, err
}
