-- The issuance index: a projection of the brokers' audit records.
CREATE TABLE issued (
	serial TEXT PRIMARY KEY, -- random: also the jti of a JWT-SVID
	kind TEXT NOT NULL CHECK (kind IN ('x509', 'jwt')),
	spiffe_id TEXT NOT NULL,
	identity TEXT NOT NULL, -- empty: a node's own
	revision BIGINT NOT NULL,
	node TEXT NOT NULL,
	authority TEXT NOT NULL,
	target TEXT NOT NULL,
	audiences BYTEA NOT NULL,
	issued_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,
	origin TEXT NOT NULL, -- the broker whose record says it
	record BIGINT NOT NULL
);
CREATE INDEX issued_by_id ON issued (spiffe_id, issued_at);
CREATE INDEX issued_by_identity ON issued (identity, issued_at);
CREATE INDEX issued_by_node ON issued (node, issued_at);
CREATE INDEX issued_by_authority ON issued (authority, expires_at);
CREATE INDEX issued_by_end ON issued (expires_at);

-- How far each broker's record is in it.
CREATE TABLE issued_mark (
	origin TEXT PRIMARY KEY,
	sequence BIGINT NOT NULL,
	hash BYTEA NOT NULL
);

CREATE TABLE cutoff (
	kind TEXT NOT NULL CHECK (kind IN ('id', 'identity', 'node', 'authority')),
	value TEXT NOT NULL,
	revision BIGINT NOT NULL,
	issued_before BIGINT NOT NULL,
	reason TEXT NOT NULL,
	actor TEXT NOT NULL,
	made_at BIGINT NOT NULL,
	PRIMARY KEY (kind, value)
);
CREATE INDEX cutoff_feed ON cutoff (revision);

-- When its last two SVIDs were issued, and by which authority: 0 and empty,
-- not known, fall under every cut-off.
ALTER TABLE node ADD COLUMN issued_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN previous_issued_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN authority TEXT NOT NULL DEFAULT '';
ALTER TABLE node ADD COLUMN previous_authority TEXT NOT NULL DEFAULT '';
