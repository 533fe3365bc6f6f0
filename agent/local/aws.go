package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/exchangers/aws"
)

// The clouds of which one target is the default.
const (
	cloudAWS   = "aws"
	cloudGCP   = "gcp"
	cloudAzure = "azure"
	cloudVault = "vault"
)

// before are the variables, by cloud, by which an SDK would find other
// credentials before ours, or ours elsewhere.
var before = map[string][]string{
	cloudAWS: {
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN",
		"AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
	},
	cloudGCP: {
		"GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS", "GOOGLE_OAUTH_ACCESS_TOKEN", "GOOGLE_API_CERTIFICATE_CONFIG",
		"GOOGLE_GHA_CREDS_PATH", "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE", "CLOUDSDK_AUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
	},
	cloudAzure: {
		"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_USERNAME", "AZURE_PASSWORD",
		"AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT",
		"IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET",
	},
	cloudVault: vaultNames(),
}

// aws makes the container endpoint, and profiles beside it.
func (s *Surfaces) aws(t *target, settings json.RawMessage) error {
	if t.first.GetAws() == nil {
		return errors.New("it gave no AWS credential")
	}
	t.cloud = cloudAWS
	t.endpoint = container{s, t.name}
	tokenFile := t.name + ".container"
	if err := s.dir.write(tokenFile, []byte(t.secret)); err != nil { // without a newline: SDKs send the bytes as they are
		return err
	}
	t.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = s.server.url(t)
	t.env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = s.dir.file(tokenFile)
	region := t.first.GetAws().GetRegion()
	if region != "" && value(s.cfg.Environ, "AWS_REGION") == "" && value(s.cfg.Environ, "AWS_DEFAULT_REGION") == "" {
		t.env["AWS_REGION"] = region
	}
	var services []line
	if t.first.GetFlow() == "aws_web_identity" && t.first.GetEndpoint() != "" {
		t.env["AWS_ENDPOINT_URL_STS"] = t.first.GetEndpoint()
		services = []line{{"sts", ""}, {"  endpoint_url", t.first.GetEndpoint()}}
	}
	if command, ok := s.command(t.name, shellWord); ok {
		t.profiles = append(t.profiles, profile{t.name, services, []line{{"credential_process", command}, {"region", region}}})
	}
	if t.first.GetFlow() == "aws_web_identity" {
		return s.webIdentity(t, settings, services)
	}
	return nil
}

// webIdentity has the SDK make the exchange, from a file.
func (s *Surfaces) webIdentity(t *target, settings json.RawMessage, services []line) error {
	var w aws.WebIdentity
	if err := json.Unmarshal(settings, &w); err != nil {
		return fmt.Errorf("reading the settings: %w", err)
	}
	id, err := spiffeid.FromString(t.first.GetSpiffeId())
	if err != nil {
		return err
	}
	p, ok := w.Profile(id)
	if !ok {
		return nil
	}
	file := t.name + ".jwt"
	t.files, t.refresh = []string{file}, s.jwtFile(t, file)
	t.profiles = append(t.profiles, profile{t.name + ".web", services, []line{
		{"web_identity_token_file", s.dir.file(file)}, {"role_arn", p.Role}, {"role_session_name", p.SessionName},
		{"duration_seconds", p.Duration}, {"region", p.Region},
	}})
	if s.cfg.Web {
		delete(t.env, "AWS_CONTAINER_CREDENTIALS_FULL_URI")
		delete(t.env, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
		maps.Copy(t.env, map[string]string{
			"AWS_WEB_IDENTITY_TOKEN_FILE": s.dir.file(file), "AWS_ROLE_ARN": p.Role, "AWS_ROLE_SESSION_NAME": p.SessionName,
		})
	}
	return nil
}

// jwtFile writes a target's JWT-SVID, without a newline: some SDKs send the
// bytes as they are.
func (s *Surfaces) jwtFile(t *target, file string) func(context.Context) error {
	return func(ctx context.Context) error {
		r, err := s.token(ctx, t.name, true)
		if err != nil {
			return err
		}
		return s.dir.write(file, []byte(r.GetToken()))
	}
}

// command is Config.Command for a target, with its words quoted.
func (s *Surfaces) command(name string, quote func(string) string) (string, bool) {
	if len(s.cfg.Command) == 0 {
		return "", false
	}
	var words []string
	for _, w := range append(slices.Clone(s.cfg.Command), name) {
		words = append(words, quote(w))
	}
	return strings.Join(words, " "), true
}

// shellWord is text as one word of a shell, which AWS SDKs give the command to.
func shellWord(text string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-:,@%+="
	if text != "" && strings.Trim(text, plain) == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// container is the AWS container credential endpoint
// (AWS_CONTAINER_CREDENTIALS_FULL_URI).
type container struct {
	s    *Surfaces
	name string
}

func (container) header() string { return "Authorization" }

func (container) parameters() bool { return false }

func (c container) answer(ctx context.Context, _ url.Values) (any, *refusal) {
	r, err := c.s.credential(ctx, c.name)
	if err == nil && r.GetAws() == nil {
		err = status.Error(codes.Unavailable, "the target gives no AWS credential")
	}
	if err != nil {
		return nil, sourceRefusal(err)
	}
	out := map[string]string{
		"AccessKeyId": r.GetAws().GetAccessKeyId(), "SecretAccessKey": r.GetAws().GetSecretAccessKey(), "Token": r.GetAws().GetSessionToken(),
		"Expiration": time.Unix(r.GetExpires(), 0).UTC().Format(time.RFC3339),
	}
	if account := accountOf(r.GetAws()); account != "" {
		out["AccountId"] = account
	}
	return out, nil
}

func (container) refused(no *refusal) any {
	return map[string]string{"code": no.code, "message": no.message}
}

// accountOf is the account in arn:partition:sts::ACCOUNT:assumed-role/...
func accountOf(c *api.AWS) string {
	part := strings.SplitN(c.GetAssumedRole(), ":", 6)
	if len(part) != 6 {
		return ""
	}
	return part[4]
}

// A profile is a section of an AWS config file.
type profile struct {
	name     string
	services []line // of a section that says where services are; nil: none
	lines    []line
}

type line struct{ key, value string }

func (p profile) write(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n[profile %s]\n", p.name)
	for _, l := range p.lines {
		if l.value != "" {
			fmt.Fprintf(b, "%s = %s\n", l.key, l.value)
		}
	}
	if p.services == nil {
		return
	}
	fmt.Fprintf(b, "services = %s\n\n[services %[1]s]\n", p.name)
	for _, l := range p.services {
		fmt.Fprintf(b, "%s = %s\n", l.key, l.value)
	}
}

// awsFiles writes the config and the credentials file: copies of the
// workload's own, without what its default profile would have before the
// container endpoint, and with our profiles.
func (s *Surfaces) awsFiles() error {
	ours := map[string]bool{}
	for _, t := range s.targets {
		for _, p := range t.profiles {
			ours[p.name] = true
		}
	}
	var config bytes.Buffer
	for name, file := range map[string]string{"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"} {
		path := value(s.cfg.Environ, name)
		if path == "" {
			path = filepath.Join(home(s.cfg.Environ), ".aws", file)
		}
		text, err := readOwn(path)
		if err != nil {
			return fmt.Errorf("copying %s: %w", path, err)
		}
		kept := withoutCredentials(text, ours)
		if file == "config" {
			config.Write(kept)
			for _, t := range s.targets {
				for _, p := range t.profiles {
					p.write(&config)
				}
			}
			kept = config.Bytes()
		}
		if err := s.dir.write("aws."+file, kept); err != nil {
			return err
		}
		s.env[name] = s.dir.file("aws." + file)
	}
	return nil
}

const maxOwn = 1 << 20

// readOwn reads a file of the workload's own; without one there is nothing.
func readOwn(path string) ([]byte, error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxOwn+1))
	if err == nil && len(text) > maxOwn {
		err = fmt.Errorf("it has more than %d bytes", maxOwn)
	}
	return text, err
}

// credentialKeys are what makes a profile one with credentials.
var credentialKeys = []string{
	"aws_access_key_id", "aws_secret_access_key", "aws_session_token", "role_arn", "source_profile", "credential_source",
	"credential_process", "web_identity_token_file", "role_session_name", "external_id", "mfa_serial", "duration_seconds", "login_session",
}

// withoutCredentials is an AWS file without the sections of our profiles, and
// with nothing in the default one by which it would have credentials: SDKs
// look there before they ask the container endpoint.
func withoutCredentials(text []byte, ours map[string]bool) []byte {
	var out bytes.Buffer
	skip, byDefault, dropping := false, false, false
	for l := range bytes.Lines(text) {
		trimmed := strings.TrimSpace(string(l))
		indented := len(l) > 0 && (l[0] == ' ' || l[0] == '\t')
		if strings.HasPrefix(trimmed, "[") {
			name := sectionName(trimmed)
			skip, byDefault, dropping = ours[name], name == "default", false
		} else if byDefault && !indented {
			key, _, _ := strings.Cut(trimmed, "=")
			key = strings.ToLower(strings.TrimSpace(key))
			dropping = slices.Contains(credentialKeys, key) || strings.HasPrefix(key, "sso_")
		}
		if !skip && !dropping {
			out.Write(bytes.TrimRight(l, "\r\n"))
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

// sectionName is the profile of [name] or [profile name]; of other sections,
// such as [services name], something that is no profile's.
func sectionName(header string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(header, "["), "]")
	kind, rest, two := strings.Cut(strings.Join(strings.Fields(name), " "), " ")
	if !two {
		return kind
	}
	if kind == "profile" {
		return strings.Trim(rest, `"'`)
	}
	return ""
}
