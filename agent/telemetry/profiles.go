package telemetry

import (
	"net/http"
	"net/http/pprof"
)

// profiles adds pprof, which tells what the agent runs and makes it work hard: to
// the admin socket alone, where the owner has it so.
func profiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}
