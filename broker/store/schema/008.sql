-- How far each node's reports stand in the audit record: a node that had no
-- answer sends the same again.

CREATE TABLE report_mark (
	node TEXT PRIMARY KEY,
	spool TEXT NOT NULL,
	number BIGINT NOT NULL
);
