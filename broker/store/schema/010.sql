-- What is known of the joins of a durable key, where its method tells them apart.
-- An eviction, and its end, leave the count.
CREATE TABLE join_state (
	durable_key TEXT PRIMARY KEY,
	joins BIGINT NOT NULL,
	digest BYTEA NOT NULL, -- empty: the next may show anything
	recoveries BIGINT NOT NULL,
	refused_at BIGINT NOT NULL
);
