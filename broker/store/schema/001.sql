-- One text for SQLite and PostgreSQL. Times are Unix milliseconds.

CREATE TABLE resource (
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	revision BIGINT NOT NULL UNIQUE,
	owner TEXT NOT NULL,
	body BYTEA, -- one YAML document; NULL: deleted
	actor TEXT NOT NULL,
	written_at BIGINT NOT NULL,
	PRIMARY KEY (kind, name, revision)
);

CREATE TABLE node (
	id TEXT PRIMARY KEY,
	revision BIGINT NOT NULL,
	name TEXT NOT NULL,
	method TEXT NOT NULL,
	join_rule TEXT NOT NULL,
	durable_key TEXT NOT NULL,
	facts BYTEA NOT NULL,
	joined_at BIGINT NOT NULL,
	serial BYTEA NOT NULL,
	previous_serial BYTEA NOT NULL,
	expires_at BIGINT NOT NULL,
	evicted_at BIGINT
);
CREATE INDEX node_feed ON node (revision);

CREATE TABLE banned (
	durable_key TEXT PRIMARY KEY,
	node TEXT NOT NULL,
	banned_at BIGINT NOT NULL
);

CREATE TABLE join_token (
	hash BYTEA PRIMARY KEY,
	node_name TEXT NOT NULL,
	labels BYTEA NOT NULL,
	expires_at BIGINT NOT NULL,
	created_by TEXT NOT NULL,
	spent_at BIGINT,
	spent_by TEXT
);

CREATE TABLE authority (
	id TEXT PRIMARY KEY,
	purpose TEXT NOT NULL CHECK (purpose IN ('root', 'x509', 'jwt')),
	alg TEXT NOT NULL,
	state TEXT NOT NULL CHECK (state IN ('prepared', 'published', 'active', 'old', 'revoked')),
	revision BIGINT NOT NULL,
	broker TEXT NOT NULL, -- whose issuing CA; empty: shared
	key_ref TEXT NOT NULL,
	public_key BYTEA NOT NULL,
	chain BYTEA NOT NULL,
	published_at BIGINT NOT NULL,
	activated_at BIGINT NOT NULL,
	last_expiry BIGINT NOT NULL,
	not_after BIGINT NOT NULL
);
CREATE UNIQUE INDEX authority_active ON authority (purpose, alg, broker) WHERE state = 'active';

CREATE TABLE publication (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	sequence BIGINT NOT NULL,
	digest BYTEA NOT NULL
);

CREATE TABLE bundle (
	trust_domain TEXT PRIMARY KEY,
	revision BIGINT NOT NULL,
	sequence TEXT NOT NULL, -- an unsigned 64-bit number in decimal
	document BYTEA NOT NULL,
	fetched_at BIGINT NOT NULL,
	confirmed_at BIGINT NOT NULL
);
