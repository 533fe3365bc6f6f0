package azure_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func keyOf(t testing.TB, key crypto.Signer) *rsa.PrivateKey {
	t.Helper()
	k, ok := key.(*rsa.PrivateKey)
	if !ok {
		t.Fatalf("%T", key)
	}
	return k
}

func manyNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("a%d.metadata.azure.com", i))
	}
	return names
}

func attributes(content []byte) []byte {
	sum := sha256.Sum256(content)
	return append(tlv(0x30, oid(9, 3), tlv(0x31, oid(7, 1))), tlv(0x30, oid(9, 4), tlv(0x31, tlv(4, sum[:])))...)
}

// A resource ID is read strictly: one way to name a machine, and nothing that another
// reader might take for another.
func TestResources(t *testing.T) {
	w := newWorld(t)
	const head = "/subscriptions/" + subscription
	rows := map[string]string{
		"nothing":                  "",
		"a name":                   "web-1",
		"no slash first":           vm[1:],
		"two slashes first":        "/" + vm,
		"a slash last":             vm + "/",
		"two slashes within":       strings.Replace(vm, "/providers/", "//providers/", 1),
		"a host":                   "https://management.azure.com" + vm,
		"a query":                  vm + "?x=/virtualMachines/web-2",
		"a fragment":               vm + "#x",
		"a space":                  vm + " ",
		"a line":                   vm + "\n",
		"a zero":                   vm + "\x00",
		"an escape":                strings.Replace(vm, "Shop", "Shop%2f..", 1),
		"a backslash":              strings.Replace(vm, "/Shop", `/Shop\x`, 1),
		"dots for a group":         strings.Replace(vm, "Shop", "..", 1),
		"a dot last in a group":    strings.Replace(vm, "Shop", "Shop.", 1),
		"dots for a name":          strings.Replace(vm, "Web-1", "..", 1),
		"a dot first in a name":    strings.Replace(vm, "Web-1", ".web", 1),
		"dots within":              strings.Replace(vm, "/providers/", "/../providers/", 1),
		"no group":                 head + "/providers/Microsoft.Compute/virtualMachines/web-1",
		"an empty group":           strings.Replace(vm, "Shop", "", 1),
		"an empty name":            strings.Replace(vm, "Web-1", "", 1),
		"no subscription":          strings.Replace(vm, subscription, "", 1),
		"a subscription's name":    strings.Replace(vm, subscription, "prod", 1),
		"a subscription in braces": strings.Replace(vm, subscription, "{"+subscription+"}", 1),
		"another word":             strings.Replace(vm, "resourcegroups", "resourcegroup", 1),
		"another provider":         strings.Replace(vm, "Microsoft.Compute", "Evil.Compute", 1),
		"another provider's":       strings.Replace(vm, "Microsoft.Compute/", "Microsoft.Compute.evil/", 1),
		"another kind":             strings.Replace(vm, "virtualMachines", "disks", 1),
		"a kind's prefix":          strings.Replace(vm, "virtualMachines", "virtualMachinesX", 1),
		"an extension":             vm + "/extensions/x",
		"a machine in a machine":   vm + "/virtualMachines/web-2",
		"a machine of an identity": userAssigned + "/virtualMachines/web-2",
		"two providers":            vm + "/providers/Microsoft.Compute/virtualMachines/web-2",
		"a set's part":             scaleSet + "/networkInterfaces/3",
		"a set's empty machine":    scaleSet + "/virtualMachines/",
		"a set's machine's part":   scaleSet + "/virtualMachines/3/extensions/x",
		"a Kelvin sign":            strings.Replace(vm, "Web-1", "\u212aube", 1), // lower case is a k
		"a dotless i":              strings.Replace(vm, "virtual", "v\u0130rtual", 1),
		"full width":               strings.Replace(vm, "Web", "Ｗeb", 1),
		"Cyrillic":                 strings.Replace(vm, "Web", "Wеb", 1),
		"a long name":              vm + strings.Repeat("a", 129),
		"a long ID":                strings.Replace(vm, "Shop", strings.Repeat("a", 2000), 1),
	}
	for name, id := range rows {
		w.identity = claims(map[string]any{"xms_mirid": id})
		if proof, err := w.join(); !errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
			t.Errorf("%s: %v, %v", name, proof, err)
		}
		w.identity = claims(map[string]any{"xms_mirid": userAssigned, "xms_az_rid": id})
		if proof, err := w.join(); !errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
			t.Errorf("%s, where it was made: %v, %v", name, proof, err)
		}
	}
}

// Whatever a resource ID is, the facts of it are one segment each.
func FuzzResource(f *testing.F) {
	for _, id := range []string{vm, scaleSet, scaleSet + "/virtualMachines/3", userAssigned, "/subscriptions//resourcegroups/../providers/x"} {
		f.Add(id)
	}
	w := newWorld(f)
	w.settings = "{require: token, tenants: [" + tenant + "], audience: '" + audience + "'}"
	m := w.method()
	f.Fuzz(func(t *testing.T, id string) {
		shown, err := json.Marshal(map[string]string{"token": sign(t, claims(map[string]any{"xms_mirid": id}))})
		if err != nil {
			t.Fatal(err)
		}
		proof, err := m.Join(t.Context(), shown, nil)
		if err != nil {
			return
		}
		for name, values := range proof.Facts.All() {
			for _, v := range values {
				if v == "" || v == "." || v == ".." || v != strings.ToLower(v) || strings.ContainsAny(v, "/\\%?# \x00") {
					t.Errorf("%s of %q: %q", name, id, v)
				}
			}
		}
	})
}

// What nobody signed is nobody's document.
func FuzzDocument(f *testing.F) {
	w := newWorld(f)
	rogue := newAuthority(f)
	by := signer{issuertest.RSA(), rogue.signer(f, issuertest.RSA())}
	f.Add(message{by: by, content: content("1234567890", nil)}.der(f))
	f.Add(message{by: by, content: content("1234567890", nil), attributes: attributes(content("1234567890", nil))}.der(f))
	w.settings = "{require: attested}"
	m := w.method()
	f.Fuzz(func(t *testing.T, der []byte) {
		_, err := m.Join(join.WithKey(t.Context(), w.key), []byte("{}"), func(context.Context, []byte) ([]byte, error) { return der, nil })
		if !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%v", err)
		}
	})
}
