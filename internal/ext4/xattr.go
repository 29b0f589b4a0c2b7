package ext4

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The layout of an attribute block: a header, entries one after the other to a
// zero word, values from the end.
const (
	xattrMagic     = 0xEA020000
	xattrHeader    = 32
	xattrEntry     = 16
	offInodeACL    = 0x68
	minInodeForACL = offInodeACL + 4
)

var errXattrBlock = errors.New("damaged attribute block")

// sortAttributes puts the entries of every attribute block into the order the
// kernel searches them in: by name index, length, name.
func sortAttributes(f readWriterAt, s Super) error {
	if s.inodeSize < minInodeForACL {
		return nil
	}
	for g := range s.groups() {
		d, err := readDesc(f, s, g)
		if err != nil {
			return err
		}
		table := make([]byte, int(s.inodesPerGroup)*int(s.inodeSize))
		if _, err := f.ReadAt(table, int64(d.inodeTable)*s.BlockSize); err != nil {
			return fmt.Errorf("inode table of group %d: %w", g, err)
		}
		for i := range int(s.inodesPerGroup) {
			inode := table[i*int(s.inodeSize):]
			block := binary.LittleEndian.Uint32(inode[offInodeACL:])
			if block == 0 {
				continue
			}
			if err := sortAttributeBlock(f, s, uint64(block)); err != nil {
				return fmt.Errorf("attributes of inode %d: %w", int(g)*int(s.inodesPerGroup)+i+1, err)
			}
		}
	}
	return nil
}

func sortAttributeBlock(f readWriterAt, s Super, block uint64) error {
	if block >= s.Blocks {
		return fmt.Errorf("block %d is outside the file system", block)
	}
	b := make([]byte, s.BlockSize)
	off := int64(block) * s.BlockSize
	if _, err := f.ReadAt(b, off); err != nil {
		return err
	}
	entries, err := xattrEntries(b)
	if err != nil {
		return err
	}
	order := func(x, y []byte) int {
		return cmp.Or(cmp.Compare(x[1], y[1]), cmp.Compare(x[0], y[0]), bytes.Compare(x[xattrEntry:], y[xattrEntry:]))
	}
	if slices.IsSortedFunc(entries, order) {
		return nil
	}
	slices.SortFunc(entries, order)
	sorted := bytes.Join(entries, nil)
	copy(b[xattrHeader:], sorted)
	_, err = f.WriteAt(b, off)
	return err
}

// xattrEntries returns the entries of an attribute block, each with its padded name.
func xattrEntries(b []byte) ([][]byte, error) {
	le := binary.LittleEndian
	if len(b) < xattrHeader+4 || le.Uint32(b) != xattrMagic {
		return nil, errXattrBlock
	}
	var entries [][]byte
	for at := xattrHeader; ; {
		if at+4 > len(b) {
			return nil, errXattrBlock
		}
		if le.Uint32(b[at:]) == 0 {
			return entries, nil
		}
		size := xattrEntry + (int(b[at])+3)&^3
		if at+size > len(b) {
			return nil, errXattrBlock
		}
		entries = append(entries, bytes.Clone(b[at:at+size]))
		at += size
	}
}
