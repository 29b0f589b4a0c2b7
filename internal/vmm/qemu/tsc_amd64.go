package qemu

// rdtsc reads the CPU's time stamp counter, after all loads before it.
func rdtsc() uint64
