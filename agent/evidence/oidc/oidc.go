// Package oidc gets the token that proves a node to the join methods of OpenID
// issuers: from GitHub's or Azure DevOps' endpoint within a job, from AWS, from
// CircleCI's command, from a variable of the environment, from a file, or from a
// command of the user's.
//
// It trusts the environment that the agent was started with, as a job's own
// steps do. What a token is worth is the broker's to say: nothing of it is read
// here, and it is kept nowhere.
package oidc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"
)

// maxToken bounds what is taken for a token, and what an endpoint answers.
const maxToken = 16 << 10

// commandTime is how long a command may take.
const commandTime = 30 * time.Second

// Config says where a token is from. At most one of File, Env and Command is
// set; without any, it is the place that Method is known to have.
type Config struct {
	Method   string
	Audience string // asked for, where the issuer lets one choose
	File     string
	Env      string
	Command  []string

	Getenv func(string) string // nil means os.Getenv
	Client *http.Client        // for the endpoints of CI systems; nil means one of its own
}

// A place is where a method's tokens are unless a file says otherwise.
type place func(context.Context, Config) (string, error)

var places = map[string]place{
	"github":          github,
	"gitlab":          variable("CREDENCE_ID_TOKEN", "id_tokens: {CREDENCE_ID_TOKEN: {aud: %s}} in .gitlab-ci.yml makes it"),
	"circleci":        circleCI,
	"azure_devops":    azureDevOps,
	"terraform_cloud": variable("TFC_WORKLOAD_IDENTITY_TOKEN_CREDENCE", "TFC_WORKLOAD_IDENTITY_AUDIENCE_CREDENCE=%s among the workspace's variables makes it"),
	"aws_oidc":        awsRole,
	"oidc":            nil,
}

// Known says whether a method's evidence is a token of this package.
func Known(method string) bool {
	_, ok := places[method]
	return ok
}

// Check returns what is wrong with where a token is to be from, the field of
// agent.yaml first.
func (c Config) Check() error {
	if !Known(c.Method) {
		return fmt.Errorf("method: %q has no token", c.Method)
	}
	given := 0
	for _, set := range []bool{c.File != "", c.Env != "", len(c.Command) > 0} {
		if set {
			given++
		}
	}
	switch {
	case given > 1:
		return errors.New("token_file: one of token_file, token_env and token_command is wanted")
	case given == 0 && places[c.Method] == nil:
		return errors.New("token_file: one of token_file, token_env and token_command is required: nothing tells where a token of your issuer is")
	case len(c.Command) > 0 && c.Command[0] == "":
		return errors.New("token_command: the program's name is empty")
	}
	return nil
}

// Evidence gets a token anew. It blocks until the place has answered or ctx
// ends. Errors hold no part of a token.
func (c Config) Evidence(ctx context.Context) ([]byte, error) {
	if c.Getenv == nil {
		c.Getenv = os.Getenv
	}
	if c.Client == nil {
		c.Client = &http.Client{Timeout: commandTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	token, err := c.token(ctx)
	if err != nil {
		return nil, fmt.Errorf("getting a token for join method %s: %w", c.Method, err)
	}
	if token = strings.TrimSpace(token); token == "" || len(token) > maxToken {
		return nil, fmt.Errorf("getting a token for join method %s: %d bytes came: 1 to %d are taken", c.Method, len(token), maxToken)
	}
	return []byte(token), nil
}

func (c Config) token(ctx context.Context) (string, error) {
	switch {
	case c.File != "":
		return readFile(c.File)
	case c.Env != "":
		token := c.Getenv(c.Env)
		if token == "" {
			return "", fmt.Errorf("%s is not set in the environment (token_env)", c.Env)
		}
		return token, nil
	case len(c.Command) > 0:
		return run(ctx, c.Command)
	case places[c.Method] == nil:
		return "", errors.New("nothing tells where it is: set token_file, token_env or token_command")
	}
	return places[c.Method](ctx, c)
}

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxToken+2))
	return string(text), err
}

// run returns what a command prints. What it says on standard error is quoted,
// for it says why; its output is not, for it may be a token.
func run(ctx context.Context, argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var complaint bytes.Buffer
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.WaitDelay = time.Second
	command.Stderr = &limited{w: &complaint, left: 512}
	out, err := command.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := command.Start(); err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(out, maxToken+2))
	if len(text) > maxToken+1 {
		cancel() // it may go on for ever
	}
	if err = errors.Join(err, command.Wait()); err != nil {
		return "", fmt.Errorf("%s: %w: %.512q", argv[0], err, complaint.String())
	}
	return string(text), nil
}

// limited takes everything and keeps the beginning.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	n, err := l.w.Write(b[:min(len(b), l.left)])
	l.left -= n
	return len(b), err
}

func variable(name, way string) place {
	return func(_ context.Context, c Config) (string, error) {
		token := c.Getenv(name)
		if token == "" {
			return "", fmt.Errorf("%s is not set in the environment: "+way, name, c.Audience)
		}
		return token, nil
	}
}

// github asks the job's endpoint, which gives a token as often as it is asked.
func github(ctx context.Context, c Config) (string, error) {
	at, secret := c.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), c.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	if at == "" || secret == "" {
		return "", errors.New("ACTIONS_ID_TOKEN_REQUEST_URL and ACTIONS_ID_TOKEN_REQUEST_TOKEN are not set: the job needs permissions: {id-token: write}")
	}
	return ask(ctx, c.Client, http.MethodGet, at, url.Values{"audience": {c.Audience}}, secret, "value")
}

// azureDevOps asks the job's endpoint. Its audience can't be chosen.
func azureDevOps(ctx context.Context, c Config) (string, error) {
	at, secret := c.Getenv("SYSTEM_OIDCREQUESTURI"), c.Getenv("SYSTEM_ACCESSTOKEN")
	if at == "" || secret == "" {
		return "", errors.New("SYSTEM_OIDCREQUESTURI and SYSTEM_ACCESSTOKEN are not set: the step needs env: {SYSTEM_ACCESSTOKEN: $(System.AccessToken)}")
	}
	return ask(ctx, c.Client, http.MethodPost, at, url.Values{"api-version": {"7.1"}}, secret, "oidcToken")
}

// ask calls an endpoint with a bearer token, and returns a member of what it
// answers.
func ask(ctx context.Context, client *http.Client, verb, at string, more url.Values, secret, member string) (string, error) {
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", errors.New("the endpoint that the environment names is no https URL")
	}
	query := u.Query()
	for name, values := range more {
		query[name] = values
	}
	u.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, verb, u.String(), http.NoBody)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+secret)
	request.Header.Set("Accept", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("asking %s: %w", u.Host, errors.Unwrap(err)) // without the URL, which may hold what is secret
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("asking %s: it answers with status %d", u.Host, answer.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, 2*maxToken))
	if err != nil {
		return "", fmt.Errorf("asking %s: %w", u.Host, err)
	}
	var members map[string]json.RawMessage
	var token string
	if json.Unmarshal(text, &members) != nil || json.Unmarshal(members[member], &token) != nil {
		return "", fmt.Errorf("asking %s: its answer has no %s", u.Host, member)
	}
	return token, nil
}

// circleCI has its own command make a token: those in the environment have an
// audience that can't be chosen.
func circleCI(ctx context.Context, c Config) (string, error) {
	claims, err := json.Marshal(map[string]string{"aud": c.Audience})
	if err != nil {
		return "", err
	}
	return run(ctx, []string{"circleci", "run", "oidc", "get", "--claims", string(claims)})
}
