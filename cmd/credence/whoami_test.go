package main_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// whoami is somebody's program that knows aws-sdk-go-v2's default chain and
// nothing of ours: it prints who the cloud says it is.
//
//	whoami        once
//	whoami stay   again at each SIGUSR1, until SIGTERM, which it answers with exit code 7
func whoami(args []string) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGTERM)
	for {
		if err := printCaller(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "whoami:", err)
			return 1
		}
		if len(args) == 0 {
			return 0
		}
		if <-signals == syscall.SIGTERM {
			fmt.Println("told to stop")
			return 7
		}
	}
}

func printCaller(ctx context.Context) error {
	sdk, err := config.LoadDefaultConfig(ctx) // anew: nothing is cached between two calls
	if err != nil {
		return err
	}
	who, err := sts.NewFromConfig(sdk).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return err
	}
	fmt.Println("I am", *who.Arn)
	return nil
}
