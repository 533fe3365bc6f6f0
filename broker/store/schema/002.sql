-- An operator's word that a target's cloud has a root as its anchor.
CREATE TABLE confirmation (
	root TEXT NOT NULL,
	target TEXT NOT NULL,
	actor TEXT NOT NULL,
	confirmed_at BIGINT NOT NULL,
	PRIMARY KEY (root, target)
);
