package storetest

import (
	"crypto/sha256"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/store"
)

func hash(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

func (e *env) token(text, node string) store.Token {
	return store.Token{
		Hash: hash(text), Node: node, Labels: map[string]string{"site": "a"}, ExpiresAt: e.time.Add(10 * time.Minute), CreatedBy: "uid:0",
	}
}

func (e *env) refusedSpent(err error) {
	e.Helper()
	e.refused(err, broker.ErrSpent)
}

func spendOnce(e *env) {
	e.must(e.CreateToken(e.Context(), e.token("t", "n1")))
	var won, spent atomic.Int32
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			node, labels, err := e.SpendToken(e.Context(), hash("t"), "token", e.time)
			switch {
			case err == nil && node == "n1" && labels["site"] == "a":
				won.Add(1)
			case errors.Is(err, broker.ErrSpent) && node == "" && labels == nil:
				spent.Add(1)
			default:
				e.Errorf("%q %v: %v", node, labels, err)
			}
		})
	}
	all.Wait()
	e.equal([]int32{won.Load(), spent.Load()}, []int32{1, 199})
}

func badTokens(e *env) {
	e.must(e.CreateToken(e.Context(), e.token("t", "n1")))
	unlabelled := e.token("u", "n2")
	unlabelled.Labels = nil
	e.must(e.CreateToken(e.Context(), unlabelled))

	_, _, err := e.SpendToken(e.Context(), hash("another"), "token", e.time)
	e.refused(err, broker.ErrNotFound)
	_, _, err = e.SpendToken(e.Context(), nil, "token", e.time)
	e.refused(err, broker.ErrNotFound)
	_, _, err = e.SpendToken(e.Context(), hash("t"), "token", e.time.Add(10*time.Minute)) // its end is no part of its life
	e.refusedSpent(err)
	revision := e.revision()
	_, _, err = e.SpendToken(e.Context(), hash("t"), "token", e.time.Add(time.Hour))
	e.refusedSpent(err)
	e.equal(e.revision(), revision)

	_, _, err = e.SpendToken(e.Context(), hash("t"), "token", e.time.Add(10*time.Minute-time.Millisecond))
	e.must(err) // what was refused has not spent it
	_, _, err = e.SpendToken(e.Context(), hash("t"), "token", e.time)
	e.refusedSpent(err)
	node, labels, err := e.SpendToken(e.Context(), hash("u"), "token", e.time)
	e.must(err)
	e.equal(node, "n2")
	e.equal(len(labels), 0)
}

func sameToken(e *env) {
	e.must(e.CreateToken(e.Context(), e.token("t", "n1")))
	if err := e.CreateToken(e.Context(), e.token("t", "n2")); err == nil {
		e.Error("a token of the same hash is taken")
	}
	node, _, err := e.SpendToken(e.Context(), hash("t"), "token", e.time)
	e.must(err)
	e.equal(node, "n1")
}
