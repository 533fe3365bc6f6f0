// Package stop hears that a program is told to stop (SIGINT, SIGTERM), from
// nearly its first moment on: a program of many packages takes a tenth of a
// second, on a busy machine several, until main runs, and whoever is stopped
// before that would have died of the signal, not ended.
//
// So this is the one place where a package's variable does something: packages
// are made ready in the order of what they need, and this one needs little.
package stop

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

var told = listen()

func listen() chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	return c
}

// Context ends when the program is told to stop, or was before. It is called
// once, by main.
func Context() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-told
		cancel()
	}()
	return ctx
}
