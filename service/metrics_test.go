package service_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/version"
)

// series are the names of all time series, with their labels and without their values.
func (f *facade) series() map[string]bool {
	f.Helper()
	all := map[string]bool{}
	for line := range strings.Lines(f.scrape()) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && !strings.HasPrefix(line, "#") {
			all[line[:i]] = true
		}
	}
	return all
}

// TestMetricsOfCalls: every call is measured with its method, transport and code, and its reason when it failed.
func TestMetricsOfCalls(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		if _, _, err := f.sendText(tr, textTo(openUser, "hola")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.sendText(tr, textTo("", "hola")); err == nil {
			t.Fatal("a send to nobody")
		}
		metrics := f.scrape()
		over := strings.ToLower(tr.name)
		for _, want := range []string{
			`rpc_server_call_duration_seconds_count{rpc_method="jelou.facade.v1.MessageService/SendMessage",rpc_response_status_code="OK",rpc_system_name="grpc",transport="` + over + `"} 1`,
			`rpc_server_call_duration_seconds_count{rpc_method="jelou.facade.v1.MessageService/SendMessage",rpc_response_status_code="INVALID_ARGUMENT",rpc_system_name="grpc",transport="` + over + `"} 1`,
			`jelou_call_errors_total{caller="anonymous",reason="INVALID_FIELD"} 1`,
			`jelou_attempt_duration_seconds_count{company="sandbox",outcome="sent"} 1`,
			`jelou_attempts_total{company="sandbox",outcome="sent"} 1`,
			`jelou_ledger_transaction_duration_seconds_count{operation="add",result="ok"} 1`,
			`jelou_window_worst_requests{company="sandbox"} 1`,
			`jelou_claims_total{result="send"} 1`,
			`jelou_company_paused{company="sandbox",reason="throttled"} 0`,
			`jelou_credential_accepted{company="sandbox"} 1`,
			`jelou_ledger_up 1`, `jelou_ledger_durable_failover 1`,
			fmt.Sprintf(`jelou_build_info{commit=%q,go=%q,version=%q} 1`, version.Read().Commit, version.Read().Go, version.Read().Version),
		} {
			if !strings.Contains(metrics, "\n"+want+"\n") {
				t.Errorf("no %s", want)
			}
		}
		if t.Failed() {
			for line := range strings.Lines(metrics) {
				if strings.HasPrefix(line, "jelou") || strings.HasPrefix(line, "rpc") {
					t.Log(strings.TrimSpace(line))
				}
			}
		}
	})
}

// TestCountsBeginAtZero: what the alert rules take increases of is told before it happens, also for callers and companies that come
// with a new configuration. A series that is born at 1 has not increased.
func TestCountsBeginAtZero(t *testing.T) {
	f := newFacade(t, nil)
	check := func(companies, callers []string) {
		t.Helper()
		told := f.scrape()
		want := []string{`jelou_ghost_sends_total 0`, `jelou_audit_lost_total 0`}
		for _, reason := range caller.Reasons {
			want = append(want, fmt.Sprintf(`jelou_credentials_refused_total{reason=%q} 0`, reason))
		}
		for _, name := range companies {
			want = append(want, fmt.Sprintf(`jelou_window_exceeded_total{company=%q} 0`, name))
			for _, outcome := range []string{"sent", "refused", "throttled", "unreachable", "unknown", "unauthorized", "misconfigured"} {
				want = append(want, fmt.Sprintf(`jelou_attempts_total{company=%q,outcome=%q} 0`, name, outcome))
			}
		}
		for _, name := range callers {
			want = append(want, fmt.Sprintf(`jelou_call_errors_total{caller=%q,reason="INTERNAL"} 0`, name))
		}
		for _, line := range want {
			if !strings.Contains(told, "\n"+line+"\n") {
				t.Errorf("no %s", line)
			}
		}
	}
	check([]string{"sandbox"}, []string{"anonymous", "none"})

	rival := *f.settings.Bots["demo"]
	var err error
	rival.Name = "rival"
	rival.ID, err = f.ledger.Company(t.Context(), rival.Name)
	f.must(err)
	f.settings.Bots = map[string]*dispatch.Company{"demo": f.settings.Bots["demo"], "rival-bot": &rival}
	f.setCallers(&configv1.Caller{Name: "orders", Companies: []string{"*"}})
	check([]string{"sandbox", "rival"}, []string{"orders", "none"})
}

var label = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)

// closed are the values that a label may have.
func (f *facade) closed() map[string]func(value string) bool {
	among := func(values ...string) func(string) bool {
		return func(value string) bool { return slices.Contains(values, value) }
	}
	methods := map[string]bool{}
	protoregistry.GlobalFiles.RangeFilesByPackage("jelou.facade.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			for k := range file.Services().Get(i).Methods().Len() {
				methods[string(file.Services().Get(i).FullName())+"/"+string(file.Services().Get(i).Methods().Get(k).Name())] = true
			}
		}
		return true
	})
	number := func(value string) bool { _, err := strconv.ParseFloat(value, 64); return err == nil }
	return map[string]func(string) bool{
		"rpc_method": func(value string) bool { return methods[value] || value == "_OTHER" }, "rpc_system_name": among("grpc"), "transport": among("grpc", "rest"),
		"rpc_response_status_code": func(value string) bool { var c codes.Code; return c.UnmarshalJSON([]byte(`"`+value+`"`)) == nil },
		"http_request_method":      among("GET", "POST", "HEAD", "OPTIONS", "_OTHER"), "http_response_status_code": number,
		"caller": among("anonymous", "other", "none"), "company": among("sandbox"), "lane": among("urgent", "normal", "bulk"), "state": among("waiting", "paused", "scheduled"),
		"reason": func(value string) bool {
			_, known := facadev1.ErrorReason_value[value]
			return known || slices.Contains(caller.Reasons, caller.Reason(value)) ||
				slices.Contains([]string{"throttled", "credential_rejected", "misconfigured", "held"}, value)
		},
		"outcome":   among("sent", "none", "refused", "throttled", "unreachable", "unknown", "unauthorized", "misconfigured"),
		"operation": among("add", "bulk_add", "change", "claim"), "result": among("ok", "error", "send", "early", "busy", "empty"),
		"age": among("0s", "1h", "1d", "7d"), "cause": among("moved", "rewound"), "quantile": number, "le": number,
		"version": among(version.Read().Version), "commit": among(version.Read().Commit), "go": among(version.Read().Go),
	}
}

// errorLabel matches what may differ between two runs of the same calls on a machine that is busy.
var errorLabel = regexp.MustCompile(`(rpc_response_status_code|http_response_status_code|reason|outcome|result)="[^"]*"`)

// TestSeriesAreBounded: whatever callers and Jelou do, no series comes up whose labels are of their making.
func TestSeriesAreBounded(t *testing.T) {
	f := newFacade(t, nil)
	closed := f.closed()
	kinds := func() map[string]bool {
		all := map[string]bool{}
		for name := range f.series() {
			if !strings.HasPrefix(name, "jelou_") && !strings.HasPrefix(name, "rpc_") && !strings.HasPrefix(name, "http_") {
				continue // of the Go runtime, and target_info
			}
			for _, pair := range label.FindAllStringSubmatch(name, -1) {
				if allowed := closed[pair[1]]; allowed == nil || !allowed(pair[2]) {
					t.Errorf("%s=%q is of no closed set: %s", pair[1], pair[2], name)
				}
			}
			if !strings.HasPrefix(name, "jelou_queue_") { // those come with time: see TestMetricsOfQueues
				all[errorLabel.ReplaceAllString(name, "$1")] = true
			}
		}
		return all
	}
	f.drive(0)
	before := kinds()
	for round := range 2 {
		f.drive(1 + round)
	}
	for name := range kinds() {
		if !before[name] {
			t.Errorf("more of the same calls made the series %s", name)
		}
	}
	if n := len(f.series()); n > 1500 {
		t.Errorf("%d series", n)
	}
}

// drive calls in every way that there is, with bots, users, ids, paths and texts that no other round has.
func (f *facade) drive(round int) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), time.Minute)
	defer cancel()
	var calls sync.WaitGroup
	for _, tr := range transports {
		for i := range 8 {
			calls.Go(func() {
				name := fmt.Sprintf("r%d-%s-%d", round, tr.name, i)
				one := textTo(openUser, "hola "+name)
				one.RequestId = name
				elsewhere := textTo(openUser, "hola "+name)
				elsewhere.BotId = "bot-" + name
				queued := textTo(openUser, "hola otra vez "+name)
				queued.Mode, queued.Options = facadev1.SendOptions_QUEUE, &facadev1.SendOptions{Lane: facadev1.SendOptions_Lane(1 + i%3), Labels: map[string]string{"label": name}}
				for _, r := range []*facadev1.SendMessageRequest{one, one, elsewhere, queued, textTo("", name)} {
					_, _, _ = f.sendText(tr, r)
				}
				_, _ = tr.call(ctx, f, "SendService/GetSend", &facadev1.GetSendRequest{SendId: "s" + name}, &facadev1.GetSendResponse{})
				_, _ = tr.call(ctx, f, "BatchService/GetBatch", &facadev1.GetBatchRequest{BatchId: "b" + name}, &facadev1.GetBatchResponse{})
				_ = f.conn.Invoke(ctx, "/jelou.facade.v1.MessageService/"+name, one, &facadev1.SendMessageResponse{})
				for _, method := range []string{http.MethodGet, http.MethodPost, "M" + strings.ToUpper(name)} {
					r, err := http.NewRequestWithContext(ctx, method, f.rest+"/v1/"+name+"?q="+name, strings.NewReader(name))
					f.must(err)
					r.Header.Set("X-Request-Id", name)
					answer, err := http.DefaultClient.Do(r)
					f.must(err)
					answer.Body.Close()
				}
			})
		}
	}
	calls.Wait()
	for _, fault := range []jelousim.FaultKind{jelousim.FaultThrottle, jelousim.FaultReset, jelousim.FaultServerError, jelousim.FaultInvalidMedia, jelousim.FaultFailedIn200} {
		for _, tr := range transports {
			f.must(f.sim.SetFaults(jelousim.Fault{Kind: fault, Times: 1}))
			_, _, _ = f.sendText(tr, textTo(openUser, fmt.Sprintf("hola %d %s %s", round, fault, tr.name)))
		}
	}
	// All that waits is gone, so that every round ends with the same states.
	f.eventually(func() bool {
		n, err := f.ledger.Totals(f.Context())
		return err == nil && n.Waiting == 0
	})
}

// TestMetricsOfQueues: what waits is told by company, lane and caller; callers that are not configured are told together.
func TestMetricsOfQueues(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := ledger.Open(t.Context(), ledger.Config{Path: path, Replica: "before"})
	if err != nil {
		t.Fatal(err)
	}
	company, err := l.Company(t.Context(), "sandbox")
	if err != nil {
		t.Fatal(err)
	}
	send := func(caller string, lane ledger.Lane, due time.Time) ledger.NewSend {
		return ledger.NewSend{Company: company, Lane: lane, Caller: caller, Bot: "demo", Recipient: "593991000000", Kind: "text", DueAt: due.UnixMicro()}
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	var sends []ledger.NewSend
	for i := range 20 {
		sends = append(sends, send(fmt.Sprintf("stranger-%d", i), ledger.Bulk, tomorrow))
	}
	if _, err := l.Add(t.Context(), append(sends, send("anonymous", ledger.Urgent, tomorrow))); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f := newFacade(t, func(s *setup) { s.ledger.Path = path })
	var got []string
	f.eventually(func() bool {
		got = nil
		for line := range strings.Lines(f.scrape()) {
			if strings.HasPrefix(line, "jelou_queue_") {
				got = append(got, strings.TrimSpace(line))
			}
		}
		return len(got) > 0
	})
	want := []string{
		`jelou_queue_oldest_seconds{caller="anonymous",company="sandbox",lane="urgent"} 0`,
		`jelou_queue_oldest_seconds{caller="other",company="sandbox",lane="bulk"} 0`,
		`jelou_queue_sends{caller="anonymous",company="sandbox",lane="urgent",state="paused"} 0`,
		`jelou_queue_sends{caller="anonymous",company="sandbox",lane="urgent",state="scheduled"} 1`,
		`jelou_queue_sends{caller="anonymous",company="sandbox",lane="urgent",state="waiting"} 0`,
		`jelou_queue_sends{caller="other",company="sandbox",lane="bulk",state="paused"} 0`,
		`jelou_queue_sends{caller="other",company="sandbox",lane="bulk",state="scheduled"} 20`,
		`jelou_queue_sends{caller="other",company="sandbox",lane="bulk",state="waiting"} 0`,
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
