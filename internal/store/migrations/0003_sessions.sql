-- A session is a command with a name in a VM. Its record stays when it has ended, until it or the VM is deleted.

CREATE TABLE sessions (
  vm             TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
  name           TEXT NOT NULL CHECK (name <> ''),
  state          TEXT NOT NULL CHECK (state <> ''),
  created_at     INTEGER NOT NULL,
  record_version INTEGER NOT NULL,
  record         TEXT NOT NULL,
  PRIMARY KEY (vm, name)
) STRICT;
