package service_test

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver pgx

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// TestLedgerHeld: a ledger that is a copy of another one sends nothing until a person has decided.
func TestLedgerHeld(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		folder := t.TempDir()
		original, restored := filepath.Join(folder, "ledger.db"), filepath.Join(folder, "restored.db")
		ctx := context.Background()
		l, err := ledger.Open(ctx, ledger.Config{Path: original, Replica: "before"})
		if err != nil {
			t.Fatal(err)
		}
		company, err := l.Company(ctx, "sandbox")
		if err != nil {
			t.Fatal(err)
		}
		spec, err := proto.Marshal(&facadev1.BatchSpec{BotId: "demo"})
		if err != nil {
			t.Fatal(err)
		}
		batch, _, err := l.CreateBatch(ctx, ledger.NewBatch{Company: company, Lane: ledger.Bulk, Caller: "anonymous", Bot: "demo", Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		waiting := ledger.NewSend{Company: company, Lane: ledger.Normal, Caller: "anonymous", Bot: "demo", Recipient: "pseudonym", Kind: "text"}
		failed := waiting
		failed.Queue, failed.Pos, failed.Final = batch.ID.Queue, 1, &ledger.Final{Reason: "INVALID_FIELD"}
		added, err := l.Add(ctx, []ledger.NewSend{waiting, failed})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"", "-wal"} {
			data, err := os.ReadFile(original + part)
			if os.IsNotExist(err) {
				continue // the log was written back
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(restored+part, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f := newFacade(t, func(s *setup) { s.ledger.Path = restored })
		_, _, err = f.sendText(tr, textTo(openUser, "detenido"))
		if status.Code(err) != codes.Unavailable || reasonOf(err) != "LEDGER_HELD" {
			t.Fatal(err)
		}
		_, err = tr.call(ctx, f, "BatchService/CreateBatch", batchOf(1, "detenido "), &facadev1.CreateBatchResponse{})
		if reasonOf(err) != "LEDGER_HELD" {
			t.Error(err)
		}
		// Nor does anything end that may have been sent, nor is anything made of it.
		id, batchID := added[0].Send.ID.String(), batch.ID.String()
		for _, c := range []struct {
			method            string
			request, response proto.Message
		}{
			{"SendService/CancelSend", &facadev1.CancelSendRequest{SendId: id}, &facadev1.CancelSendResponse{}},
			{"BatchService/CancelBatch", &facadev1.CancelBatchRequest{BatchId: batchID}, &facadev1.CancelBatchResponse{}},
			{"BatchService/ReplayBatch", &facadev1.ReplayBatchRequest{BatchId: batchID, States: []facadev1.Send_State{facadev1.Send_FAILED}}, &facadev1.ReplayBatchResponse{}},
		} {
			if _, err := tr.call(ctx, f, c.method, c.request, c.response); status.Code(err) != codes.Unavailable || reasonOf(err) != "LEDGER_HELD" {
				t.Errorf("%s: %v", c.method, err)
			}
		}
		f.must(f.ledger.Release(ctx, ledger.Unknown))
		got := &facadev1.GetSendResponse{}
		if _, err := tr.call(ctx, f, "SendService/GetSend", &facadev1.GetSendRequest{SendId: id}, got); err != nil || got.Send.State != facadev1.Send_UNKNOWN {
			t.Errorf("released %v, %v", got, err)
		}
		f.eventually(func() bool {
			_, _, err := f.sendText(tr, textTo(openUser, "detenido"))
			return err == nil
		})
	})
}

// TestLedgerRewound: a backup is put back under a running server that has sent since. It says so to callers, to its probes and in its
// metrics, and neither what the backup calls unsent nor anything new is sent until a person has decided.
func TestLedgerRewound(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		ctx := context.Background()
		address := ledgertest.Postgres(t)
		f := newFacade(t, func(s *setup) { s.ledger.URL = address })
		request, created := batchOf(1, "perdido "), &facadev1.CreateBatchResponse{}
		request.Spec.Paused = true
		_, err := tr.call(ctx, f, "BatchService/CreateBatch", request, created)
		f.must(err)
		id := created.Batch.BatchId
		restore := backup(t, address)
		_, err = tr.call(ctx, f, "BatchService/ResumeBatch", &facadev1.ResumeBatchRequest{BatchId: id}, &facadev1.ResumeBatchResponse{})
		f.must(err)
		counts := func() *facadev1.BatchCounts {
			answer := &facadev1.GetBatchResponse{}
			_, err := tr.call(ctx, f, "BatchService/GetBatch", &facadev1.GetBatchRequest{BatchId: id}, answer)
			f.must(err)
			return answer.Batch.Counts
		}
		f.eventually(func() bool { return counts().Sent == 1 })
		restore()

		const problem = "the ledger went back in time and is held until `jelou-facade ledger release`"
		f.awaitReady(func(r readyz) bool { return slices.Equal(r.Problems, []string{problem}) })
		f.checkHealth(map[string]healthv1.HealthCheckResponse_ServingStatus{"": notServing, "readiness": notServing, "liveness": isServing})
		if metrics := f.scrape(); !strings.Contains(metrics, `jelou_ledger_held{cause="rewound"} 1`) || !strings.Contains(metrics, `jelou_ledger_held{cause="moved"} 0`) {
			t.Error("no metric says so")
		}
		_, _, sendErr := f.sendText(tr, textTo(openUser, "después"))
		_, batchErr := tr.call(ctx, f, "BatchService/CreateBatch", batchOf(1, "después "), &facadev1.CreateBatchResponse{})
		for _, err := range []error{sendErr, batchErr} {
			if status.Code(err) != codes.Unavailable || reasonOf(err) != "LEDGER_REWOUND" {
				t.Error(err)
			}
		}
		_, err = tr.call(ctx, f, "BatchService/ResumeBatch", &facadev1.ResumeBatchRequest{BatchId: id}, &facadev1.ResumeBatchResponse{})
		f.must(err)

		f.must(f.ledger.Release(ctx, ledger.Unknown))
		f.awaitReady(func(r readyz) bool { return r.Ready })
		f.eventually(func() bool {
			_, _, err := f.sendText(tr, textTo(openUser, "después"))
			return err == nil
		})
		if got := counts(); got.Unknown != 1 || got.Accepted != 1 {
			t.Errorf("what the backup calls unsent: %v", got)
		}
		if r := f.sim.Report(); r.Accepted != 2 || r.Duplicates != 0 {
			t.Errorf("%d sends, %d of them twice", r.Accepted, r.Duplicates)
		}
	})
}

// backup copies all tables of a database, and gives what puts them back in one transaction.
func backup(t *testing.T, address string) (restore func()) {
	t.Helper()
	db, err := sql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	each := func(do string) {
		t.Helper()
		// Where it and the server wait for each other it is the server that gives up, and tries again.
		if _, err := db.ExecContext(context.Background(), `BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL deadlock_timeout = '1min'; CREATE SCHEMA IF NOT EXISTS backup;
			DO $$ DECLARE name text; BEGIN
				FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP `+do+` END LOOP;
			END $$; COMMIT`); err != nil {
			t.Fatal(err)
		}
	}
	each(`EXECUTE format('CREATE TABLE backup.%1$I AS TABLE public.%1$I', name);`)
	return func() {
		t.Helper()
		each(`EXECUTE format('TRUNCATE public.%1$I', name); EXECUTE format('INSERT INTO public.%1$I TABLE backup.%1$I', name);`)
	}
}

// TestHeldWhileItWaits: a ledger that is found to have gone back in time while a call waits cannot say that the send was not
// sent, and does not.
func TestHeldWhileItWaits(t *testing.T) {
	address := ledgertest.Postgres(t)
	f := newFacade(t, func(s *setup) { s.ledger.URL = address })
	db, err := sql.Open("pgx", address)
	f.must(err)
	defer db.Close()
	for reason := "LEDGER_HELD"; reason == "LEDGER_HELD"; { // what the server saw of it may be as old as that it is held
		if _, _, err := f.sendText(transports[0], textTo(openUser, "antes")); err != nil {
			t.Fatal(err)
		}
		_, err := db.ExecContext(t.Context(), `UPDATE home SET held = 1, held_at = (extract(epoch FROM now() + interval '1 minute') * 1000000)::bigint`)
		f.must(err)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err = facadev1.NewMessageServiceClient(f.conn).SendMessage(ctx, textTo(openUser, "durante"))
		cancel()
		if reason = reasonOf(err); reason == "OUTCOME_UNKNOWN" {
			id := detailOf[*errdetails.ErrorInfo](err).Metadata["send_id"]
			got, err := facadev1.NewSendServiceClient(f.conn).GetSend(t.Context(), &facadev1.GetSendRequest{SendId: id})
			if err != nil || got.Send.State != facadev1.Send_PENDING {
				t.Errorf("%v, %v", got, err)
			}
		} else if reason != "LEDGER_HELD" {
			t.Errorf("the call was told %v", err)
		}
		f.must(f.ledger.Release(t.Context(), ledger.Unknown))
		f.eventually(func() bool {
			_, _, err := f.sendText(transports[0], textTo(openUser, "después"))
			return err == nil
		})
	}
	if n := len(f.sim.SendsWithText(said("durante"))); n != 0 {
		t.Errorf("it was sent %d times", n)
	}
}

// TestLedgerGone: while PostgreSQL cannot be reached sends are refused and nothing leaves; when it is back everything goes on by
// itself, also what waits and who watches it.
func TestLedgerGone(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		address := ledgertest.Postgres(t)
		f := newFacade(t, func(s *setup) {
			s.ledger.URL = address
			s.pace = pace.Config{Requests: 1, Window: time.Second}
		})
		if _, _, err := f.sendText(tr, textTo(openUser, "antes")); err != nil {
			t.Fatal(err)
		}
		const each = 4
		for i := range each {
			_, _, err := f.sendText(tr, queued(fmt.Sprint("en cola ", i)))
			f.must(err)
		}
		uploading := openStream(f, tr, newBatchOpen(nil))
		for i := 1; i <= each; i++ {
			f.must(uploading.send(item(i, fmt.Sprint("en lote ", i))))
		}
		f.must(uploading.send(seal(each)))
		var c collected
		f.must(c.collect(f, uploading, func(c *collected) bool { return c.acked == each }))
		streamed := make(chan error, 1)
		go func() {
			defer close(streamed)
			streamed <- c.collect(f, uploading, nil)
		}()
		watched := make(chan *facadev1.Batch, 1)
		go func() {
			defer close(watched)
			results, end := watch(f, tr, c.opened.BatchId, "")
			if len(results) != each {
				t.Errorf("%d results watched", len(results))
			}
			watched <- end
		}()
		allow := connections(t, address)
		allow(false)
		if n := f.sim.Report().Accepted; n == 1+2*each {
			t.Error("nothing was left to go on with")
		}
		_, _, err := f.sendText(tr, textTo(openUser, "durante"))
		if status.Code(err) != codes.Unavailable || reasonOf(err) != "LEDGER_UNAVAILABLE" {
			t.Errorf("%v", err)
		}
		allow(true)
		if err := <-streamed; err != nil || c.end.GetCounts().GetSent() != each {
			t.Errorf("the stream ends with %v, %v", c.end, err)
		}
		if end := <-watched; end.GetCounts().GetSent() != each {
			t.Errorf("the watch ends with %v", end)
		}
		f.eventually(func() bool { return f.sim.Report().Accepted == 1+2*each })
		f.eventually(func() bool {
			_, _, err := f.sendText(tr, textTo(openUser, "después"))
			return err == nil
		})
		if n := len(f.sim.SendsWithText(said("durante"))); n != 0 {
			t.Error("it was sent though it was refused")
		}
	})
}

// connections allows connections to a database, or ends those that are there and refuses new ones.
func connections(t *testing.T, address string) func(bool) {
	t.Helper()
	run, name := administer(t, address)
	return func(yes bool) {
		t.Helper()
		run(fmt.Sprintf(`ALTER DATABASE %q ALLOW_CONNECTIONS %v`, name, yes))
		if !yes {
			run(fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '%s'`, name))
		}
	}
}

// administer runs statements beside a database, and names it.
func administer(t *testing.T, address string) (run func(statement string), name string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	name = strings.TrimPrefix(u.Path, "/")
	u.Path = "/postgres"
	admin, err := sql.Open("pgx", u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	return func(statement string) {
		t.Helper()
		if _, err := admin.ExecContext(context.Background(), statement); err != nil {
			t.Fatal(err)
		}
	}, name
}

// eventually polls until something is so.
func (f *facade) eventually(so func() bool) {
	f.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !so() {
		select {
		case <-tick.C:
		case <-end:
			f.Fatal("it did not come to be")
		}
	}
}

// TestLedgerNotWritable: a database that is full or read-only refuses sends and lets read; the process stays ready, so that callers
// are told, and says why; and when it is over all goes on.
func TestLedgerNotWritable(t *testing.T) {
	for _, c := range []struct {
		name, why string
		make      func(t *testing.T) (c ledger.Config, fail, mend func())
	}{
		{"SQLite on a full disk", "its disk is full: 0 MiB are free", fullSQLite},
		{"PostgreSQL on a full disk", "its disk is full", fullPostgres},
		{"a read-only PostgreSQL", "it is read-only", readOnlyPostgres},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, tr transport) {
				config, fail, mend := c.make(t)
				f := newFacade(t, func(s *setup) { s.ledger = config })
				before, _, err := f.sendText(tr, textTo(openUser, "antes"))
				f.must(err)
				fail()
				var refused error
				f.eventually(func() bool {
					_, _, refused = f.sendText(tr, textTo(openUser, "durante"))
					return refused != nil // sessions that were there may write once more
				})
				if status.Code(refused) != codes.Unavailable || reasonOf(refused) != "LEDGER_UNAVAILABLE" {
					t.Errorf("%v", refused)
				}
				told := f.awaitReady(func(r readyz) bool { return r.Ready && len(r.Degraded) > 0 })
				if len(told.Degraded) != 1 || !strings.Contains(told.Degraded[0], c.why) {
					t.Errorf("degraded: %q", told.Degraded)
				}
				if !strings.Contains(f.scrape(), "\njelou_ledger_writable 0\n") {
					t.Error("the metrics do not tell")
				}
				got := &facadev1.GetSendResponse{}
				if _, err := tr.call(t.Context(), f, "SendService/GetSend", &facadev1.GetSendRequest{SendId: before.SendId}, got); err != nil || got.Send.State != facadev1.Send_SENT {
					t.Errorf("what was sent before: %v, %v", got.Send, err)
				}
				mend()
				f.eventually(func() bool {
					_, _, err := f.sendText(tr, textTo(openUser, "después"))
					return err == nil
				})
				f.awaitReady(func(r readyz) bool { return r.Ready && len(r.Degraded) == 0 })
				if !strings.Contains(f.scrape(), "\njelou_ledger_writable 1\n") {
					t.Error("the metrics do not tell that it is over")
				}
			})
		})
	}
}

// fullSQLite has its folder on a file system with room, or on one that never has any.
func fullSQLite(t *testing.T) (c ledger.Config, fail, mend func()) {
	folder, link := t.TempDir(), filepath.Join(t.TempDir(), "folder")
	point := func(to string) {
		t.Helper()
		if err := os.Symlink(to, link+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+".new", link); err != nil {
			t.Fatal(err)
		}
	}
	point(folder)
	// One connection reads, for another one would look for the file in vain.
	return ledger.Config{Path: filepath.Join(link, "ledger.db"), Connections: 1}, func() { point("/proc") }, func() { point(folder) }
}

func fullPostgres(t *testing.T) (c ledger.Config, fail, mend func()) {
	address := ledgertest.Postgres(t)
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return ledger.Config{URL: address}, func() { ledgertest.FillDisk(t, conn) }, func() { ledgertest.FreeDisk(t, conn) }
}

func readOnlyPostgres(t *testing.T) (c ledger.Config, fail, mend func()) {
	address := ledgertest.Postgres(t)
	run, name := administer(t, address)
	set := func(on bool) func() {
		return func() {
			run(fmt.Sprintf(`ALTER DATABASE %q SET default_transaction_read_only = %v`, name, on))
			run(fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '%s'`, name)) // new ones take the new setting
		}
	}
	return ledger.Config{URL: address}, set(true), set(false)
}
