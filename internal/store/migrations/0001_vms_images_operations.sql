-- Times are nanoseconds since 1970, UTC. A record is JSON; record_version is the version of its form.

CREATE TABLE images (
  digest         TEXT PRIMARY KEY CHECK (digest <> ''),
  created_at     INTEGER NOT NULL,
  record_version INTEGER NOT NULL,
  record         TEXT NOT NULL
) STRICT;

CREATE TABLE image_names (
  name   TEXT PRIMARY KEY CHECK (name <> ''),
  digest TEXT NOT NULL REFERENCES images (digest)
) STRICT;
CREATE INDEX image_names_digest ON image_names (digest);

CREATE TABLE kernels (
  digest         TEXT PRIMARY KEY CHECK (digest <> ''),
  created_at     INTEGER NOT NULL,
  record_version INTEGER NOT NULL,
  record         TEXT NOT NULL
) STRICT;

CREATE TABLE kernel_names (
  name   TEXT PRIMARY KEY CHECK (name <> ''),
  digest TEXT NOT NULL REFERENCES kernels (digest)
) STRICT;
CREATE INDEX kernel_names_digest ON kernel_names (digest);

CREATE TABLE vms (
  id             TEXT PRIMARY KEY CHECK (id <> ''),
  name           TEXT NOT NULL UNIQUE CHECK (name <> ''),
  state          TEXT NOT NULL CHECK (state <> ''),
  image_digest   TEXT NOT NULL REFERENCES images (digest),
  kernel_digest  TEXT NOT NULL REFERENCES kernels (digest),
  created_at     INTEGER NOT NULL,
  record_version INTEGER NOT NULL,
  record         TEXT NOT NULL
) STRICT;
CREATE INDEX vms_image_digest ON vms (image_digest);
CREATE INDEX vms_kernel_digest ON vms (kernel_digest);

CREATE TABLE operations (
  id             TEXT PRIMARY KEY CHECK (id <> ''),
  kind           TEXT NOT NULL,
  target         TEXT NOT NULL,
  state          TEXT NOT NULL CHECK (state <> ''),
  created_at     INTEGER NOT NULL,
  ended_at       INTEGER,
  record_version INTEGER NOT NULL,
  record         TEXT NOT NULL
) STRICT;
CREATE INDEX operations_created_at ON operations (created_at);
CREATE INDEX operations_state ON operations (state);

CREATE TABLE events (
  seq  INTEGER PRIMARY KEY AUTOINCREMENT,
  time INTEGER NOT NULL,
  kind TEXT NOT NULL,
  vm   TEXT NOT NULL,
  text TEXT NOT NULL
) STRICT;
