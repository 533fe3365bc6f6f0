-- One change of policy, however many resources it writes, has one revision.
-- Each is kept with who made it, and what stood before it, as far back as the
-- program says.

CREATE TABLE resource_written (
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	revision BIGINT NOT NULL,
	owner TEXT NOT NULL,
	body BYTEA, -- one document; NULL: deleted
	actor TEXT NOT NULL,
	written_at BIGINT NOT NULL,
	PRIMARY KEY (kind, name, revision)
);
INSERT INTO resource_written SELECT kind, name, revision, owner, body, actor, written_at FROM resource;
DROP TABLE resource;
ALTER TABLE resource_written RENAME TO resource;
CREATE INDEX resource_feed ON resource (revision);

CREATE TABLE policy_revision (
	revision BIGINT PRIMARY KEY,
	act TEXT NOT NULL, -- what was asked for: apply, delete, rollback to a revision
	owner TEXT NOT NULL, -- whose resources; empty: several owners'
	actor TEXT NOT NULL,
	created BIGINT NOT NULL,
	changed BIGINT NOT NULL,
	deleted BIGINT NOT NULL,
	written_at BIGINT NOT NULL
);
INSERT INTO policy_revision (revision, act, owner, actor, created, changed, deleted, written_at)
	SELECT n.revision, CASE WHEN n.body IS NULL THEN 'delete' ELSE 'apply' END, n.owner, n.actor,
		CASE WHEN n.body IS NOT NULL AND o.body IS NULL THEN 1 ELSE 0 END,
		CASE WHEN n.body IS NOT NULL AND o.body IS NOT NULL THEN 1 ELSE 0 END,
		CASE WHEN n.body IS NULL THEN 1 ELSE 0 END, n.written_at
	FROM resource n LEFT JOIN resource o ON o.kind = n.kind AND o.name = n.name
		AND o.revision = (SELECT MAX(x.revision) FROM resource x WHERE x.kind = n.kind AND x.name = n.name AND x.revision < n.revision);
