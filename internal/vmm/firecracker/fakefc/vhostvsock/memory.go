package vhostvsock

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// regionInfo describes a region of the guest's memory, in bytes.
type regionInfo struct {
	guest  uint64 // its physical address in the guest
	size   uint64
	user   uint64 // its address in QEMU
	offset uint64 // where it begins in its descriptor
}

// memory is the guest's memory. The guest writes to it at any time: what is checked must be copied first.
type memory struct {
	regions []region
}

type region struct {
	regionInfo
	mapped []byte // page by page
	bytes  []byte // the region itself
}

// maxRegion is the largest region, in bytes.
const maxRegion = 1 << 40

// mapMemory maps regions, each out of its descriptor; the descriptors stay the caller's.
func mapMemory(table []regionInfo, fds []int) (*memory, error) {
	m := &memory{}
	for i, info := range table {
		r, err := mapRegion(info, fds[i])
		if err != nil {
			m.close()
			return nil, fmt.Errorf("map %d bytes of the guest at %#x: %w", info.size, info.guest, err)
		}
		m.regions = append(m.regions, r)
	}
	return m, nil
}

func mapRegion(info regionInfo, fd int) (r region, err error) {
	if info.size == 0 || info.size > maxRegion || info.offset > maxRegion ||
		info.guest+info.size < info.guest || info.user+info.size < info.user {
		return r, fmt.Errorf("no region: %+v", info)
	}
	// Beyond the file's end an access would be a SIGBUS.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return r, os.NewSyscallError("fstat", err)
	}
	if uint64(max(st.Size, 0)) < info.offset+info.size {
		return r, fmt.Errorf("its file ends at %d, before %d", st.Size, info.offset+info.size)
	}
	skip := info.offset % uint64(os.Getpagesize())
	b, err := unix.Mmap(fd, int64(info.offset-skip), int(skip+info.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return r, os.NewSyscallError("mmap", err)
	}
	return region{regionInfo: info, mapped: b, bytes: b[skip:]}, nil
}

// at are n bytes at a physical address of the guest. They lie in one region.
func (m *memory) at(addr, n uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.guest; addr >= r.guest && off < r.size && n <= r.size-off {
			return r.bytes[off : off+n : off+n], nil
		}
	}
	return nil, fmt.Errorf("%d bytes at %#x are not in the guest's memory", n, addr)
}

// atUser are n bytes at an address in QEMU. They lie in one region.
func (m *memory) atUser(addr, n uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.user; addr >= r.user && off < r.size && n <= r.size-off {
			return r.bytes[off : off+n : off+n], nil
		}
	}
	return nil, fmt.Errorf("%d bytes at qemu's %#x are not in the guest's memory", n, addr)
}

// close unmaps all. Nothing may use what at and atUser gave any more.
func (m *memory) close() {
	for _, r := range m.regions {
		_ = unix.Munmap(r.mapped)
	}
	m.regions = nil
}
