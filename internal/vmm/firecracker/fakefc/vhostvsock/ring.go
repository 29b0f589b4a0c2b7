package vhostvsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxRingSize is how many descriptors a ring may have: QEMU's VIRTQUEUE_MAX_SIZE, and what one writev takes.
	maxRingSize = 1024
	descLen     = 16
	usedLen     = 8

	// Flags of a descriptor.
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	// availNoInterrupt is the guest's flag for a ring it looks at by itself.
	availNoInterrupt = 1
)

// ring is a split virtqueue (virtio 1.2, 2.7), seen from the device.
type ring struct {
	size   uint32 // descriptors; 0 until it is known
	addr   vringAddr
	placed bool // addr is known

	desc, avail, used []byte // nil while it does not run

	next     uint16 // the next entry of avail
	usedNext uint16
	told     uint16 // usedNext when the guest was told last

	kick, call int // descriptors; -1 for none
	kickID     uint64
	enabled    bool
}

// chain is what the guest has put into a ring in one piece.
type chain struct {
	head  uint16
	read  [][]byte // what the device may read
	write [][]byte // what it may write
}

// running reports whether the ring may be used.
func (r *ring) running() bool { return r.used != nil }

// setSize sets the number of descriptors.
func (r *ring) setSize(n uint32) error {
	if n == 0 || n > maxRingSize || n&(n-1) != 0 {
		return fmt.Errorf("a ring of %d descriptors", n)
	}
	r.size = n
	return nil
}

// start finds the ring in the guest's memory.
func (r *ring) start(m *memory) (err error) {
	defer func() {
		if err != nil {
			r.stop()
			err = fmt.Errorf("start ring %d: %w", r.addr.index, err)
		}
	}()
	if r.size == 0 {
		return errors.New("it has no size")
	}
	if r.desc, err = m.atUser(r.addr.desc, uint64(r.size)*descLen); err != nil {
		return err
	}
	if r.avail, err = m.atUser(r.addr.avail, 4+2*uint64(r.size)); err != nil {
		return err
	}
	used, err := m.atUser(r.addr.used, 4+usedLen*uint64(r.size))
	if err != nil {
		return err
	}
	if address(r.desc)%16 != 0 || address(r.avail)%2 != 0 || address(used)%4 != 0 {
		return fmt.Errorf("it is not aligned: %+v", r.addr)
	}
	r.used = used
	r.usedNext = uint16(atomic.LoadUint32(word(used, 0)) >> 16)
	r.told = r.usedNext
	return nil
}

// stop forgets where the ring is.
func (r *ring) stop() { r.desc, r.avail, r.used = nil, nil, nil }

// pop takes the next chain off the ring, in c; false where there is none.
func (r *ring) pop(m *memory, c *chain) (bool, error) {
	waiting := r.load16(2) - r.next
	if waiting == 0 {
		return false, nil
	}
	if uint32(waiting) > r.size {
		return false, fmt.Errorf("ring %d: %d chains wait in %d descriptors", r.addr.index, waiting, r.size)
	}
	c.head = r.load16(4 + 2*int(uint32(r.next)&(r.size-1)))
	if err := r.walk(m, c); err != nil {
		return false, fmt.Errorf("ring %d: %w", r.addr.index, err)
	}
	r.next++
	return true, nil
}

// unpop puts the chain that was taken last back.
func (r *ring) unpop() { r.next-- }

// walk collects the descriptors of a chain.
func (r *ring) walk(m *memory, c *chain) error {
	c.read, c.write = c.read[:0], c.write[:0]
	for i, n := c.head, uint32(0); ; n++ {
		if uint32(i) >= r.size {
			return fmt.Errorf("descriptor %d of %d", i, r.size)
		}
		if n == r.size {
			return errors.New("a chain that does not end")
		}
		d := r.desc[int(i)*descLen:][:descLen]
		addr, size := binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint32(d[8:])
		flags, next := binary.LittleEndian.Uint16(d[12:]), binary.LittleEndian.Uint16(d[14:])
		if flags&descIndirect != 0 {
			return errors.New("an indirect descriptor, which was not agreed on")
		}
		b, err := m.at(addr, uint64(size))
		if err != nil {
			return err
		}
		switch {
		case flags&descWrite != 0:
			c.write = append(c.write, b)
		case len(c.write) > 0:
			return errors.New("a descriptor to be read behind one to be written")
		default:
			c.read = append(c.read, b)
		}
		if flags&descNext == 0 {
			return nil
		}
		i = next
	}
}

// push gives the chain with a head back, n bytes of it written.
func (r *ring) push(head uint16, n uint32) {
	e := r.used[4+usedLen*int(uint32(r.usedNext)&(r.size-1)):][:usedLen]
	binary.LittleEndian.PutUint32(e, uint32(head))
	binary.LittleEndian.PutUint32(e[4:], n)
	r.usedNext++
	atomic.StoreUint32(word(r.used, 0), uint32(r.usedNext)<<16) // and flags of 0
}

// signal tells the guest of what was given back since the last time, where it wants to know.
func (r *ring) signal() error {
	if !r.running() || r.told == r.usedNext {
		return nil
	}
	r.told = r.usedNext
	if r.call < 0 || r.load16(0)&availNoInterrupt != 0 {
		return nil
	}
	if _, err := unix.Write(r.call, one); err != nil && !errors.Is(err, unix.EAGAIN) { // EAGAIN: told 2^64-2 times already
		return fmt.Errorf("ring %d: %w", r.addr.index, os.NewSyscallError("write", err))
	}
	return nil
}

// load16 reads what the guest may write now: a number in avail.
func (r *ring) load16(off int) uint16 {
	in := int(address(r.avail)+uintptr(off)) & 2
	return uint16(atomic.LoadUint32(word(r.avail, off-in)) >> (8 * in))
}

// address is where b lies.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// word is the aligned word at b[off]. It may begin before b, but lies in the same page.
func word(b []byte, off int) *uint32 {
	return (*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), off))
}
