-- A peer's change of every key waits beside the bundle that is believed.

ALTER TABLE bundle ADD COLUMN held BYTEA NOT NULL DEFAULT '';
ALTER TABLE bundle ADD COLUMN held_at BIGINT NOT NULL DEFAULT 0;
