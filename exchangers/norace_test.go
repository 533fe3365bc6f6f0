//go:build !race

package exchangers_test

const nodeCount = 1000
