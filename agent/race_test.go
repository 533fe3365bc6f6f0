//go:build race

package agent_test

// seen is how many processes come and go: more than are held, and the race
// detector makes each cost ten times as much.
const seen = 4600
