package aws

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/credence-id/credence/exchangers"
)

// Check implements exchangers.Checker.
func (s *RolesAnywhere) Check(q exchangers.Question) []exchangers.Finding {
	w := &exchangers.Walk{Question: q}
	return w.X509(exchangers.X509Rules{
		Cloud: "AWS", Anchors: 2, AnchorField: "cloud.trust_anchor", MaxSubject: maxTag, SubjectField: "cloud.role.trust_policy",
	}, func() bool { return s.checkPlace(w) }, func() bool { return s.checkNames(w) }, func() bool { return checkDuration(w, s.Duration) },
		func() bool { return checkSubjects(w) })
}

// checkPlace holds the ARNs and the endpoint against each other.
func (s *RolesAnywhere) checkPlace(w *exchangers.Walk) bool {
	const step = "place"
	role, err1 := parseRole(s.Role)
	anchor, err2 := parseAnywhere("trust_anchor", s.TrustAnchor, "trust-anchor")
	if err1 != nil || err2 != nil {
		return w.Fail(step, "target_role", "role", "the ARNs do not parse", "correct role and trust_anchor of the Target")
	}
	if role.account != anchor.account {
		return w.Fail(step, "role_account", "role", fmt.Sprintf("the role is of account %s, and the trust anchor of %s", role.account, anchor.account),
			"name a role of account "+anchor.account+", and one of "+role.account+" in assume_role")
	}
	if err := checkHost("endpoint", w.Target.Endpoint, "rolesanywhere", anchor.region); err != nil {
		return w.Fail(step, "endpoint_region", "endpoint", err.Error(), "leave endpoint out, or name the trust anchor's region")
	}
	return w.Done(step, "account %s, %s", anchor.account, anchor.region)
}

func (s *RolesAnywhere) checkNames(w *exchangers.Walk) bool {
	if s.SessionName != "" {
		return w.Warn("session name", "session_name_accept", "cloud.profile", "session_name is "+s.SessionName+", which a profile takes only with acceptRoleSessionName",
			"set acceptRoleSessionName of the profile, or leave session_name out")
	}
	return true
}

// checkDuration warns: a role's own bound is not known here.
func checkDuration(w *exchangers.Walk, d exchangers.Duration) bool {
	if time.Duration(d) > time.Hour {
		return w.Warn("duration", "duration_over_default", "cloud.role.max_session_duration", fmt.Sprintf("duration is %s, and a role permits 1h unless it says more", time.Duration(d)),
			"raise the role's maximum session duration, or lower duration of the Target")
	}
	return true
}

const maxTagValue = 256 // characters

var (
	tagValue       = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`) // at most maxTagValue: a count in here would take 11 MB in each agent
	sourceIdentity = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
)

// checkSubjects holds the subjects of X509-SVIDs against what Roles Anywhere
// makes of them: it wants one, its attributes become session tags and its CN
// the source identity.
func checkSubjects(w *exchangers.Walk) bool {
	const step, field = "subject", "identity.x509.subject"
	for _, p := range w.Walked() {
		change := fmt.Sprintf("set x509.subject of Identity %s to CN=%s", p.Identity, p.Identity)
		if strings.TrimSpace(p.Subject) == "" {
			return w.Fail(step, "subject_empty", field, "X509-SVIDs of "+p.Identity+" have an empty subject, and Roles Anywhere wants one", change)
		}
		cn := ""
		for _, rdn := range split(p.Subject) {
			name, value, _ := strings.Cut(rdn, "=")
			made := exchangers.Fixed(value) != value // of facts, whose values are not known here
			value = exchangers.Fixed(value)
			if strings.EqualFold(strings.TrimSpace(name), "CN") {
				if cn = value; made {
					cn += "fact"
				}
			}
			if !tagValue.MatchString(value) || utf8.RuneCountInString(value) > maxTagValue {
				return w.Fail(step, "subject_tag", field, fmt.Sprintf("%s of the subject is %q, which is no session tag: letters, digits, spaces and _.:/=+-@ are", name, exchangers.Clean(value)), change)
			}
		}
		source := "CN=" + cn
		if utf8.RuneCountInString(cn) > 61 {
			source = cn
		}
		switch {
		case cn == "":
			w.Warn(step, "subject_no_cn", field, "the subject of "+p.Identity+" has no CN: the source identity is the serial number, another each time", change)
		case !sourceIdentity.MatchString(source):
			return w.Fail(step, "subject_cn", field, fmt.Sprintf("CN is %q, which is no source identity: at most 64 letters, digits and _+=,.@- are", exchangers.Clean(cn)), change)
		case source == cn:
			w.Warn(step, "subject_cn_long", field, fmt.Sprintf("CN of %s has %d characters: with more than 61 the source identity is it alone, without CN=", p.Identity, utf8.RuneCountInString(cn)), change)
		default:
			w.Done(step, "%s has %s", p.Identity, p.Subject)
		}
	}
	return true
}

// split cuts a subject (RFC 4514) that the broker took into its attributes,
// unescaped.
func split(subject string) (all []string) {
	var b strings.Builder
	for i := 0; i < len(subject); i++ {
		switch c := subject[i]; {
		case c == '\\' && i+1 < len(subject):
			i++
			if n, ok := hexByte(subject[i:]); ok {
				b.WriteByte(n)
				i++
				continue
			}
			b.WriteByte(subject[i])
		case c == ',':
			all = append(all, b.String())
			b.Reset()
		default:
			b.WriteByte(c)
		}
	}
	return append(all, b.String())
}

func hexByte(s string) (b byte, ok bool) {
	if len(s) < 2 {
		return 0, false
	}
	n, err := fmt.Sscanf(s[:2], "%02x", &b)
	return b, n == 1 && err == nil && strings.Trim(s[:2], "0123456789abcdefABCDEF") == ""
}

// Check implements exchangers.Checker.
func (s *WebIdentity) Check(q exchangers.Question) []exchangers.Finding {
	w := &exchangers.Walk{Question: q}
	return w.JWT(exchangers.JWTRules{
		Cloud: "AWS", MinSubject: 6, MaxSubject: maxWebSubject, IssuerField: "cloud.oidc_provider.url", SubjectField: "cloud.role.trust_policy",
	}, func() bool { return s.checkPlace(w) }, func() bool { return s.checkAudience(w) }, func() bool { return checkDuration(w, s.Duration) })
}

func (s *WebIdentity) checkPlace(w *exchangers.Walk) bool {
	if err := checkHost("endpoint", w.Target.Endpoint, "sts", s.region()); err != nil {
		return w.Fail("place", "endpoint_region", "endpoint", err.Error(), "leave endpoint out, or set region to the endpoint's")
	}
	return w.Done("place", "STS in %s", s.region())
}

func (s *WebIdentity) checkAudience(w *exchangers.Walk) bool {
	ours := s.Audience()
	if !w.Audience("cloud.oidc_provider.client_ids", ours) {
		return false
	}
	if strings.Contains(ours, "iam.googleapis.com/") || strings.HasPrefix(ours, "api://AzureAD") {
		return w.Warn("audience", "audience_other_cloud", "audience", ours+" is another cloud's audience: a token for one would be good for both", "leave audience out: it is sts.amazonaws.com then")
	}
	return w.Done("audience", "%s", ours)
}
