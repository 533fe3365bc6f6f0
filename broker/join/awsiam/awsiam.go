// Package awsiam is the join method of machines that have credentials of AWS: the
// role of an EC2 instance, a task or a function, or a user's keys.
//
// The node's evidence is one byte, this form's version. Then it signs a request to
// STS, GetCallerIdentity by POST, over a fresh challenge and our trust domain, each
// a header of its own, and hands it over instead of sending it. The broker sends it,
// to an endpoint out of a list that no request can add to, and believes what STS
// answers: whose credentials signed. Of what the node handed over only the date, the
// signature and the session's token travel on, each checked; all else the broker
// writes itself, so no header, parameter or encoding is the node's to choose.
//
// Trusted are AWS (its endpoint by a certificate of the web's CAs), and whoever may
// use the credentials or assume the role. Replay here: the challenge is signed, and
// is good for one join. Elsewhere: the request tells whose it is and nothing else,
// for a quarter of an hour; but a system that takes such requests without a signed
// mark of its own (Vault without iam_server_id_header_value) would take this one
// too, so it is kept and logged nowhere.
//
// A node of an EC2 instance, whose role's session is named after it, is that account,
// role and instance, and banned alone. Any other session's name is chosen by who
// assumes the role: sessions are nodes of their own, and are banned with their whole
// role. Who may assume an instance's role by other means than EC2 can name a session
// after any instance: node.aws_iam.instance_id is as good as the role's trust policy,
// which should name ec2.amazonaws.com alone, else say ban_by: role. All machines
// that have the keys of one user are one node. A node comes back by itself.
package awsiam

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// Method is the method's name, and its facts are node.aws_iam.*.
const Method = "aws_iam"

const prefix = "node." + Method

// version is what evidence is: the form of the request that follows.
const version = 1

// What ban_by may say.
const (
	banInstance = "instance"
	banRole     = "role"
)

// A Post sends a body, to a public address alone and following no redirect, and
// returns the answer of any status.
type Post func(ctx context.Context, url string, header http.Header, body []byte) (status int, contentType string, answer []byte, err error)

// Config is the wiring of a method. All fields are required.
type Config struct {
	Settings    *Settings
	TrustDomain string // that a request must be signed for
	Post        Post
	Now         func() time.Time
}

type method struct{ cfg Config }

// New returns the method of a rule.
func New(cfg Config) (join.Method, error) {
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	if cfg.TrustDomain == "" {
		return nil, errors.New("joining by aws_iam: a trust domain is required")
	}
	return &method{cfg}, nil
}

// Join has the node sign a request, and asks STS whose the signature is.
func (m *method) Join(ctx context.Context, evidence []byte, ask join.Challenge) (join.Proof, error) {
	if !bytes.Equal(evidence, []byte{version}) {
		return join.Proof{}, fmt.Errorf("%w: evidence of aws_iam is the one byte %d", join.ErrEvidence, version)
	}
	challenge := make([]byte, 32)
	rand.Read(challenge) // never fails: crypto/rand ends the program instead
	answer, err := ask(ctx, challenge)
	if err != nil {
		return join.Proof{}, err
	}
	signed, err := m.parse(answer, challenge, m.cfg.Now())
	if err != nil {
		return join.Proof{}, fmt.Errorf("%w: the signed request: %w", join.ErrEvidence, err)
	}
	who, err := m.whose(ctx, signed, challenge)
	if err != nil {
		return join.Proof{}, err
	}
	return m.proof(who)
}

// whose asks STS who signed. It takes a signature or refuses it with status 403;
// with any other, 400 (which throttling is too) among them, nothing is known.
func (m *method) whose(ctx context.Context, signed request, challenge []byte) (caller, error) {
	status, kind, text, err := m.cfg.Post(ctx, signed.url(), signed.header(m.cfg, challenge), []byte(body))
	switch {
	case err != nil:
		return caller{}, fmt.Errorf("asking STS who signed: %w", err)
	case status == http.StatusForbidden:
		return caller{}, fmt.Errorf("%w: %s refuses the signature", join.ErrEvidence, signed.host)
	case status != http.StatusOK:
		return caller{}, fmt.Errorf("asking STS who signed: %s answers with status %d", signed.host, status)
	}
	who, err := readAnswer(kind, text)
	if err != nil {
		return caller{}, fmt.Errorf("reading the answer of %s: %w", signed.host, err)
	}
	if err := who.read(); err != nil {
		return caller{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	if m.cfg.Settings.Endpoint == "" && who.partition != partitionOf(signed.region) {
		return caller{}, fmt.Errorf("%w: an endpoint of %s knows it as of partition %s", join.ErrEvidence, signed.region, who.partition)
	}
	return who, nil
}

// proof is what being that caller proves.
func (m *method) proof(who caller) (join.Proof, error) {
	facts := map[string][]string{}
	for name, value := range map[string]string{
		"account": who.account, "arn": who.arn, "user_id": who.userID, "partition": who.partition,
		"user": who.user, "role": who.role, "role_session": who.session, "instance_id": who.instance(),
	} {
		if value != "" {
			facts[prefix+"."+name] = []string{value}
		}
	}
	var p join.Proof
	key := []string{who.partition, who.account}
	switch {
	case who.user != "":
		key, p.Name = append(key, "user", who.user), plain(who.user)
	case who.instance() != "" && m.cfg.Settings.BanBy != banRole:
		key, p.Name = append(key, "role", who.role, who.session), who.session
	default:
		key, p.Name, p.Instance = append(key, "role", who.role), plain(who.session), who.session
	}
	p.DurableKey = join.Durable(key...)
	var err error
	p.Facts, err = identity.NewFacts(prefix, facts)
	return p, err
}

// plain is what people call a node, as far as a name can hold it.
func plain(name string) string {
	text := strings.Map(func(r rune) rune {
		if strings.ContainsRune("+=,@", r) {
			return '-'
		}
		return r
	}, name)
	return text[:min(len(text), 63)]
}
