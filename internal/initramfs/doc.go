// Package initramfs writes and reads the archives a VM boots from: cpio in the
// "newc" form, which the kernel unpacks into its first root file system
// (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).
//
// A VM's initramfs is several archives one after the other: the boot modules
// (package kernel writes them), the agent (WriteAgent) and the boot
// configuration (WriteBoot). Every archive written here is padded with zeros to a
// multiple of 512 bytes, so that any of them may follow any other. Archives are
// not compressed: under emulation that boots as fast, and joining them is copying.
//
// The same input gives the same bytes: times and owners are 0, inodes count from 1.
//
// writer.go holds the Writer, reader.go the Reader, banger.go the two archives.
package initramfs
