-- oldest: 10
-- Brokers that share the database share the keys of the authorities that are not
-- one broker's own: encrypted under a key that the brokers have in files. What
-- they share is changed by one of them at a time.

ALTER TABLE authority ADD COLUMN sealed BYTEA NOT NULL DEFAULT '';
ALTER TABLE publication ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;

CREATE TABLE lease (
	name TEXT PRIMARY KEY,
	holder TEXT NOT NULL,
	fence BIGINT NOT NULL, -- grows with each holder
	expires_at BIGINT NOT NULL -- by the holder's clock
);
