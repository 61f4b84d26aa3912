package deploy

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// TestPgBouncer: two facades whose ledger is reached through PgBouncer only, in transaction mode. They say that they ask for new work in
// place of listening. Calls that wait, over gRPC and REST, each at both at once with one request_id, and a batch over a stream, are all
// answered, soon, and sent once.
func TestPgBouncer(t *testing.T) {
	c := newCompose(t)
	build(t, c.programs, "jelou-facade", "jelousim")
	pooler := ledgertest.NewCluster(t).PgBouncer(t)
	control := c.startSimulator(t)
	config := writeConfig(t, c.addresses.Replace("http://jelousim:7070"), pooler)
	facades := make([]*exec.Cmd, 2)
	var ways []map[string]way
	var batches facadev1.BatchServiceClient
	for i := range facades {
		facades[i] = exec.Command(filepath.Join(c.programs, "jelou-facade"), "serve", "--config", config)
		lines := start(t, facades[i])
		conn := dial(t, next(t, lines, "gRPC "))
		ways = append(ways, waysTo(conn, next(t, lines, "REST ")))
		batches = facadev1.NewBatchServiceClient(conn)
	}
	for i, f := range facades {
		for _, said := range []string{"is behind a pooler", "new work is looked for every 50ms"} {
			await(t, fmt.Sprintf("facade %d to log: %s", i, said), func() bool { return strings.Contains(logOf(t, f), said) })
		}
	}

	const calls, items = 6, 8
	began := time.Now()
	var waiting sync.WaitGroup
	for n := range calls {
		for _, replica := range ways {
			waiting.Go(func() { eachWay(t, replica, fmt.Sprint(n), "SENT", "") })
		}
	}
	waiting.Go(func() { streamBatch(t, batches, items) })
	waiting.Wait()
	all := calls*len(ways[0]) + items
	// The allowance takes 4 s for 20 of them: the rest is for the machine.
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("%d sends took %v", all, took)
	} else {
		t.Logf("%d sends took %v", all, took)
	}
	checkArrived(t, control, all)
	var report jelousim.Report
	if getJSON(t, control+"/report", &report); report.WorstWindow > report.Requests {
		t.Errorf("%d within a window of at most %d", report.WorstWindow, report.Requests)
	}
}

// streamBatch uploads a batch over a stream, and reads it until all its items are sent.
func streamBatch(t *testing.T, batches facadev1.BatchServiceClient, items int) {
	stream, err := batches.StreamBatch(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	spec := &facadev1.StreamBatchRequest_Open_Spec{Spec: &facadev1.BatchSpec{BotId: "demo"}}
	requests := []*facadev1.StreamBatchRequest{{Request: &facadev1.StreamBatchRequest_Open_{Open: &facadev1.StreamBatchRequest_Open{Batch: spec}}}}
	for n := range items {
		requests = append(requests, &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: &facadev1.BatchItem{
			Sequence: int32(n + 1), UserId: "593991234567", Content: &facadev1.BatchItem_Message{Message: textOf(fmt.Sprint("item-", n))},
		}}})
	}
	seal := &facadev1.StreamBatchRequest_Seal_{Seal: &facadev1.StreamBatchRequest_Seal{ItemCount: int32(items)}}
	for _, r := range append(requests, &facadev1.StreamBatchRequest{Request: seal}) {
		if err := stream.Send(r); err != nil {
			t.Error(err)
			return
		}
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			t.Error(err)
			return
		}
		if end := answer.GetEnd(); end != nil {
			if int(end.Batch.Counts.Sent) != items {
				t.Errorf("the batch ended as %v", end.Batch.Counts)
			}
			return
		}
	}
}
