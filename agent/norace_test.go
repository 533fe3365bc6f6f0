//go:build !race

package agent_test

const seen = 8192
