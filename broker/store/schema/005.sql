-- The SHA-256 of the public keys of a node's last two SVIDs: one that somebody
-- else made under the same serial number is not the node's. Empty: not known.
ALTER TABLE node ADD COLUMN key_digest BYTEA NOT NULL DEFAULT '';
ALTER TABLE node ADD COLUMN previous_key_digest BYTEA NOT NULL DEFAULT '';
