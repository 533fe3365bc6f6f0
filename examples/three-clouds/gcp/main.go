// Command gcp prints who GCP says we are, by application default credentials.
// WHOAMI is a protected call that tells it.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"

	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
)

func main() {
	client, err := httptransport.NewClient(&httptransport.Options{
		DetectOpts: &credentials.DetectOptions{Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	answer, err := client.Get(os.Getenv("WHOAMI"))
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	var body struct{ Principal string }
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil || answer.StatusCode != http.StatusOK {
		log.Fatal(answer.Status, err)
	}
	fmt.Println("I am", body.Principal)
}
