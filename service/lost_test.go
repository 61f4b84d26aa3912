package service_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// newFacadeBehind is a facade whose ledger is in PostgreSQL behind a proxy that can lose it.
func newFacadeBehind(t *testing.T) (*facade, *ledgertest.Proxy, string) {
	t.Helper()
	address := ledgertest.Postgres(t)
	p := ledgertest.NewProxy(t, address)
	return newFacade(t, func(s *setup) { s.ledger.URL, s.ledger.ListenURL = p.URL, address }), p, address
}

// ended waits until a batch has ended.
func (f *facade) finished(tr transport, batchID string) *facadev1.Batch {
	f.Helper()
	b := &facadev1.GetBatchResponse{}
	f.eventually(func() bool {
		_, err := tr.call(context.Background(), f, "BatchService/GetBatch", &facadev1.GetBatchRequest{BatchId: batchID}, b)
		return err == nil && b.Batch.EndTime != nil
	})
	return b.Batch
}

// TestBatchIsWholeOrNotThere: wherever the database is lost, all of a batch is stored or nothing, and its caller is told which, or
// that nobody can say.
func TestBatchIsWholeOrNotThere(t *testing.T) {
	const items = 16
	insert := []byte("INSERT 0 16")
	onEach(t, func(t *testing.T, tr transport) {
		f, p, _ := newFacadeBehind(t)
		// lose cuts the connection at a message about the items, with which the database is gone for good or only once.
		lose := func(at func(kind byte, payload []byte) bool, forGood bool) {
			seen, lost := false, false
			p.Set(func(kind byte, payload []byte) ledgertest.Verdict {
				seen = seen || kind == 'C' && bytes.HasPrefix(payload, insert)
				if lost && forGood || seen && !lost && at(kind, payload) {
					lost = true
					return ledgertest.Cut
				}
				return ledgertest.Forward
			})
		}
		inserted := func(byte, []byte) bool { return true }
		create := func(text string) (*facadev1.Batch, error) {
			created := &facadev1.CreateBatchResponse{}
			_, err := tr.call(context.Background(), f, "BatchService/CreateBatch", batchOf(items, text), created)
			return created.Batch, err
		}
		t.Run("before the commit", func(t *testing.T) {
			lose(inserted, false)
			if _, err := create("antes "); status.Code(err) != codes.Unavailable || reasonOf(err) != "LEDGER_UNAVAILABLE" {
				t.Errorf("%v", err)
			}
			list := &facadev1.ListBatchesResponse{}
			f.eventually(func() bool {
				_, err := tr.call(context.Background(), f, "BatchService/ListBatches", &facadev1.ListBatchesRequest{}, list)
				return err == nil
			})
			if n := f.sim.Report().Arrived; len(list.Batches) != 0 || n != 0 {
				t.Errorf("there are %v, and %d requests arrived", list.Batches, n)
			}
		})
		t.Run("the commit's answer", func(t *testing.T) {
			lose(ledgertest.Committed, false)
			b, err := create("después ")
			if err != nil {
				t.Fatal(err)
			}
			if end := f.finished(tr, b.BatchId); end.Counts.Sent != items || b.Counts.Accepted != items {
				t.Errorf("created %v, in the end %v", b, end)
			}
		})
		t.Run("for good", func(t *testing.T) {
			lose(ledgertest.Committed, true)
			_, err := create("nunca ")
			id := detailOf[*errdetails.ErrorInfo](err).GetMetadata()["batch_id"]
			if status.Code(err) != codes.Unknown || reasonOf(err) != "OUTCOME_UNKNOWN" || id == "" {
				t.Fatalf("%v, %s", err, id)
			}
			p.Set(nil)
			if end := f.finished(tr, id); end.Counts.Sent != items {
				t.Errorf("it came to %v", end)
			}
		})
	})
}

// TestCommitThatComesLate: while a commit of which the answer was lost may still happen, nobody is told that nothing was sent.
func TestCommitThatComesLate(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f, p, address := newFacadeBehind(t)
		ctx := context.Background()
		_, _, err := f.sendText(tr, textTo(openUser, "primero"))
		f.must(err)
		// What is stored waits in its commit for the test's lock, as on a server that stands still.
		admin, err := sql.Open("pgx", address)
		f.must(err)
		t.Cleanup(func() { _ = admin.Close() })
		conn, err := admin.Conn(ctx)
		f.must(err)
		for _, statement := range []string{
			`CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				LOOP BEGIN
					PERFORM pg_advisory_xact_lock_shared(4711);
					RETURN NULL;
				EXCEPTION WHEN query_canceled OR lock_not_available THEN NULL; -- whatever time-outs the ledger sets
				END; END LOOP;
			END $$`,
			`CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON send DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()`,
			`SELECT pg_advisory_lock(4711)`,
		} {
			_, err := conn.ExecContext(ctx, statement)
			f.must(err)
		}
		told := make(chan error, 1)
		go func() {
			_, err := tr.call(ctx, f, sendMessage, withID(textTo(openUser, "tarde"), "late-1"), &facadev1.SendMessageResponse{})
			told <- err
		}()
		f.eventually(func() bool {
			waiting := 0
			f.must(admin.QueryRowContext(ctx, `SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
				WHERE d.datname = current_database() AND locktype = 'advisory' AND objid = 4711 AND NOT granted`).Scan(&waiting))
			return waiting > 0
		})
		p.Strand()
		select {
		case err := <-told:
			t.Fatalf("told while the commit may still come: %v", err)
		case <-time.After(15 * time.Second):
		}
		_, err = conn.ExecContext(ctx, `SELECT pg_advisory_unlock(4711)`)
		f.must(err)
		if err := <-told; err != nil {
			t.Error(err)
		}
		if n := len(f.sim.SendsWithText(said("tarde"))); n != 1 {
			t.Errorf("%d messages", n)
		}
	})
}

// TestIdenticalBatches: calls at once with one request_id get one batch, and none of them an error.
func TestIdenticalBatches(t *testing.T) {
	f := newFacade(t, nil)
	r := batchOf(50, "gemelo ")
	r.Spec.RequestId = "gemelos"
	type answer struct {
		batch *facadev1.Batch
		err   error
	}
	answers := make(chan answer)
	for i := range 8 {
		go func() {
			created := &facadev1.CreateBatchResponse{}
			_, err := transports[i%2].call(context.Background(), f, "BatchService/CreateBatch", r, created)
			answers <- answer{created.Batch, err}
		}()
	}
	ids := map[string]bool{}
	for range 8 {
		a := <-answers
		if a.err != nil {
			t.Error(a.err)
			continue
		}
		ids[a.batch.BatchId] = true
		if a.batch.Counts.Accepted != 50 || a.batch.State == facadev1.Batch_OPEN {
			t.Errorf("half a batch: %v", a.batch)
		}
	}
	if len(ids) != 1 {
		t.Fatalf("batches %v", ids)
	}
	for id := range ids {
		if end := f.finished(transports[0], id); end.Counts.Sent != 50 {
			t.Errorf("%v", end)
		}
	}
	if n := f.sim.Report().Accepted; n != 50 {
		t.Errorf("%d messages", n)
	}
}

// TestRefusedBatchLeavesNothing: what has no room is not stored, not even in part or empty; what is stored is never refused.
func TestRefusedBatchLeavesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) { s.bounds.Company = 15 })
		create := func(n int, id string) (*facadev1.Batch, error) {
			r := batchOf(n, "lleno "+id)
			r.Spec.RequestId, r.Spec.Paused = id, true
			created := &facadev1.CreateBatchResponse{}
			_, err := tr.call(context.Background(), f, "BatchService/CreateBatch", r, created)
			return created.Batch, err
		}
		first, err := create(10, "cabe")
		f.must(err)
		for range 2 {
			if _, err := create(10, "no-cabe"); reasonOf(err) != "QUEUE_FULL" {
				t.Errorf("%v", err)
			}
		}
		again, err := create(10, "cabe")
		if err != nil || again.BatchId != first.BatchId {
			t.Errorf("again: %v, %v", again, err)
		}
		if _, err := create(5, "justo"); err != nil {
			t.Errorf("the last five: %v", err)
		}
		list := &facadev1.ListBatchesResponse{}
		_, err = tr.call(context.Background(), f, "BatchService/ListBatches", &facadev1.ListBatchesRequest{}, list)
		f.must(err)
		if len(list.Batches) != 2 {
			t.Errorf("%d batches: %v", len(list.Batches), list)
		}
	})
}

// TestDayOfParallelBatches: of batches at once that fit into a day only one by one, one is stored and the others not at all.
func TestDayOfParallelBatches(t *testing.T) {
	orders := &configv1.Caller{Name: "orders", Companies: []string{"*"}, DailySends: 30}
	key := keyed(orders, time.Time{})
	f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders} })
	refused := make(chan error)
	for i := range 6 {
		go func() {
			_, err := as(transports[i%2], key).call(context.Background(), f, "BatchService/CreateBatch", batchOf(20, fmt.Sprint("día ", i, " ")), &facadev1.CreateBatchResponse{})
			refused <- err
		}()
	}
	stored := 0
	for range 6 {
		switch err := <-refused; {
		case err == nil:
			stored++
		case reasonOf(err) != "CALLER_QUOTA":
			t.Error(err)
		}
	}
	list, sends := &facadev1.ListBatchesResponse{}, &facadev1.ListSendsResponse{}
	tr := as(transports[0], key)
	_, err := tr.call(context.Background(), f, "BatchService/ListBatches", &facadev1.ListBatchesRequest{}, list)
	f.must(err)
	_, err = tr.call(context.Background(), f, "SendService/ListSends", &facadev1.ListSendsRequest{}, sends)
	f.must(err)
	if stored != 1 || len(list.Batches) != 1 || len(sends.Sends) != 20 {
		t.Errorf("%d answered, %d batches and %d sends stored", stored, len(list.Batches), len(sends.Sends))
	}
}
