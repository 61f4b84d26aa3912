package service_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	channelzv1 "google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

func (f *facade) get(url string) (int, string) {
	f.Helper()
	answer, err := http.Get(url)
	f.must(err)
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	f.must(err)
	return answer.StatusCode, string(data)
}

// readyz is what the admin port says.
type readyz struct {
	Ready              bool
	Problems, Degraded []string
}

// awaitReady waits until /readyz says what is wanted.
func (f *facade) awaitReady(want func(readyz) bool) readyz {
	f.Helper()
	var got readyz
	f.eventually(func() bool {
		code, body := f.get(f.admin + "/readyz")
		got = readyz{}
		f.must(json.Unmarshal([]byte(body), &got))
		if got.Ready != (code == http.StatusOK) {
			f.Errorf("/readyz answers %d and %s", code, body)
		}
		return want(got)
	})
	return got
}

func (f *facade) health(service string) healthv1.HealthCheckResponse_ServingStatus {
	f.Helper()
	answer, err := healthv1.NewHealthClient(f.conn).Check(f.Context(), &healthv1.HealthCheckRequest{Service: service})
	f.must(err)
	return answer.Status
}

const (
	isServing  = healthv1.HealthCheckResponse_SERVING
	notServing = healthv1.HealthCheckResponse_NOT_SERVING
)

// checkHealth compares what gRPC's health says under each name.
func (f *facade) checkHealth(want map[string]healthv1.HealthCheckResponse_ServingStatus) {
	f.Helper()
	for name, status := range want {
		if got := f.health(name); got != status {
			f.Errorf("health of %q: %v, want %v", name, got, status)
		}
	}
}

// TestAdminPort: the admin port has it all, and the public ports nothing of it.
func TestAdminPort(t *testing.T) {
	f := newFacade(t, nil)
	f.awaitReady(func(r readyz) bool { return r.Ready })
	for path, piece := range map[string]string{
		"/metrics": "jelou_build_info", "/livez": "ok", "/readyz": `"ready":true`,
		"/debug/pprof/": "goroutine", "/debug/pprof/cmdline": "service.test", "/debug/pprof/goroutine?debug=1": "goroutine profile",
	} {
		if code, body := f.get(f.admin + path); code != http.StatusOK || !strings.Contains(body, piece) {
			t.Errorf("%s: %d %.200s", path, code, body)
		}
		if code, _ := f.get(f.rest + path); code != http.StatusNotFound {
			t.Errorf("REST answers %d to %s", code, path)
		}
	}
	admin, err := grpc.NewClient(strings.TrimPrefix(f.admin, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	f.must(err)
	defer admin.Close()
	servers, err := channelzv1.NewChannelzClient(admin).GetServers(t.Context(), &channelzv1.GetServersRequest{})
	if err != nil || len(servers.Server) == 0 {
		t.Errorf("channelz: %v %v", servers, err)
	}
	if answer, err := healthv1.NewHealthClient(admin).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || answer.Status != isServing {
		t.Errorf("health on the admin port: %v %v", answer, err)
	}
	if _, err := channelzv1.NewChannelzClient(f.conn).GetServers(t.Context(), &channelzv1.GetServersRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("channelz on the public port: %v", err)
	}
}

// TestHealthOfCredential: a credential that Jelou refuses shows, and takes nothing away.
func TestHealthOfCredential(t *testing.T) {
	f := newFacade(t, func(s *setup) { s.secret = "other-secret" })
	f.awaitReady(func(r readyz) bool { return r.Ready })
	f.checkHealth(map[string]healthv1.HealthCheckResponse_ServingStatus{"": isServing, "readiness": isServing, "liveness": isServing, "company/sandbox": isServing})
	if _, _, err := f.sendText(transports[0], textTo(openUser, "hola")); reasonOf(err) != "JELOU_UNAUTHORIZED" {
		t.Fatal(err)
	}
	got := f.awaitReady(func(r readyz) bool { return len(r.Degraded) > 0 })
	if !got.Ready || got.Degraded[0] != "sandbox" {
		t.Errorf("%+v", got)
	}
	f.checkHealth(map[string]healthv1.HealthCheckResponse_ServingStatus{"": isServing, "readiness": isServing, "company/sandbox": notServing})
	if metrics := f.scrape(); !strings.Contains(metrics, `jelou_credential_accepted{company="sandbox"} 0`) {
		t.Error("no metric says so")
	}
}

// TestHealthOfLedger: a database that is away, and one that is held, make the process not ready until they are mended.
func TestHealthOfLedger(t *testing.T) {
	address := ledgertest.Postgres(t)
	f := newFacade(t, func(s *setup) { s.ledger.URL = address })
	f.awaitReady(func(r readyz) bool { return r.Ready })
	if metrics := f.scrape(); !strings.Contains(metrics, "jelou_ledger_durable_failover 0") {
		t.Error("no metric says that a failover may lose something")
	}
	allow := connections(t, address)
	allow(false)
	got := f.awaitReady(func(r readyz) bool { return !r.Ready })
	if len(got.Problems) != 1 || !strings.Contains(got.Problems[0], "database does not answer") {
		t.Errorf("%+v", got)
	}
	f.checkHealth(map[string]healthv1.HealthCheckResponse_ServingStatus{"": notServing, "readiness": notServing, "liveness": isServing})
	if code, body := f.get(f.rest + "/healthz"); code != http.StatusServiceUnavailable {
		t.Errorf("/healthz: %d %s", code, body)
	}
	if metrics := f.scrape(); !strings.Contains(metrics, "jelou_ledger_up 0") || !strings.Contains(metrics, "jelou_ready 0") {
		t.Error("no metric says so")
	}
	allow(true)
	f.awaitReady(func(r readyz) bool { return r.Ready })
	f.checkHealth(map[string]healthv1.HealthCheckResponse_ServingStatus{"": isServing, "readiness": isServing})
}

// TestHealthOfHeldLedger: a ledger that is a copy makes the process not ready until it is released.
func TestHealthOfHeldLedger(t *testing.T) {
	original := filepath.Join(t.TempDir(), "ledger.db")
	l, err := ledger.Open(t.Context(), ledger.Config{Path: original, Replica: "before"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	restored := filepath.Join(t.TempDir(), "ledger.db")
	if err := os.WriteFile(restored, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFacade(t, func(s *setup) { s.ledger.Path = restored })
	got := f.awaitReady(func(r readyz) bool { return len(r.Problems) > 0 && r.Problems[0] != "the server starts" })
	if got.Ready || !strings.Contains(got.Problems[0], "held until `jelou-facade ledger release`") {
		t.Errorf("%+v", got)
	}
	if metrics := f.scrape(); !strings.Contains(metrics, `jelou_ledger_held{cause="moved"} 1`) {
		t.Error("no metric says so")
	}
	f.must(f.ledger.Release(t.Context(), ledger.Unknown))
	f.awaitReady(func(r readyz) bool { return r.Ready })
}

// TestHealthOfStop: while it stops the process lives, and is not ready.
func TestHealthOfStop(t *testing.T) {
	f := newFacade(t, nil)
	f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultHang, Times: 1}))
	answered := make(chan error, 1)
	go func() {
		_, _, err := f.sendText(transports[0], textTo(openUser, "hola"))
		answered <- err
	}()
	f.eventually(func() bool { return f.sim.Report().Arrived > 0 })
	f.stop()
	got := f.awaitReady(func(r readyz) bool { return !r.Ready })
	if len(got.Problems) != 1 || got.Problems[0] != "the server stops" {
		t.Errorf("%+v", got)
	}
	if code, _ := f.get(f.admin + "/livez"); code != http.StatusOK {
		t.Errorf("/livez: %d", code)
	}
	<-answered
}
