package local

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// oauth makes a file of the token, and the environment of Vault's tools.
func (s *Surfaces) oauth(t *target) error {
	b := t.first.GetBearer()
	if b == nil {
		return errors.New("it gave no token")
	}
	s.tokenFile(t)
	if b.GetVaultAddress() == "" {
		return nil
	}
	t.cloud = cloudVault
	t.env["VAULT_TOKEN"] = b.GetToken()
	t.env["VAULT_ADDR"] = b.GetVaultAddress()
	if b.GetVaultNamespace() != "" {
		t.env["VAULT_NAMESPACE"] = b.GetVaultNamespace()
	}
	if t.first.GetCaFile() != "" {
		t.env["VAULT_CACERT"] = t.first.GetCaFile()
	}
	return nil
}

// tokenFile keeps a file of a bearer token. There is no variable for it that
// everybody agrees on.
func (s *Surfaces) tokenFile(t *target) {
	file := t.name + ".token"
	t.env[variable("CREDENCE_TOKEN_FILE_", t.name)] = s.dir.file(file)
	t.files = []string{file}
	t.refresh = func(ctx context.Context) error {
		r, err := s.credential(ctx, t.name)
		if err == nil && r.GetBearer() == nil {
			err = status.Error(codes.Unavailable, "the target gives no token")
		}
		if err != nil {
			return err
		}
		return s.dir.write(file, []byte(r.GetBearer().GetToken()))
	}
}

// vaultNames are what tells tools of Vault and, with BAO_ for VAULT_, of
// OpenBao, which reads its own first, who they are, where to go and whom to
// believe.
func vaultNames() (all []string) {
	for _, name := range []string{
		"TOKEN", "ADDR", "AGENT_ADDR", "NAMESPACE", "CACERT", "CACERT_BYTES", "CAPATH", "SKIP_VERIFY", "TLS_SERVER_NAME",
		"CLIENT_CERT", "CLIENT_KEY",
	} {
		all = append(all, "VAULT_"+name, "BAO_"+name)
	}
	return all
}
