package exchangers

// Limits are what a Target's provider bounds for all that are exchanged there:
// for warnings before it refuses. The zero Limits are unknown.
type Limits struct {
	Provider    string // for people
	SPIFFEID    int    // bytes; 0: no bound
	WantsRDN    string // what x509.subject needs, such as "CN"; "any" attribute will do; empty: nothing
	App         string // whose federated credentials name the SPIFFE IDs, one each; empty: nobody's
	Credentials int    // that an App can have
}

// Limited is implemented by Settings that know Limits.
type Limited interface{ Limits() Limits }
