package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"cloud.google.com/go/auth/credentials"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// whoami is somebody's program that knows the default chains of
// aws-sdk-go-v2, cloud.google.com/go/auth and azidentity, and nothing of ours:
// it prints who the cloud says it is.
//
//	whoami             AWS, once
//	whoami stay        again at each SIGUSR1, until SIGTERM, which it answers with exit code 7
//	whoami gcp URL     GCP, by a protected call that tells
//	whoami azure URL   Azure, likewise
func whoami(args []string) int {
	if len(args) == 2 {
		return whoamiAt(args[0], args[1])
	}
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

func whoamiAt(cloud, url string) int {
	ask := map[string]func(context.Context) (string, error){"gcp": googleToken, "azure": azureToken}[cloud]
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	token, err := ask(ctx)
	if err == nil {
		err = protected(ctx, url, token)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "whoami:", err)
		return 1
	}
	return 0
}

func googleToken(ctx context.Context) (string, error) {
	found, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}})
	if err != nil {
		return "", err
	}
	token, err := found.Token(ctx)
	if err != nil {
		return "", err
	}
	return token.Value, nil
}

func azureToken(ctx context.Context) (string, error) {
	found, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return "", err
	}
	token, err := found.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://management.azure.com/.default"}})
	return token.Token, err
}

// protected calls what tells whose a token is.
func protected(ctx context.Context, url, token string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	var body struct{ Principal, AppID string }
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<16)).Decode(&body); err != nil || answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the protected call answers %s, %v", answer.Status, err)
	}
	fmt.Println("I am", body.Principal+body.AppID)
	return nil
}
