-- oldest: 10
-- Brokers that share the database follow each other's changes. A row that is
-- removed leaves its name, and the brokers leave theirs.
CREATE TABLE removed (
	kind TEXT NOT NULL, -- node
	name TEXT NOT NULL,
	revision BIGINT NOT NULL,
	PRIMARY KEY (kind, name)
);
CREATE INDEX removed_feed ON removed (revision);

CREATE TABLE broker (
	name TEXT PRIMARY KEY,
	instance TEXT NOT NULL, -- of the data directory that has the name
	version TEXT NOT NULL,
	started_at BIGINT NOT NULL,
	seen_at BIGINT NOT NULL,
	applied BIGINT NOT NULL, -- the revision that it acts on
	connected BIGINT NOT NULL, -- nodes with an open stream
	holds BIGINT NOT NULL, -- each of them holds our bundle of this sequence number, or a newer one
	head_sequence BIGINT NOT NULL, -- of its audit record
	head_hash BYTEA NOT NULL
);
