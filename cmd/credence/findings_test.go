package main_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A finding is a hole that another system of this kind had, and the tests that
// show ours has none.
type finding struct {
	id, lesson string
	tests      []string // package/path.TestName
}

// findings are all that touch what stands here. Each of their tests says
// "Regression: ID" in its comment: to find it from there, and to keep it.
var findings = []finding{
	// Node and workload attestation.
	{"CVE-2021-27098", "each ID that is asked for is authorized, by every call", []string{"broker/server.TestANodeGetsNothingOfAnothers", "broker.TestNodeFactsAreProven"}},
	{"SPIRE 1.14.6 aws_iid", "what is read is what was signed", []string{"broker/join/awsec2.TestSignatures"}},
	{"SPIRE azure_imds", "the signer is who signed, not who is in the bag", []string{"broker/join/awsec2.TestSignatures", "broker/join/azure.TestSigners", "broker/join/spiffe.TestHostile"}},
	{"CVE-2017-15361", "an endorsement key that anybody can compute proves nothing", []string{"broker/join/tpm.TestEndorsementKeys"}},
	{"CVE-2021-27099", "what a template renders is hostile, and never mended", []string{"broker/identity.TestTemplates", "broker/identity.FuzzTemplate"}},
	{"GHSA-59w7-v8rr-pr4p", "a template's value is one plain segment", []string{"broker/identity.TestTemplates"}},
	{"CVE-2021-44716", "headers and streams of strangers are bounded", []string{"broker/server.TestHeadersWithoutEndAreCutOff", "broker/server.TestStreamsOfAConnectionAreBounded", "federation/endpoint.TestServerIsBounded"}},
	{"CVE-2023-44487", "a stream that is taken back at once is paid for all the same", []string{"broker/server.TestRapidResetIsBounded"}},
	{"SPIRE #655", "paths of IDs are validated at every edge", []string{"broker/identity.TestParseIDVectors", "broker/identity.FuzzParseID"}},
	{"SPIRE #886", "a process number is given to others: a process is held, and looked at again", []string{"agent/caller.TestReusedPID", "agent/caller.TestExecAfterConnect", "agent/caller.TestExecBeforeAccept", "agent/caller.TestDeadBeforeAccept", "agent/workloadapi.TestAProgramThatInheritedTheSocketGetsNothing"}},
	{"SPIRE #982", "a process chooses its name, and so part of its stat", []string{"agent/caller.TestParseStartTime", "agent/caller.FuzzParseStartTime"}},
	{"SPIRE 0.12.1 descriptors", "a caller leaves no descriptor behind", []string{"agent/caller.TestManyConnectionsLeaveNothing", "agent/caller.TestDescriptorsAreReleased", "agent/caller.TestProcessClosesWithItsConnection", "agent/caller.TestSentDescriptorsAreDropped"}},
	{"SPIRE #6324", "a length is held against the right variable, at its edge", []string{"broker/identity.TestParseIDLengths", "broker/join/token.TestCheckName"}},
	{"SPIRE 1.14.2 x509pop", "work for strangers is bounded before it is done", []string{"broker/server.TestHostileChainsCostLittle", "broker/join/tpm.TestHostileChainsCostLittle", "broker/join/spiffe.TestHostile", "broker/join/azure.TestBagsCostLittle"}},
	{"SPIRE #6715", "a session taken up again passes no check: there are none", []string{"broker/server.TestNoSessionOutlivesAnEviction", "broker/server.TestAgentsListenerGivesNoTickets", "federation/endpoint.TestSessionsAreNotResumed"}},
	{"SPIRE 1.14.6 join token", "of any number who spend a token at once, one has", []string{"broker/server.TestOneTokenOf200JoinsAtOnce", "broker/server.TestATokenLetsOneNodeInOnce"}},
	{"SPIRE #6972", "reserved IDs are issued to nobody, by no call", []string{"broker/server.TestReservedIDsAreOutOfReach", "broker/identity.TestTemplates"}},
	{"SPIRE #4309", "a cached token is for these very audiences", []string{"agent.TestNoTwoQuestionsShareAToken", "agent.TestJWTSVIDsAreKept"}},
	{"SPIRE #6501", "a cached token is not served after what it stood on", []string{"agent.TestAJWTSVIDIsNotServedAfterAnErasure"}},

	// Tokens.
	{"SPIRE 1.12.3 exp", "required claims are required, as their type", []string{"agent/workloadapi.TestClaimsOfATokenAreRequired", "agent/workloadapi.TestValidateVectors"}},
	{"CVE-2024-5798", "one audience and a list of one are the same", []string{"agent/workloadapi.TestClaimsOfATokenAreRequired"}},
	{"CVE-2026-11800", "the algorithm is the key's, not the header's", []string{"agent/workloadapi.TestAlgorithmsAreTheKeys", "agent/workloadapi.TestValidateVectors", "broker/join/azure.TestTokens", "broker/join/gcp.TestHostile"}},
	{"CVE-2025-66506", "length before form", []string{"agent/workloadapi.TestBombsAreRefusedForLittle"}},
	{"CVE-2025-30204", "length before form", []string{"agent/workloadapi.TestBombsAreRefusedForLittle"}},
	{"CVE-2025-27144", "length before form", []string{"agent/workloadapi.TestBombsAreRefusedForLittle"}},
	{"CVE-2024-28180", "nothing is decompressed", []string{"agent/workloadapi.TestBombsAreRefusedForLittle"}},
	{"CVE-2026-34986", "nothing is decrypted", []string{"agent/workloadapi.TestBombsAreRefusedForLittle"}},
	{"CVE-2025-52477", "an issuer in a token leads nowhere", []string{"agent/workloadapi.TestNothingThatATokenNamesIsFetched", "broker/join/azure.TestTokens", "broker/join/gcp.TestHostile"}},
	{"CVE-2026-22772", "patterns are anchored, and no regular expressions", []string{"broker/identity.TestPatterns"}},
	{"GHSA-9gcg-w975-3rjh", "a dot is a dot", []string{"broker/identity.TestPatterns"}},
	{"CVE-2026-4282", "what is good for one end is good for no other", []string{"broker/server.TestNoEvidenceServesTwoEnds"}},

	// Issuance and the record.
	{"GHSA-7qjx-gp9h-65qj", "a new way to ask obeys the old restrictions", []string{"broker/server.TestEveryWayObeysEveryRestriction"}},
	{"CVE-2025-44005", "what is not supported is refused", []string{"broker/server.TestUnknownWaysAreRefused"}},
	{"CVE-2026-30836", "the default branch denies", []string{"broker/server.TestUnknownWaysAreRefused"}},
	{"CVE-2026-79652", "an update is validated whole", []string{"broker/server.TestAnUpdateIsHeldAgainstAllRules"}},
	{"CVE-2026-39388", "a renewal is of whoever proved itself", []string{"broker/server.TestANodeGetsNothingOfAnothers", "broker.TestRenew"}},
	{"GHSA-g892-p242-8g86", "of a request for a certificate nothing is heard", []string{"broker/server.TestOnlyAPublicKeyIsAKey"}},
	{"GHSA-8cqv-pj7f-pwpc", "a key is a key, not a certificate", []string{"broker/server.TestOnlyAPublicKeyIsAKey", "broker/authority.TestSignX509Keys"}},
	{"CVE-2024-2048", "an identity stands in a verified chain, not in a key or serial", []string{"broker/server.TestCertificatesThatAreNotOursEndTheHandshake", "federation.TestPinnedBundle"}},
	{"CVE-2026-16093", "policy reads what was verified, not what was said beside it", []string{"broker.TestNodeFactsAreProven", "broker/server.TestMalformedRequestsOfNodesAreRefused"}},
	{"CVE-2026-40264", "whoever owns one thing does not touch another's", []string{"broker/server.TestAnOwnerTouchesOnlyItsOwn", "broker/server.TestReportsAreTheNodesWord"}},
	{"Dex #4927", "the admin service is served to nobody without proof", []string{"agent/caller.TestOnlyUnixSockets", "broker/server.TestAServerIsNotMadeWithADoorOpen", "broker/server.TestAnotherUIDIsRefusedAtTheAdminSocket"}},

	// Listeners and fetches.
	{"CVE-2024-23656", "a renewed certificate comes with the same rules", []string{"broker/server.TestARenewedCertificateKeepsTheRules", "federation/endpoint.TestTLSIsMozillaIntermediate"}},
	{"CVE-2026-3605", "a path is what it is spelled", []string{"broker/server.TestPathsAreNotCleaned", "agent/local.TestOnePathAndNoParameter"}},
	{"CVE-2020-16250", "a cloud is asked what we ask, and its answer read in one form", []string{"broker/join/awsiam.TestNothingOfARequestIsTheNodesToChoose", "broker/join/awsiam.TestAnswersOfSTS"}},
	{"CVE-2022-2385", "no parameter counts twice", []string{"broker/join/awsiam.TestNothingOfARequestIsTheNodesToChoose", "broker/server.TestQueriesAreNotRead", "agent/local.TestOnePathAndNoParameter", "exchangers/sandbox.TestReadForm"}},
	{"SPIRE 1.14.2 SSRF", "the address that is dialled is what is judged", []string{"federation/fetch.TestAddresses", "federation/fetch.TestRebindingNameGainsNothing", "federation/fetch.TestSpellingsOfLoopback", "federation/fetch.TestPost"}},
	{"GHSA-fgw5-hp8f-xfhc", "configured URLs are judged too", []string{"federation/fetch.TestPrivateAddressNeedsPermission", "federation/fetch.TestRequestIsChecked"}},
	{"CVE-2026-49478", "redirects lead nowhere that the first URL may not, and are forgotten", []string{"federation/fetch.TestPost", "federation/fetch.TestRedirects", "federation/fetch.TestRedirectsAreForgotten", "exchangers.TestClientFollowsNoRedirectAndNoPlainHTTP", "agent/workloadapi.TestNothingThatATokenNamesIsFetched"}},
	{"percy #2333", "a name is not looked up twice", []string{"federation/fetch.TestRebindingNameGainsNothing"}},
	{"SPIFFE Federation §5.2", "a profile falls back to no other", []string{"federation/fetch.TestSPIFFENeverFallsBackToWeb"}},
	{"SPIFFE Federation §4", "one trust domain's keys are no other's", []string{"federation.TestSetKeepsTrustDomainsApart"}},
	{"CVE-2025-59043", "JSON from outside is bounded before it is parsed", []string{"federation.TestParseBundleBounds", "federation/fetch.TestAnswers"}},

	// Credentials on a node.
	{"aws-vault #578", "a page that reaches loopback gets nothing", []string{"agent/local.TestPagesThatReachLoopbackGetNothing", "agent/local.TestSurfacesRefuse"}},
	{"CVE-2026-46405", "an error wins over what comes with it", []string{"broker/join/spiffe.TestVerifier", "agent/local.TestAnAnswerWithAnErrorGivesNothing", "agent.TestAnExchangeThatAlsoFailsGivesNothing", "exchangers.TestACredentialWithAnErrorIsNone", "exchangers/gcp.TestATokenWithAnErrorIsNone", "exchangers/azure.TestATokenWithAnErrorIsNone", "exchangers/oauth.TestATokenWithAnErrorIsNone", "exchangers/aws.TestASessionWithAnErrorIsNone"}},
	{"CVE-2025-11621", "a session is one identity's with one target", []string{"agent.TestNoTwoTargetsShareASession", "agent.TestOneSessionForAnIdentityAndTarget", "agent.TestSessionsEnd"}},
	{"SPIRE #6732", "nothing that is secret is logged", []string{"agent.TestNoSecretLeavesItsWay", "broker/server.TestNoSecretIsToldByTheBroker"}},
	{"CVE-2025-62513", "secrets are in no log", []string{"cmd/credence.TestExecListensOnLoopbackAlone", "agent.TestNoSecretLeavesItsWay", "broker/server.TestNoSecretIsToldByTheBroker", "exchangers.TestLogsNoSecret", "exchangers.TestSecretNeverPrints", "federation.TestEachFetchIsLoggedWithoutSecrets", "broker/store.TestTokensAreHashed"}},
	{"SPIRE #6636", "no field is lost or taken for another on its way", []string{"broker/server.TestEveryFieldArrives"}},
	{"CVE-2025-9039", "a node's credential endpoint is on loopback alone", []string{"cmd/credence.TestExecListensOnLoopbackAlone"}},
	{"spiffe-helper #250", "a pid file's process is signalled only if it is the one that wrote it", []string{"agent/output.TestSignalRefuses"}},
	{"aws-spiffe-workload-helper's --force", "what else stands in a shared file is kept", []string{"agent/output/awscredentials.TestPutKeepsTheRest"}},
	{"CVE-2022-36633", "what is rendered for a shell is quoted", []string{"cmd/credence.TestLinesForAShellAreQuoted"}},
}

// TestFindings holds the index against the tests of the tree, both ways.
func TestFindings(t *testing.T) {
	says := regressions(t)
	listed := map[string]bool{}
	for _, f := range findings {
		if f.id == "" || f.lesson == "" || len(f.tests) == 0 {
			t.Errorf("finding %+v is not whole", f)
		}
		for _, test := range f.tests {
			ids, exists := says[test]
			switch {
			case !exists:
				t.Errorf("%s: there is no test %s", f.id, test)
			case !slices.Contains(ids, f.id):
				t.Errorf("%s: the comment of %s does not say: Regression: %s", f.id, test, f.id)
			case listed[f.id+" "+test]:
				t.Errorf("%s: %s is listed twice", f.id, test)
			}
			listed[f.id+" "+test] = true
		}
	}
	for test, ids := range says {
		for _, id := range ids {
			if !listed[id+" "+test] {
				t.Errorf("%s says Regression: %s, which the index does not list", test, id)
			}
		}
	}
}

// regressions are all tests of the tree, as package/path.TestName, and what
// their comments say of findings. A line elsewhere is of a test "file:line".
func regressions(t *testing.T) map[string][]string {
	t.Helper()
	all, root := map[string][]string{}, filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(file, "_test.go") {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		ofTests := map[*ast.CommentGroup]string{}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Test") && !strings.HasPrefix(fn.Name.Name, "Fuzz") {
				continue
			}
			test := path.Dir(filepath.ToSlash(name)) + "." + fn.Name.Name
			all[test] = append(all[test], []string{}...)
			if fn.Doc != nil {
				ofTests[fn.Doc] = test
			}
		}
		for _, group := range f.Comments {
			for _, c := range group.List {
				id, ok := strings.CutPrefix(c.Text, "// Regression: ")
				if !ok {
					continue
				}
				test := ofTests[group]
				if test == "" {
					test = set.Position(c.Pos()).String()
				}
				all[test] = append(all[test], id)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
