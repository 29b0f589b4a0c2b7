// Package kmod reads kernel modules and works out what depmod(8) works out: which module
// needs which, and the files in /lib/modules/RELEASE that modprobe finds that in, text and
// binary. It runs no program.
//
// module.go reads one module, set.go holds a kernel's modules and their
// dependencies, files.go writes depmod's files, index.go the binary format of them.
package kmod
