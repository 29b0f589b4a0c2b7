package doctor

// lowMemory is how many available bytes of memory call for a warning: what a VM has by default.
const lowMemory = 2 << 30

func (o Observations) memory() Check {
	const name = "memory"
	switch {
	case o.MemoryTotal == 0:
		return warn(name, "not known")
	case o.MemoryAvailable < lowMemory:
		return warn(name, "%s of %s available, a VM takes up to %s", size(o.MemoryAvailable), size(o.MemoryTotal), o.Settings.DefaultMemory).
			hint("stop what is not needed, or run VMs with less: banger vm run --memory 512MiB")
	}
	return ok(name, "%s of %s available", size(o.MemoryAvailable), size(o.MemoryTotal))
}

func (o Observations) cpus() Check {
	const name = "cpus"
	if want := o.Settings.DefaultCPUs; want > o.CPUs && o.CPUs > 0 {
		return warn(name, "%d; a VM has %d by default", o.CPUs, want).hint("set default_cpus = %d in %s", o.CPUs, o.ConfigPath)
	}
	return ok(name, "%d", o.CPUs)
}
