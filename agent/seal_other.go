//go:build !linux

package agent

import "errors"

func keyringKey(string) ([]byte, error) { return nil, errors.New("only Linux has a keyring") }
