package azure

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// maxToken is the longest life of an access token that Entra gives.
const maxToken = 24 * time.Hour

// Revoke implements exchangers.Revoker.
func (s Settings) Revoke(c exchangers.Cut) exchangers.Advice {
	advice := exchangers.Advice{
		Until:    c.Now.Add(maxToken),
		Sessions: "Entra takes no access token back: it lives for about an hour, and 24h at most",
		Missing: []string{
			fmt.Sprintf("Entra knows no revoked token and no cut-off by time: it takes each JWT-SVID of a subject that it knows until that ends, the last one at %s", c.Until.UTC().Format(time.RFC3339)),
		},
	}
	for _, id := range c.IDs {
		find, err := json.Marshal(map[string]string{"subject": id.String(), "issuer": c.Issuer, "audience": s.Audience()})
		if err != nil {
			panic(err) // strings alone
		}
		advice.Remedies = append(advice.Remedies, exchangers.Remedy{
			Does: fmt.Sprintf("no new token for %s, old JWT-SVIDs and new ones alike, once it is replicated (minutes): the workload is shut out too, until the credential is made again", id),
			Limits: []string{
				fmt.Sprintf("NAME is that of the federated credential with this subject: az ad app federated-credential list --id %s", s.ClientID),
				"of a user-assigned managed identity: az identity federated-credential delete --name NAME --identity-name IDENTITY --resource-group GROUP; one change at a time",
			},
			Command:  []string{"az", "ad", "app", "federated-credential", "delete", "--id", s.ClientID, "--federated-credential-id", "NAME"},
			Document: find,
		})
	}
	return advice
}
