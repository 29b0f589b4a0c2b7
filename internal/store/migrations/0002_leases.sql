-- A lease is the address a VM has in the network of all VMs, until the VM is deleted.

CREATE TABLE leases (
  vm      TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
  address TEXT NOT NULL UNIQUE CHECK (address <> '')
) STRICT;
