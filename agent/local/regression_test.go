package local_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/api"
)

// ask sends the very bytes of a request line and headers, and returns what
// comes back.
func ask(t *testing.T, address, line string, headers ...string) (int, string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n", line, strings.Join(headers, "\r\n")); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s %q: %v", line, headers, err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

// A page in a browser, by a name that it made lead to loopback or through
// somebody's proxy, gets nothing, though it knew the secret.
//
// Regression: aws-vault #578
func TestPagesThatReachLoopbackGetNothing(t *testing.T) {
	server := endpoint(t, always(good, nil))
	address := server.Listener.Addr().String()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	host, auth := "Host: "+address, "Authorization: "+secret
	if code, body := ask(t, address, "GET /", host, auth); code != 200 || !strings.Contains(body, "secret-key") {
		t.Fatalf("the program itself: %d %s", code, body)
	}
	for name, headers := range map[string][]string{
		"a rebound name":           {"Host: rebind.evil.example:" + port, auth},
		"a name that begins so":    {"Host: 127.0.0.1.evil.example:" + port, auth},
		"no port":                  {"Host: 127.0.0.1", auth},
		"another port":             {"Host: 127.0.0.1:1", auth},
		"an IPv6 name of it":       {"Host: [::ffff:127.0.0.1]:" + port, auth},
		"localhost":                {"Host: localhost:" + port, auth},
		"an Origin":                {host, auth, "Origin: http://" + address},
		"Origin null":              {host, auth, "Origin: null"},
		"an empty Origin":          {host, auth, "Origin:"},
		"a Referer":                {host, auth, "Referer: http://" + address + "/"},
		"an empty Referer":         {host, auth, "Referer:"},
		"forwarded":                {host, auth, "X-Forwarded-For: 127.0.0.1"},
		"forwarded, without whom":  {host, auth, "X-Forwarded-For:"},
		"two secrets, one of them": {host, "Authorization: x", auth},
		"two secrets, the first":   {host, auth, "Authorization: x"},
		"the secret in a cookie":   {host, "Cookie: Authorization=" + secret},
	} {
		if code, body := ask(t, address, "GET /", headers...); code != 403 && code != 401 || strings.Contains(body, "secret-key") {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
	if code, _ := ask(t, address, "GET /?Authorization="+secret, host); code == 200 {
		t.Error("the secret is taken from a query")
	}
}

// There is one path, as it is spelled, and no parameter.
//
// Regression: CVE-2026-3605
// Regression: CVE-2022-2385
func TestOnePathAndNoParameter(t *testing.T) {
	server := endpoint(t, always(good, nil))
	address := server.Listener.Addr().String()
	for _, target := range []string{"//", "/./", "/x/..", "/%2e", "/%2e%2e/", "/%2f", "/a", "//evil.example/", "/?a=1", "/?a=1&A=2&a=3", "/?", "/;a", "http://evil.example/", "*"} {
		if code, body := ask(t, address, "GET "+target, "Host: "+address, "Authorization: "+secret); code == 200 || strings.Contains(body, "secret-key") {
			t.Errorf("%s: %d %s", target, code, body)
		}
	}
}

// An error wins over what comes with it.
//
// Regression: CVE-2026-46405
func TestAnAnswerWithAnErrorGivesNothing(t *testing.T) {
	server := endpoint(t, always(good, errors.New("and a failure")))
	code, body := ask(t, server.Listener.Addr().String(), "GET /", "Host: "+server.Listener.Addr().String(), "Authorization: "+secret)
	if code == 200 || strings.Contains(body, "secret-key") || strings.Contains(body, "session") {
		t.Errorf("%d %s", code, body)
	}
	half := &api.FetchResponse{Expires: good.GetExpires(), Credential: &api.FetchResponse_Aws{Aws: &api.AWS{SecretAccessKey: "secret-key"}}}
	server = endpoint(t, always(half, nil))
	if code, body := ask(t, server.Listener.Addr().String(), "GET /", "Host: "+server.Listener.Addr().String(), "Authorization: "+secret); code == 200 || strings.Contains(body, "secret-key") {
		t.Errorf("half a credential: %d %s", code, body)
	}
}
