package kubernetes

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/credence-id/credence/broker/join/bearer"
)

// legacyIssuer is that of tokens in Secrets, which never end.
const legacyIssuer = "kubernetes/serviceaccount"

// An object of the cluster.
type object struct{ name, uid string }

// A subject is what a token is bound to.
type subject struct {
	namespace string
	account   object
	pod       object // zero: it is bound to none
	node      object // zero: it names none; without a uid where the cluster had none when it made the token
}

// user is how the API server calls it.
func (s subject) user() string { return "system:serviceaccount:" + s.namespace + ":" + s.account.name }

// What Kubernetes takes for a namespace's name, for others' and for a UID: facts go
// into SPIFFE IDs.
var (
	label  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	dotted = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	uid    = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// readSubject reads the claims of a token that was verified (KEP-1205, KEP-4193).
func readSubject(t bearer.Token) (subject, error) {
	if t.Claims["iss"] == legacyIssuer {
		return subject{}, errors.New("it is of a Secret, which never ends: a projected one is wanted")
	}
	claims, ok := t.Claims["kubernetes.io"].(map[string]any)
	if !ok {
		return subject{}, errors.New("it has no claim kubernetes.io: it is not of a service account")
	}
	var s subject
	var err error
	if s.namespace, _ = claims["namespace"].(string); !label.MatchString(s.namespace) {
		return subject{}, fmt.Errorf("its namespace is %.80q", fmt.Sprint(claims["namespace"]))
	}
	if s.account, err = readObject(claims, "serviceaccount"); err != nil {
		return subject{}, err
	}
	if s.account.uid == "" {
		return subject{}, errors.New("its serviceaccount has no uid")
	}
	if t.Subject != s.user() {
		return subject{}, fmt.Errorf("its subject is %.200q, and its claims are of %s", t.Subject, s.user())
	}
	if _, bound := claims["pod"]; bound {
		if s.pod, err = readObject(claims, "pod"); err != nil {
			return subject{}, err
		}
		if s.pod.uid == "" {
			return subject{}, errors.New("its pod has no uid")
		}
	}
	if _, named := claims["node"]; named {
		s.node, err = readObject(claims, "node")
	}
	return s, err
}

// readObject reads one; its uid may be absent.
func readObject(claims map[string]any, name string) (object, error) {
	members, ok := claims[name].(map[string]any)
	if !ok {
		return object{}, fmt.Errorf("it has no %s", name)
	}
	var o object
	if o.name, _ = members["name"].(string); !dotted.MatchString(o.name) {
		return object{}, fmt.Errorf("its %s is called %.80q", name, fmt.Sprint(members["name"]))
	}
	if value, there := members["uid"]; there {
		if o.uid, _ = value.(string); !uid.MatchString(o.uid) {
			return object{}, fmt.Errorf("the uid of its %s is %.80q", name, fmt.Sprint(value))
		}
	}
	return o, nil
}
