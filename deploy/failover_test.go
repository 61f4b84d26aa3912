package deploy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// TestFailoverLosesTheTail: PostgreSQL fails over to a standby that has not seen the last sends. The facade, which runs on, finds that
// its ledger went back in time: it sends nothing, also not what was sent already and is asked for again, and says so to callers, to
// its probes and in its metrics, until a person releases it.
func TestFailoverLosesTheTail(t *testing.T) {
	c := newCompose(t)
	build(t, c.programs, "jelou-facade", "jelousim")
	primary := ledgertest.NewCluster(t)
	standby := primary.NewStandby(t)
	control := c.startSimulator(t)
	config := writeConfig(t, c.addresses.Replace("http://jelousim:7070"), ledgerOn(t, primary, standby))
	facade := filepath.Join(c.programs, "jelou-facade")
	lines := start(t, exec.Command(facade, "serve", "--config", config))
	address, rest, admin := next(t, lines, "gRPC "), next(t, lines, "REST "), next(t, lines, "admin ")
	conn := dial(t, address)
	ways := waysTo(conn, rest)
	batches := facadev1.NewBatchServiceClient(conn)
	batch := createPausedBatch(t, batches)
	counts := func() *facadev1.BatchCounts {
		answer, err := batches.GetBatch(t.Context(), &facadev1.GetBatchRequest{BatchId: batch})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Batch.Counts
	}

	eachWay(t, ways, "kept", "SENT", "")
	standby.CutOff(t, primary)
	eachWay(t, ways, "lost", "SENT", "")
	if _, err := batches.ResumeBatch(t.Context(), &facadev1.ResumeBatchRequest{BatchId: batch}); err != nil {
		t.Fatal(err)
	}
	await(t, "the batch to be sent", func() bool { return counts().Sent == 1 })
	if err := primary.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	awaitProblem(t, admin, "the ledger's database does not answer")
	eachWay(t, ways, "lost", "", "LEDGER_UNAVAILABLE")

	standby.TakeOver(t)
	awaitProblem(t, admin, "the ledger went back in time and is held until `jelou-facade ledger release`")
	for _, id := range []string{"lost", "new"} {
		eachWay(t, ways, id, "", "LEDGER_REWOUND")
	}
	for cause, held := range map[string]int{"rewound": 1, "moved": 0} {
		if _, metrics := get(t, admin+"/metrics"); !strings.Contains(metrics, fmt.Sprintf("jelou_ledger_held{cause=%q} %d\n", cause, held)) {
			t.Errorf("jelou_ledger_held of %s is not %d", cause, held)
		}
	}
	checkArrived(t, control, 5)

	if out, err := exec.Command(facade, "ledger", "release", "--config", config, "--unsent", "unknown").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	await(t, "the probes to say that it sends again", func() bool {
		code, _ := get(t, admin+"/readyz")
		return code == http.StatusOK
	})
	eachWay(t, ways, "kept", "SENT", "") // which the standby knows: it is not sent again
	eachWay(t, ways, "new", "SENT", "")
	if got := counts(); got.Unknown != 1 || got.Accepted != 1 {
		t.Errorf("what the standby took for unsent: %v", got)
	}
	checkArrived(t, control, 7)
}

// way sends a message and gives the state that it has then, or the reason of the refusal.
type way func(t *testing.T, id string) (state, reason string)

// waysTo are the ways to a server.
func waysTo(conn *grpc.ClientConn, rest string) map[string]way {
	return map[string]way{
		"grpc": func(t *testing.T, id string) (string, string) { return sendOverGRPC(t, conn, id) },
		"rest": func(t *testing.T, id string) (string, string) { return sendOverREST(t, rest, id) },
	}
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// eachWay sends a message of its own over each way.
func eachWay(t *testing.T, ways map[string]way, id, state, reason string) {
	t.Helper()
	for name, send := range ways {
		if gotState, gotReason := send(t, id+"-"+name); gotState != state || gotReason != reason {
			t.Errorf("%s over %s: %q %q, want %q %q", id, name, gotState, gotReason, state, reason)
		}
	}
}

func sendOverGRPC(t *testing.T, conn *grpc.ClientConn, id string) (state, reason string) {
	t.Helper()
	answer, err := facadev1.NewMessageServiceClient(conn).SendMessage(t.Context(), &facadev1.SendMessageRequest{
		BotId: "demo", UserId: "593991234567", Message: textOf(id), RequestId: id,
	})
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return "", info.Reason
		}
	}
	if err != nil {
		t.Error(err)
	}
	return answer.GetSend().GetState().String(), ""
}

func sendOverREST(t *testing.T, address, id string) (state, reason string) {
	t.Helper()
	_, text := send(t, address, "", id)
	var answer struct {
		Send  struct{ State string }
		Error struct{ Details []struct{ Reason string } }
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Errorf("%v: %s", err, text)
	}
	for _, detail := range answer.Error.Details {
		reason = cmp.Or(reason, detail.Reason)
	}
	return answer.Send.State, reason
}

func textOf(id string) *facadev1.Message {
	return &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: "Hola, " + id + "."}}}
}

// createPausedBatch makes a batch of one message that waits to be resumed.
func createPausedBatch(t *testing.T, batches facadev1.BatchServiceClient) (id string) {
	t.Helper()
	answer, err := batches.CreateBatch(t.Context(), &facadev1.CreateBatchRequest{
		Spec:  &facadev1.BatchSpec{BotId: "demo", Paused: true},
		Items: []*facadev1.BatchItem{{UserId: "593991234567", Content: &facadev1.BatchItem_Message{Message: textOf("batch")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Batch.BatchId
}

// awaitProblem waits until a server is not ready for this one reason.
func awaitProblem(t *testing.T, admin, problem string) {
	t.Helper()
	await(t, "/readyz to say: "+problem, func() bool {
		code, answer := get(t, admin+"/readyz")
		var r struct{ Problems []string }
		return code == http.StatusServiceUnavailable && json.Unmarshal([]byte(answer), &r) == nil && slices.Equal(r.Problems, []string{problem})
	})
}

// checkArrived: so many requests have arrived at the simulator, none of them twice.
func checkArrived(t *testing.T, control string, want int) {
	t.Helper()
	var report jelousim.Report
	getJSON(t, control+"/report", &report)
	if report.Arrived != want || report.Accepted != want || report.Duplicates != 0 {
		t.Errorf("%d requests arrived, want %d; %d accepted, %d of them twice", report.Arrived, want, report.Accepted, report.Duplicates)
	}
}

// ledgerOn is the URL of a ledger on whichever server takes writes.
func ledgerOn(t *testing.T, servers ...*ledgertest.Cluster) string {
	t.Helper()
	var hosts []string
	for _, s := range servers {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, u.Host)
	}
	return fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable&target_session_attrs=read-write", strings.Join(hosts, ","))
}

// writeConfig writes a configuration of one company.
func writeConfig(t *testing.T, api, ledger string) string {
	t.Helper()
	folder := t.TempDir()
	config := filepath.Join(folder, "facade.yaml")
	for file, text := range map[string]string{"id": "sandbox\n", "secret": "sandbox\n", "facade.yaml": fmt.Sprintf(`
listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0"}
admin: {address: "127.0.0.1:0"}
ledger: {url: %q}
companies: [{id: sandbox, base_url: %q, client_id_file: id, client_secret_file: secret, bots: [demo]}]
`, ledger, api)} {
		if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return config
}
