package tpmseal

// Again reads a file and writes it.
func Again(text []byte) ([]byte, error) {
	s, err := unmarshal(text)
	if err != nil {
		return nil, err
	}
	return s.marshal(), nil
}
