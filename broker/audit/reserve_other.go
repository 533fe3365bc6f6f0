//go:build !linux

package audit

import "errors"

// reserve is what Linux has.
func (osDisk) reserve(string, int64) error { return errors.ErrUnsupported }
