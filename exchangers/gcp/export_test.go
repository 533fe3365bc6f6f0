package gcp

// Refusal is the parser of what Google answers.
var Refusal = refusal

// IDTokenExpiry is the parser of an ID token.
var IDTokenExpiry = idTokenExpiry

// STS is where the settings' SVID goes by default.
func STS(s *Settings) (string, error) {
	x, err := New(Config{Settings: s})
	if err != nil {
		return "", err
	}
	return x.(*exchanger).sts, nil
}
