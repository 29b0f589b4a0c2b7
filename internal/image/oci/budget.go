package oci

import (
	"fmt"
	"sync/atomic"
)

// What the merging of an image's layers may take; what is beyond it is refused, for it is made to fill memory.
const (
	maxEntries = 4 << 20 // names that layers put into the tree
	maxMemory  = 1 << 30 // bytes
	// maxEarly is how many bytes the entries of one layer may take that are kept from its download; those of a larger one are read again.
	maxEarly = 64 << 20
	// maxKept is how many those of one image may take together.
	maxKept = 256 << 20
)

// What things take, in bytes, without the text in them: about what was measured.
const (
	itemCost  = 64
	nameCost  = 64 // of a string in a map
	metaCost  = 128
	nodeCost  = 176 // with its inode, and its place in its directory
	dirCost   = 96  // more, for the map
	xattrCost = 96
)

// budget is what is left to be taken. It may be used by several goroutines.
type budget struct {
	entries, bytes atomic.Int64
}

func newBudget(entries, bytes int64) *budget {
	b := &budget{}
	b.entries.Store(entries)
	b.bytes.Store(bytes)
	return b
}

// take is an error where not as much is left.
func (b *budget) take(entries, bytes int64) error {
	switch {
	case b.entries.Add(-entries) < 0:
		return fmt.Errorf("more than %d files", maxEntries)
	case b.bytes.Add(-bytes) < 0:
		return fmt.Errorf("names and attributes of files take more than %d bytes", maxMemory)
	}
	return nil
}

// give returns bytes.
func (b *budget) give(bytes int64) { b.bytes.Add(bytes) }

// cost is what m takes.
func (m *meta) cost() int64 {
	if m == nil {
		return 0
	}
	sum := int64(metaCost + len(m.link))
	for k, v := range m.xattrs {
		sum += int64(xattrCost + len(k) + len(v))
	}
	return sum
}
