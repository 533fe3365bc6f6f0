-- Evidence that was used at the token endpoint: digests, so that one kind's
-- cannot be taken for another's.
CREATE TABLE spent_evidence (
	digest BYTEA PRIMARY KEY,
	expires_at BIGINT NOT NULL
);
CREATE INDEX spent_evidence_by_end ON spent_evidence (expires_at);
