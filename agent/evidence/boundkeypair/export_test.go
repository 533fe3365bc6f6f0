package boundkeypair

// TPMKeyAgain reads what a file holds, and writes it.
func TPMKeyAgain(der []byte) ([]byte, error) {
	key, err := parseTPMKey(der)
	if err != nil {
		return nil, err
	}
	return key.marshal()
}
