-- Snapshots, and volumes made from other images.

-- One namespace for volumes and snapshots. A row per object that holds its slug.
CREATE TABLE slugs (
    organisation TEXT NOT NULL REFERENCES organisations (id),
    slug         TEXT NOT NULL,
    object       TEXT NOT NULL UNIQUE,
    PRIMARY KEY (organisation, slug)
) STRICT;

INSERT INTO slugs (organisation, slug, object)
SELECT organisation, slug, id FROM volumes WHERE state IN ('creating', 'available');

DROP INDEX volumes_slug;
CREATE INDEX volumes_slug ON volumes (organisation, slug);

ALTER TABLE volumes ADD COLUMN is_bootable INTEGER NOT NULL DEFAULT 0;
-- How it came to be: 'empty', 'base', 'image' or 'import'.
ALTER TABLE volumes ADD COLUMN origin TEXT NOT NULL DEFAULT 'empty';
-- The volume or snapshot it was copied from, and that one's slug at the time.
ALTER TABLE volumes ADD COLUMN source TEXT;
ALTER TABLE volumes ADD COLUMN source_slug TEXT;
-- The id of the oldest ancestor. Relatives share extents on the pool, so their sizes change
-- together.
ALTER TABLE volumes ADD COLUMN family TEXT NOT NULL DEFAULT '';
UPDATE volumes SET family = id;
-- The last change that may have altered its sizes; a measurement before that is out of date.
ALTER TABLE volumes ADD COLUMN changed_at INTEGER NOT NULL DEFAULT 0;
-- The capacity that it is being enlarged to.
ALTER TABLE volumes ADD COLUMN growing_to INTEGER;
-- Why it could not be made.
ALTER TABLE volumes ADD COLUMN failure TEXT;

CREATE INDEX volumes_family ON volumes (family);
CREATE INDEX volumes_copied ON volumes (source) WHERE state = 'creating';
CREATE INDEX volumes_growing ON volumes (id) WHERE growing_to IS NOT NULL;

-- The columns that volumes have, too, mean the same.
CREATE TABLE snapshots (
    id           TEXT NOT NULL PRIMARY KEY,
    organisation TEXT NOT NULL REFERENCES organisations (id),
    slug         TEXT NOT NULL,
    region       TEXT NOT NULL,
    capacity     INTEGER NOT NULL,
    is_bootable  INTEGER NOT NULL,
    state        TEXT NOT NULL,
    source       TEXT NOT NULL REFERENCES volumes (id),
    source_slug  TEXT NOT NULL,
    family       TEXT NOT NULL,
    allocated    INTEGER NOT NULL,
    flattened    INTEGER NOT NULL,
    extents      INTEGER NOT NULL,
    measured_at  INTEGER,
    changed_at   INTEGER NOT NULL,
    -- Known once it is made. Microseconds.
    consistency  TEXT,
    stall_us     INTEGER NOT NULL,
    checksum     TEXT,
    health       TEXT NOT NULL,
    checked_at   INTEGER,
    packed_at    INTEGER,
    created_at   INTEGER NOT NULL,
    deleted_at   INTEGER,
    failure      TEXT
) STRICT;

CREATE INDEX snapshots_slug ON snapshots (organisation, slug);
CREATE INDEX snapshots_page ON snapshots (organisation, created_at, id) WHERE state = 'available';
CREATE INDEX snapshots_state ON snapshots (state, deleted_at);
CREATE INDEX snapshots_family ON snapshots (family);
CREATE INDEX snapshots_copying ON snapshots (source) WHERE state = 'creating';

-- 'client', or 'maintenance' for the control plane's own.
ALTER TABLE sandboxes ADD COLUMN purpose TEXT NOT NULL DEFAULT 'client';
-- The snapshot that is its root, or that it has mounted for maintenance.
ALTER TABLE sandboxes ADD COLUMN snapshot TEXT REFERENCES snapshots (id);

CREATE INDEX sandboxes_snapshot ON sandboxes (snapshot)
    WHERE snapshot IS NOT NULL AND state <> 'stopped';

-- What volumes and snapshots have in common.
CREATE VIEW images AS
SELECT id, organisation, slug, state, source, family, measured_at, changed_at, created_at,
    deleted_at
FROM volumes
UNION ALL
SELECT id, organisation, slug, state, source, family, measured_at, changed_at, created_at,
    deleted_at
FROM snapshots;
