package local_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
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
	address, path, secret := raw(t, clouds())
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	host, auth := "Host: "+address, "Authorization: "+secret
	if code, body := ask(t, address, "GET "+path, host, auth); code != 200 || !strings.Contains(body, "secret-key") {
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
		if code, body := ask(t, address, "GET "+path, headers...); code != 403 && code != 401 || strings.Contains(body, "secret-key") {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
	if code, _ := ask(t, address, "GET "+path+"?Authorization="+secret, host); code == 200 {
		t.Error("the secret is taken from a query")
	}
}

// There is one path, as it is spelled, and no parameter.
//
// Regression: CVE-2026-3605
// Regression: CVE-2022-2385
func TestOnePathAndNoParameter(t *testing.T) {
	address, path, secret := raw(t, clouds())
	for _, target := range []string{
		"/", "/" + path, "/." + path, "/x/.." + path, path + "/", path + "/.", path + "%20", strings.Replace(path, "a", "%61", 1) + "%2e", "//evil.example" + path,
		path + "?a=1", path + "?a=1&A=2&a=3", path + "?", path + ";a", "http://evil.example" + path, "http://" + address + path, "*", strings.ToUpper(path),
	} {
		if code, body := ask(t, address, "GET "+target, "Host: "+address, "Authorization: "+secret); code == 200 || strings.Contains(body, "secret-key") {
			t.Errorf("%s: %d %s", target, code, body)
		}
	}
}

// An error wins over what comes with it.
//
// Regression: CVE-2026-46405
func TestAnAnswerWithAnErrorGivesNothing(t *testing.T) {
	from := clouds()
	address, path, secret := raw(t, from)
	from.fail(errors.New("and a failure")) // which comes with the credential
	code, body := ask(t, address, "GET "+path, "Host: "+address, "Authorization: "+secret)
	if code == 200 || strings.Contains(body, "secret-key") || strings.Contains(body, "session") {
		t.Errorf("%d %s", code, body)
	}
}

// raw is a container endpoint.
func raw(t *testing.T, from *source) (address, path, secret string) {
	t.Helper()
	e := opened(t, from, []string{"anywhere"}).endpoint("anywhere")
	u, err := url.Parse(e.url)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host, u.Path, e.secret
}
