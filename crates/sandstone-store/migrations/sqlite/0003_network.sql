-- What a sandbox may reach, and how it can be reached. All of it goes when the sandbox ends.

-- A JSON array of what it may reach; null when it may reach everything.
ALTER TABLE sandboxes ADD COLUMN allow_net TEXT;

-- Values that never enter the sandbox: it has the placeholder.
CREATE TABLE secrets (
    sandbox     TEXT NOT NULL REFERENCES sandboxes (id),
    name        TEXT NOT NULL,
    placeholder TEXT NOT NULL,
    value       TEXT NOT NULL,
    -- A JSON array of the hosts that get the value.
    hosts       TEXT NOT NULL,
    PRIMARY KEY (sandbox, name)
) STRICT;

-- Names under the base domain. Bound to a port, or to the server of a process, by a second call;
-- all three are null until then.
CREATE TABLE exposures (
    name       TEXT NOT NULL PRIMARY KEY,
    sandbox    TEXT NOT NULL REFERENCES sandboxes (id),
    port       INTEGER,
    pid        INTEGER,
    -- The unix socket of that process's server.
    socket     TEXT,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX exposures_sandbox ON exposures (sandbox);

-- User names that open a shell: who knows one may enter, so only their hashes are kept.
CREATE TABLE ssh_users (
    sha256     TEXT NOT NULL PRIMARY KEY,
    sandbox    TEXT NOT NULL REFERENCES sandboxes (id),
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX ssh_users_sandbox ON ssh_users (sandbox);
