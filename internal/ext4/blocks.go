package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	extentMagic     = 0xF30A
	extentHeader    = 12
	extentEntry     = 12
	maxExtentDepth  = 5 // Documentation/filesystems/ext4/ifork.rst
	maxExtentBlocks = 32768
	maxFileBlocks   = 1 << 32
	directBlocks    = 12
)

var errExtents = errors.New("damaged extent tree")

// run is a stretch of a file whose blocks lie one after the other.
type run struct {
	logical, physical, count uint64 // block in the file, block of the file system, blocks
}

// content returns what is in a regular file or symbolic link; the caller has bounded its size.
func (c *call) content(i *inode) ([]byte, error) {
	b := make([]byte, i.Size)
	if i.flags&flagInline != 0 {
		head, tail, err := i.inline()
		if err != nil {
			return nil, err
		}
		copy(b[copy(b, head):], tail)
		return b, nil
	}
	err := c.runs(i, func(r run) error {
		at := r.logical * uint64(c.s.BlockSize)
		end := min(at+r.count*uint64(c.s.BlockSize), uint64(len(b)))
		return c.readBlocks(b[at:end], r.physical)
	})
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.Inode, err)
	}
	return b, nil
}

// runs calls f with the stretches of i up to its size, in order. What is between
// them reads as zeros.
func (c *call) runs(i *inode, f func(run) error) error {
	blocks := uint64(i.Size) / uint64(c.s.BlockSize)
	if i.Size%c.s.BlockSize != 0 {
		blocks++
	}
	if i.flags&flagExtents != 0 {
		root := i.block()
		if !isExtentNode(root) {
			return errExtents
		}
		depth := int(binary.LittleEndian.Uint16(root[6:]))
		if depth > maxExtentDepth {
			return errExtents
		}
		t := extentTree{c, min(blocks, maxFileBlocks), f}
		return t.walk(root, depth, 0, maxFileBlocks)
	}
	m := blockMap{call: c, blocks: blocks, f: f}
	if err := m.walk(i.block()); err != nil {
		return err
	}
	return m.flush()
}

func isExtentNode(b []byte) bool { return binary.LittleEndian.Uint16(b) == extentMagic }

// extentTree is a walk through the extents of a file.
type extentTree struct {
	*call
	blocks uint64 // what begins behind so many blocks does not matter
	f      func(run) error
}

// walk goes through node and what is below it, which may describe the blocks
// from..to of the file. Blocks have to rise, so that every node adds to the file:
// that bounds how many nodes there can be.
func (t *extentTree) walk(node []byte, depth int, from, to uint64) error {
	le := binary.LittleEndian
	entries := int(le.Uint16(node[2:]))
	if !isExtentNode(node) || int(le.Uint16(node[6:])) != depth || entries > (len(node)-extentHeader)/extentEntry {
		return errExtents
	}
	at := func(k int) []byte { return node[extentHeader+k*extentEntry:] }
	for k := range entries {
		e := at(k)
		first := uint64(le.Uint32(e))
		if first < from || first >= to {
			return errExtents
		}
		if first >= t.blocks {
			return nil
		}
		if depth == 0 {
			next, err := t.leaf(e, first, to)
			if err != nil {
				return err
			}
			from = next
			continue
		}
		end := to
		if k+1 < entries {
			end = uint64(le.Uint32(at(k + 1)))
		}
		child := make([]byte, t.s.BlockSize)
		if err := t.read(child, uint64(le.Uint32(e[4:]))|uint64(le.Uint16(e[8:]))<<32); err != nil {
			return err
		}
		if err := t.walk(child, depth-1, first, end); err != nil {
			return err
		}
		from = first + 1
	}
	return nil
}

// leaf reports an extent and returns the block behind it.
func (t *extentTree) leaf(e []byte, first, to uint64) (uint64, error) {
	le := binary.LittleEndian
	count := uint64(le.Uint16(e[4:]))
	written := count <= maxExtentBlocks
	if !written {
		count -= maxExtentBlocks
	}
	next := first + count
	if count == 0 || next > to {
		return 0, errExtents
	}
	if !written {
		return next, nil
	}
	physical := uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
	return next, t.f(run{first, physical, min(next, t.blocks) - first})
}

// blockMap is a walk through the map of blocks of ext2 and ext3.
type blockMap struct {
	*call
	blocks uint64
	f      func(run) error
	last   run // not yet reported: the next block may continue it
}

func (m *blockMap) walk(block []byte) error {
	le := binary.LittleEndian
	at := uint64(0)
	for k := range blockArea / 4 {
		level := max(0, k-directBlocks+1)
		if err := m.pointer(uint64(le.Uint32(block[4*k:])), level, at); err != nil {
			return err
		}
		at += m.span(level)
	}
	return nil
}

// span is the number of blocks that a pointer of a level stands for.
func (m *blockMap) span(level int) uint64 {
	n := uint64(1)
	for range level {
		n *= uint64(m.s.BlockSize) / 4
	}
	return n
}

// pointer follows a pointer; at is the first block of the file that it stands for.
func (m *blockMap) pointer(block uint64, level int, at uint64) error {
	switch {
	case block == 0, at >= m.blocks:
		return nil
	case level == 0:
		return m.add(at, block)
	}
	b := make([]byte, m.s.BlockSize)
	if err := m.read(b, block); err != nil {
		return err
	}
	step := m.span(level - 1)
	for ; len(b) > 0 && at < m.blocks; b, at = b[4:], at+step {
		if err := m.pointer(uint64(binary.LittleEndian.Uint32(b)), level-1, at); err != nil {
			return err
		}
	}
	return nil
}

func (m *blockMap) add(logical, physical uint64) error {
	if n := m.last.count; n > 0 && n < maxExtentBlocks && logical == m.last.logical+n && physical == m.last.physical+n {
		m.last.count++
		return nil
	}
	err := m.flush()
	m.last = run{logical, physical, 1}
	return err
}

func (m *blockMap) flush() error {
	if m.last.count == 0 {
		return nil
	}
	return m.f(m.last)
}
