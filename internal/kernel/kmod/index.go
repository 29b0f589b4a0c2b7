package kmod

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
)

// The binary indexes are radix trees that modprobe maps into memory (libkmod/libkmod-index.c describes them).
//
//	magic, version, offset of the root: 4 bytes each; all numbers are big-endian
//	nodes, each after its children:
//	  the prefix, zero-terminated           where flagPrefix is set
//	  first, last: a byte each; then the offsets of the children for
//	    first to last, 0 where there is none  where flagChildren is set
//	  the number of values; for each its priority (4 bytes) and its
//	    text, zero-terminated               where flagValues is set
//
// The flags are the upper bits of the offsets that point to a node.
const (
	indexMagic   = 0xb007f457
	indexVersion = 0x00020001

	flagPrefix   = 1 << 31
	flagValues   = 1 << 30
	flagChildren = 1 << 29
)

// indexEntry is a key and one of its values. Where several values fit a lookup, those of lower priority come first.
type indexEntry struct {
	key, value string
	priority   int
}

// writeIndex returns the index of the entries. Keys that are not ASCII are left out, as the format cannot hold them.
func writeIndex(entries []indexEntry) []byte {
	entries = slices.DeleteFunc(slices.Clone(entries), func(e indexEntry) bool {
		return strings.ContainsFunc(e.key, func(r rune) bool { return r == 0 || r > 127 })
	})
	// What is equal but for its value keeps its order.
	slices.SortStableFunc(entries, func(a, b indexEntry) int {
		return cmp.Or(strings.Compare(a.key, b.key), cmp.Compare(a.priority, b.priority))
	})
	entries = slices.Compact(entries)
	out := binary.BigEndian.AppendUint32(nil, indexMagic)
	out = binary.BigEndian.AppendUint32(out, indexVersion)
	out = append(out, 0, 0, 0, 0)
	out, root := appendNode(out, entries, 0, 0)
	binary.BigEndian.PutUint32(out[8:], root)
	return out
}

// appendNode appends the node of entries, which are sorted and agree in their first at bytes, of which the prefix begins at
// the byte from; it returns the offset with its flags.
func appendNode(out []byte, entries []indexEntry, from, at int) ([]byte, uint32) {
	values := 0
	for values < len(entries) && len(entries[values].key) == at {
		values++
	}
	var offsets []uint32
	var first, last byte
	if rest := entries[values:]; len(rest) > 0 {
		first, last = rest[0].key[at], rest[len(rest)-1].key[at]
		offsets = make([]uint32, int(last)-int(first)+1)
		for len(rest) > 0 {
			c := rest[0].key[at]
			n := 1
			for n < len(rest) && rest[n].key[at] == c {
				n++
			}
			end := at + 1 + commonPrefix(rest[0].key[at+1:], rest[n-1].key[at+1:])
			out, offsets[c-first] = appendNode(out, rest[:n], at+1, end)
			rest = rest[n:]
		}
	}
	offset := uint32(len(out))
	if at > from {
		out = append(append(out, entries[0].key[from:at]...), 0)
		offset |= flagPrefix
	}
	if offsets != nil {
		out = append(out, first, last)
		for _, o := range offsets {
			out = binary.BigEndian.AppendUint32(out, o)
		}
		offset |= flagChildren
	}
	if values > 0 {
		out = binary.BigEndian.AppendUint32(out, uint32(values))
		for _, e := range entries[:values] {
			out = binary.BigEndian.AppendUint32(out, uint32(e.priority))
			out = append(append(out, e.value...), 0)
		}
		offset |= flagValues
	}
	return out, offset
}

// commonPrefix returns the length of what the first and the last of some sorted keys begin with, and so all.
func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
