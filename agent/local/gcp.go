package local

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/exchangers/gcp"
)

// gcp makes a credential configuration for each way to the SVID.
func (s *Surfaces) gcp(ctx context.Context, t *target, raw json.RawMessage) error {
	var settings gcp.Settings
	if err := json.Unmarshal(raw, &settings); err != nil {
		return fmt.Errorf("reading the settings: %w", err)
	}
	if settings.IDTokenAudience != "" { // no library asks for that by a file
		s.tokenFile(t)
		return nil
	}
	t.cloud = cloudGCP
	ways := map[string]gcp.Supply{}
	if settings.Audience() == "" {
		if err := s.certificate(ctx, t); err != nil {
			return err
		}
		ways["json"] = gcp.Supply{Certificate: s.dir.file(t.name + ".certificate.json"), Chain: s.dir.file(t.name + ".chain.pem")}
		t.env["GOOGLE_API_CERTIFICATE_CONFIG"] = s.dir.file(t.name + ".certificate.json")
	} else {
		t.endpoint = subject{s, t.name}
		file := t.name + ".jwt"
		t.files, t.refresh = []string{file}, s.jwtFile(t, file)
		ways["json"] = gcp.Supply{URL: &gcp.URL{URL: s.server.url(t), Header: subjectHeader, Value: t.secret, Field: subjectField}}
		ways["file.json"] = gcp.Supply{File: s.dir.file(file)}
		if command, ok := s.executable(t.name); ok {
			ways["executable.json"] = gcp.Supply{Executable: command}
		}
	}
	for name, way := range ways {
		text, err := settings.Account(t.first.GetEndpoint(), way)
		if err != nil {
			return err
		}
		if err := s.dir.write(t.name+"."+name, text); err != nil {
			return err
		}
	}
	// Some libraries ask Google for a project, and fail, rather than go without.
	if project := settings.Project(); project != "" && value(s.cfg.Environ, "GOOGLE_CLOUD_PROJECT") == "" && value(s.cfg.Environ, "GCLOUD_PROJECT") == "" {
		t.env["GOOGLE_CLOUD_PROJECT"] = project
	}
	t.env["GOOGLE_APPLICATION_CREDENTIALS"] = s.dir.file(t.name + ".json")
	t.env["CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE"] = s.dir.file(t.name + ".json")
	return nil
}

// executable is Config.Command as an executable source, which is split at
// spaces and read by no shell: words that this would change are none.
func (s *Surfaces) executable(name string) (string, bool) {
	for _, w := range s.cfg.Command {
		if w == "" || strings.ContainsAny(w, " \t\r\n\"'\\") {
			return "", false
		}
	}
	command, ok := s.command(name, func(w string) string { return w })
	return command + " --format executable", ok
}

// certificate writes the X509-SVID: leaf, chain and key in one file, since
// libraries read them one after the other and must not find halves of two, and
// the chain above the leaf in another.
func (s *Surfaces) certificate(ctx context.Context, t *target) error {
	both, chain := t.name+".pem", t.name+".chain.pem"
	config, err := json.MarshalIndent(map[string]any{"cert_configs": map[string]any{"workload": map[string]string{
		"cert_path": s.dir.file(both), "key_path": s.dir.file(both),
	}}}, "", "  ")
	if err != nil {
		return err
	}
	t.files = []string{both, chain}
	t.refresh = func(ctx context.Context) error {
		if _, err := s.credential(ctx, t.name); err != nil && status.Code(err) != codes.Unavailable {
			return err // the identity may stand, and the target no more
		}
		ctx, cancel := context.WithTimeout(ctx, sourceTime)
		defer cancel()
		certificates, key, err := s.cfg.Source.X509(ctx, t.first.GetSpiffeId())
		if err != nil {
			return err
		}
		leaf, above := pem.Decode(certificates)
		if leaf == nil || leaf.Type != "CERTIFICATE" || len(key) == 0 {
			return status.Error(codes.Unavailable, "there is no X509-SVID")
		}
		if err := s.dir.write(chain, above); err != nil {
			return err
		}
		return s.dir.write(both, append(certificates[:len(certificates):len(certificates)], key...))
	}
	return s.dir.write(t.name+".certificate.json", config)
}

const (
	subjectHeader = "X-Credence-Secret"
	subjectField  = "subject_token"
)

// subject is a url source: the JWT-SVID.
type subject struct {
	s    *Surfaces
	name string
}

func (subject) header() string { return subjectHeader }

func (subject) parameters() bool { return false }

func (e subject) answer(ctx context.Context, _ url.Values) (any, *refusal) {
	r, err := e.s.token(ctx, e.name, false)
	if err != nil {
		return nil, sourceRefusal(err)
	}
	return map[string]string{subjectField: r.GetToken()}, nil
}

func (subject) refused(no *refusal) any {
	return map[string]string{"error": no.code, "error_description": no.message}
}
