-- A trust-domain CA under another's root ('ca'), who certified an authority, and
-- why it was ended. A table's checks are changed by making it anew.

CREATE TABLE authority_4 (
	id TEXT PRIMARY KEY,
	purpose TEXT NOT NULL CHECK (purpose IN ('root', 'ca', 'x509', 'jwt')),
	alg TEXT NOT NULL,
	state TEXT NOT NULL CHECK (state IN ('prepared', 'published', 'active', 'old', 'revoked')),
	revision BIGINT NOT NULL,
	broker TEXT NOT NULL, -- whose issuing CA; empty: shared
	parent TEXT NOT NULL, -- the authority that certified it
	key_ref TEXT NOT NULL, -- empty: the key is not ours
	public_key BYTEA NOT NULL,
	chain BYTEA NOT NULL,
	published_at BIGINT NOT NULL,
	activated_at BIGINT NOT NULL,
	last_expiry BIGINT NOT NULL,
	not_after BIGINT NOT NULL,
	revoked_at BIGINT NOT NULL,
	reason TEXT NOT NULL
);
INSERT INTO authority_4 (id, purpose, alg, state, revision, broker, parent, key_ref, public_key, chain, published_at, activated_at, last_expiry, not_after, revoked_at, reason)
	SELECT id, purpose, alg, state, revision, broker, '', key_ref, public_key, chain, published_at, activated_at, last_expiry, not_after, 0, '' FROM authority;
DROP TABLE authority;
ALTER TABLE authority_4 RENAME TO authority;
CREATE UNIQUE INDEX authority_active ON authority (purpose, alg, broker) WHERE state = 'active';

CREATE TABLE revoked (
	issuer TEXT NOT NULL,
	serial BYTEA NOT NULL, -- big-endian
	revision BIGINT NOT NULL,
	at BIGINT NOT NULL,
	not_after BIGINT NOT NULL,
	reason TEXT NOT NULL,
	PRIMARY KEY (issuer, serial)
);

CREATE TABLE crl (
	issuer TEXT PRIMARY KEY,
	revision BIGINT NOT NULL,
	number BIGINT NOT NULL,
	this_update BIGINT NOT NULL,
	next_update BIGINT NOT NULL,
	der BYTEA NOT NULL
);
