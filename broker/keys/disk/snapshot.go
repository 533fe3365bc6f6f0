package disk

// SnapshotKeys returns what a copy of the database on the broker's own disk is
// sealed under, a secret of each key-encryption key, the one in use first; none
// where keys are not encrypted.
func SnapshotKeys(cfg Config) ([][]byte, error) {
	s, err := newSealer(cfg)
	if err != nil || s == nil {
		return nil, err
	}
	return s.ring.Snapshots(), nil
}
