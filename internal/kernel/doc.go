// Package kernel keeps the kernels VMs boot: it makes them of Debian's kernel
// package, or of a kernel the user built, and stores them by their content.
//
// A kernel is three files: vmlinux, an uncompressed ELF; boot.cpio, an initramfs archive
// with the modules a guest needs to reach its drives and its network; and modules.ext4, a read-only drive that is mounted at
// /lib/modules and holds all modules, as the package compresses them, with the indexes modprobe
// needs. A registered kernel's vmlinux has no debug information, its boot modules keep their signatures, as it may insist on them, and
// its modules are compressed only if it says that it can undo that. boot.cpio has the modules as /modules/NAME.ko, uncompressed and without their signatures, which
// is what loads fastest, and /modules/order: the files' names, one a line, in the order to load them.
//
// The store has a directory per kernel, sha256-HEX, where HEX is the SHA-256 of the lines "NAME SHA256\n" of its
// three files, sorted by name. The same package makes the same files everywhere. A directory is
// built beside the others under a name that begins with ".tmp-", and renamed when it is complete and synced; package content
// is what that shares with images.
//
// catalog.go lists what can be pulled, store.go and record.go keep it, pull.go finds
// and fetches the package, build.go makes the files of it, vmlinux.go opens its kernel image; register.go takes a user's kernel, elf.go what a
// vmlinux says of itself, needs.go what guests need. Package kmod works out
// the modules' dependencies.
package kernel
