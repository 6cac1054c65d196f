-- Times are milliseconds since the Unix epoch. Sizes are bytes. States are the texts of
-- sandstone-core. Every identifier is the text that the API shows.

CREATE TABLE organisations (
    id         TEXT NOT NULL PRIMARY KEY,
    slug       TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

-- Only the hash of a token is kept: whoever reads this file cannot use the API.
CREATE TABLE tokens (
    sha256       TEXT NOT NULL PRIMARY KEY,
    organisation TEXT NOT NULL REFERENCES organisations (id),
    created_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE volumes (
    id           TEXT NOT NULL PRIMARY KEY,
    organisation TEXT NOT NULL REFERENCES organisations (id),
    slug         TEXT NOT NULL,
    region       TEXT NOT NULL,
    capacity     INTEGER NOT NULL,
    state        TEXT NOT NULL,
    allocated    INTEGER NOT NULL,
    flattened    INTEGER NOT NULL,
    measured_at  INTEGER,
    -- The token of the newest attachment. It only grows, and outlives the attachment's row.
    attach_token INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    deleted_at   INTEGER
) STRICT;

-- A slug belongs to one living volume; deleting frees it at once.
CREATE UNIQUE INDEX volumes_slug ON volumes (organisation, slug)
    WHERE state IN ('creating', 'available');
CREATE INDEX volumes_page ON volumes (organisation, created_at, id) WHERE state = 'available';
CREATE INDEX volumes_state ON volumes (state, deleted_at);

CREATE TABLE sandboxes (
    id           TEXT NOT NULL PRIMARY KEY,
    organisation TEXT NOT NULL REFERENCES organisations (id),
    region       TEXT NOT NULL,
    state        TEXT NOT NULL,
    -- 'session', or 'until' with the instant in stop_at.
    lifetime     TEXT NOT NULL,
    stop_at      INTEGER,
    memory       INTEGER NOT NULL,
    -- A JSON object of texts.
    labels       TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    stopped_at   INTEGER,
    stop_reason  TEXT
) STRICT;

CREATE INDEX sandboxes_list ON sandboxes (organisation, created_at, id);
CREATE INDEX sandboxes_unfinished ON sandboxes (state, stop_at) WHERE state <> 'stopped';
CREATE INDEX sandboxes_stopped ON sandboxes (stopped_at) WHERE state = 'stopped';

CREATE TABLE attachments (
    volume     TEXT NOT NULL REFERENCES volumes (id),
    token      INTEGER NOT NULL,
    sandbox    TEXT NOT NULL REFERENCES sandboxes (id),
    path       TEXT NOT NULL,
    state      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (volume, token)
) STRICT;

-- The rule that everything rests on: a volume has at most one holder.
CREATE UNIQUE INDEX attachments_holder ON attachments (volume) WHERE state <> 'detached';
CREATE INDEX attachments_sandbox ON attachments (sandbox);
