package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	channelz "google.golang.org/grpc/channelz/service"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"google.golang.org/grpc"
)

// The admin port is for those who run the server: metrics, health, and a look into the process. Callers have no way to
// it. What looks into the process is answered on loopback connections only, wherever the port listens: `kubectl
// port-forward` and ssh come from there.

// adminTimeout is how long an answer of the admin port may take: a profile takes 30 seconds, if nobody says otherwise, and health that
// is watched is asked for again.
const adminTimeout = 2 * time.Minute

// maxAdminStreams is how much one connection may ask for at once.
const maxAdminStreams = 100

// newAdmin makes the admin port's server. metrics answers /metrics.
func newAdmin(metrics http.Handler, r *readiness, g *guard) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) }) // a client that left
	mux.HandleFunc("GET /readyz", r.answer)
	for path, handler := range map[string]http.HandlerFunc{
		"/debug/pprof/": pprof.Index, "/debug/pprof/cmdline": pprof.Cmdline, "/debug/pprof/profile": pprof.Profile,
		"/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
	} {
		mux.Handle(path, onLoopback(handler))
	}
	inside := grpc.NewServer()
	channelz.RegisterChannelzServiceToServer(inside)
	reflection.Register(inside)
	probes := grpc.NewServer()
	healthv1.RegisterHealthServer(probes, r.health)
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC's
	return &http.Server{
		Handler: g.recovering(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
			switch isGRPC := request.ProtoMajor == 2 && strings.HasPrefix(request.Header.Get("Content-Type"), "application/grpc"); {
			case isGRPC && strings.HasPrefix(request.URL.Path, "/"+healthv1.Health_ServiceDesc.ServiceName+"/"):
				probes.ServeHTTP(w, request)
			case isGRPC:
				onLoopback(inside).ServeHTTP(w, request)
			default:
				mux.ServeHTTP(w, request)
			}
		})),
		Protocols: protocols, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ReadTimeout: adminTimeout, WriteTimeout: adminTimeout, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxAdminStreams},
		ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
}

// onLoopback answers only who comes from this machine.
func onLoopback(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			http.Error(w, "only from this machine: use kubectl port-forward or ssh", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// serveAdmin serves the admin port around what run does: who asks during a stop is answered to its end.
func (s *Server) serveAdmin(run func() error) error {
	if s.admin == nil {
		return run()
	}
	served := make(chan error, 1)
	go func() { served <- s.admin.Serve(s.adminL) }()
	err := run()
	if closed := s.admin.Close(); closed != nil {
		err = errors.Join(err, fmt.Errorf("close the admin port: %w", closed))
	}
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve the admin port: %w", ended))
	}
	return err
}

// answer is /readyz: 200 while the process is ready and 503 otherwise, and why.
func (r *readiness) answer(w http.ResponseWriter, _ *http.Request) {
	c := r.current()
	body := struct {
		Ready    bool     `json:"ready"`
		Problems []string `json:"problems"` // why not
		Degraded []string `json:"degraded"` // what goes wrong all the same, companies whose credential Jelou refuses by their ids
	}{c.ready(), append([]string{}, c.problems()...), append([]string{}, c.degraded()...)}
	w.Header().Set("Content-Type", "application/json")
	if !body.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(body) // a client that left
}
