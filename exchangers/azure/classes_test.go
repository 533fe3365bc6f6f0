package azure_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/azure"
)

// Each of Entra's codes comes to what is to be done: nothing but what it says is
// for a while is tried again.
func TestClasses(t *testing.T) {
	const c, p, th, o = exchangers.Config, exchangers.Propagation, exchangers.Throttled, exchangers.Outage
	for _, row := range []struct {
		status int
		code   int
		want   exchangers.Class
	}{
		{400, 700211, c}, {401, 700211, c}, {400, 700212, c}, {400, 700213, c}, {400, 7002131, c}, {400, 7002138, c},
		{400, 70021, p}, {401, 70025, c}, {401, 7000226, c}, {401, 700024, c}, {401, 700027, c}, {401, 7000272, p},
		{400, 5002727, c}, {400, 5002738, c}, {400, 5002730, c}, {401, 5002723, c}, {400, 50027, c}, {400, 5002741, c}, {400, 90014, c},
		{400, 501661, p}, {400, 700222, c}, {400, 700226, c}, {400, 700227, c}, {400, 700016, c}, {400, 90002, c}, {400, 900023, c},
		{401, 7000216, c}, {401, 7000218, c}, {400, 70011, c}, {400, 1002012, c}, {400, 28003, c}, {400, 500011, c}, {400, 900144, c},
		{400, 70003, c}, {400, 900561, c}, {400, 700223, c}, {400, 700238, c}, {400, 7002241, c}, {400, 700235, c}, {400, 700233, c},
		{400, 50196, th}, {400, 90033, o}, {503, 90033, o}, {429, 700211, th}, {500, 700211, o}, {504, 0, o}, {408, 0, o}, {429, 0, th}, {404, 0, c},
	} {
		body := `{"error":"e"}`
		if row.code != 0 {
			body = fmt.Sprintf(`{"error":"e","error_description":"AADSTS%d: no.","error_codes":[%d]}`, row.code, row.code)
		}
		if e := azure.Refusal(row.status, http.Header{}, []byte(body), exchangers.NewSecret("jwt")); e.Class != row.want {
			t.Errorf("%d AADSTS%d: %s, want %s", row.status, row.code, e.Class, row.want)
		}
	}
}
