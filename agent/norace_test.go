//go:build !race

package agent_test

const seen = 20_000
