//go:build race

package exchangers_test

// nodeCount is less than the thousand: the race detector counts each step of a
// goroutine, and runs out of numbers.
const nodeCount = 200
