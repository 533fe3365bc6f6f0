// Command azure prints who Azure says we are, by the default credential. WHOAMI
// is a protected call that tells it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

func main() {
	ctx := context.Background()
	found, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		log.Fatal(err)
	}
	token, err := found.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://management.azure.com/.default"}})
	if err != nil {
		log.Fatal(err)
	}
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, os.Getenv("WHOAMI"), nil)
	if err != nil {
		log.Fatal(err)
	}
	ask.Header.Set("Authorization", "Bearer "+token.Token)
	answer, err := http.DefaultClient.Do(ask)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	var body struct{ AppID string }
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil || answer.StatusCode != http.StatusOK {
		log.Fatal(answer.Status, err)
	}
	fmt.Println("I am", body.AppID)
}
