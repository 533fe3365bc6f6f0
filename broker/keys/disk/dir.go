package disk

import (
	"fmt"
	"os"

	"github.com/credence-id/credence/broker/keys"
)

// checkDir refuses a directory that somebody else could have put keys into.
func checkDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("checking the key directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("checking the key directory: %s is not a directory (links are not followed)", dir)
	}
	if err := keys.CheckPrivate(info, os.Geteuid()); err != nil {
		return fmt.Errorf("checking the key directory %s: %w", dir, err)
	}
	return nil
}
