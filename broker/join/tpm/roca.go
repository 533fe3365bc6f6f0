package tpm

import (
	"errors"
	"math/big"
)

// factorable says whether a modulus looks as Infineon's TPMs made them until 2017
// (CVE-2017-15361): its primes are powers of 65537 modulo the product of the first
// primes, and so is it. Such a key can be computed from its public half. One in 2^150
// others looks so.
func factorable(n *big.Int) bool {
	rest := new(big.Int)
	for p := int64(3); p <= 167; p += 2 {
		if big.NewInt(p).ProbablyPrime(0) && !powerOf65537(rest.Mod(n, big.NewInt(p)).Int64(), p) {
			return false
		}
	}
	return true
}

func powerOf65537(rest, p int64) bool {
	for power := int64(1); ; {
		if power == rest {
			return true
		}
		if power = power * 65537 % p; power == 1 {
			return false
		}
	}
}

var errFactorable = errors.New("the endorsement key is of those that can be computed from their public half (CVE-2017-15361)")
