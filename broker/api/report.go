package api

import "fmt"

// ReportID names a report: by its node's spool, and its number there.
func ReportID(spool string, number uint64) string { return fmt.Sprintf("%s-%d", spool, number) }
