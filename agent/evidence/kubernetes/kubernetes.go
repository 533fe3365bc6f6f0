// Package kubernetes gets the token that proves a pod to the join method
// kubernetes: the one of its service account that the kubelet keeps in a file, made
// for the broker.
//
// It trusts whoever may write to that file. What a token is worth is the broker's
// to say: nothing of it is read here, and it is kept nowhere.
package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
)

// DefaultFile is where a volume of this kind puts the token:
//
//   - name: credence-token            # mounted at /var/run/secrets/tokens
//     projected:
//     sources:
//   - serviceAccountToken: {audience: "credence://TRUST DOMAIN/join", expirationSeconds: 3600, path: credence}
const DefaultFile = "/var/run/secrets/tokens/credence"

// maxToken bounds what is taken for a token.
const maxToken = 16 << 10

// Config says where the token is.
type Config struct {
	File string // empty: DefaultFile
}

// Evidence reads the token anew: the kubelet replaces it while it lives. Errors
// hold no part of it.
func (c Config) Evidence(context.Context) ([]byte, error) {
	if c.File == "" {
		c.File = DefaultFile
	}
	text, err := read(c.File)
	if err != nil {
		return nil, fmt.Errorf("getting a token for join method kubernetes: %w", err)
	}
	token := bytes.TrimSpace(text)
	if len(token) == 0 || len(text) > maxToken {
		return nil, fmt.Errorf("getting a token for join method kubernetes: %s holds none: 1 to %d bytes are taken", c.File, maxToken)
	}
	return token, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxToken+1))
}
