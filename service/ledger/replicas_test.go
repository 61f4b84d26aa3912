package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// openTwo opens two replicas on one PostgreSQL.
func openTwo(t *testing.T) (one, two *Ledger, dsn string) {
	t.Helper()
	dsn = ledgertest.Postgres(t)
	return mustOpen(t, Config{URL: dsn, Replica: "one"}), mustOpen(t, Config{URL: dsn, Replica: "two"}), dsn
}

func mustConnect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func mustRun(t *testing.T, conn *pgx.Conn, query string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func TestReplicasAddTheSameIDsInOppositeOrder(t *testing.T) {
	one, two, _ := openTwo(t)
	company := mustCompany(t, one, "acme")
	const n = 1000
	sends := make([]NewSend, n)
	for i := range sends {
		sends[i] = newSend(company, i)
		sends[i].RequestID = fmt.Sprint("order-", i)
	}
	var joined [2]int
	var adding sync.WaitGroup
	for i, l := range []*Ledger{one, two} {
		adding.Go(func() {
			mine := slices.Clone(sends)
			if i == 1 {
				slices.Reverse(mine)
			}
			for part := range slices.Chunk(mine, 100) {
				for _, a := range mustAdd(t, l, part...) {
					joined[i] += int(oneIf(a.Joined))
				}
			}
		})
	}
	adding.Wait()
	totals, err := one.Totals(t.Context())
	if err != nil || totals.Accepted != n || joined[0]+joined[1] != n {
		t.Errorf("%+v, joined %v, %v", totals, joined, err)
	}
}

func TestReplicasClaimEachSendOnce(t *testing.T) {
	one, two, _ := openTwo(t)
	company := mustCompany(t, one, "acme")
	const n = 200
	for i := range n {
		mustAdd(t, one, newSend(company, i))
	}
	var mu sync.Mutex
	seen := map[ID]int{}
	var claiming sync.WaitGroup
	for _, l := range []*Ledger{one, two, one, two} {
		claiming.Go(func() {
			for {
				s := mustClaim(t, l, company, chooseFirst)
				if s == nil {
					return
				}
				mu.Lock()
				seen[s.ID]++
				mu.Unlock()
				mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
			}
		})
	}
	claiming.Wait()
	if len(seen) != n {
		t.Errorf("%d of %d were claimed", len(seen), n)
	}
	for id, times := range seen {
		if times != 1 {
			t.Errorf("%v was claimed %d times", id, times)
		}
	}
}

func TestSomebodyElseHasTheCompany(t *testing.T) {
	one, _, dsn := openTwo(t)
	company := mustCompany(t, one, "acme")
	mustAdd(t, one, newSend(company, 1))
	conn := mustConnect(t, dsn)
	mustRun(t, conn, "BEGIN")
	mustRun(t, conn, "SELECT id FROM company FOR NO KEY UPDATE")
	claims, err := one.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst)
	if err != nil || !claims[0].Busy || claims[0].Send != nil {
		t.Errorf("claimed %+v, %v", claims, err)
	}
	// Adds never wait for the company.
	mustAdd(t, one, newSend(company, 2))
	mustRun(t, conn, "ROLLBACK")
	if s := mustClaim(t, one, company, chooseFirst); s == nil {
		t.Error("nothing was claimed afterwards")
	}
}

// A send that is being added has a lower position than what is claimed meanwhile, and its queue runs empty: neither the
// hint nor the switch may leave it behind.
func TestLateCommitIsNotLeftBehind(t *testing.T) {
	one, _, dsn := openTwo(t)
	company := mustCompany(t, one, "acme")
	mustAdd(t, one, newSend(company, 1))
	serveAll(t, one, company, 9)
	mustExec(t, one, `UPDATE queue SET ready = 1`)
	mustExec(t, one, `UPDATE share SET ready = 1`)

	late := mustConnect(t, dsn)
	mustRun(t, late, "BEGIN")
	mustRun(t, late, "SELECT 1 FROM queue FOR KEY SHARE")
	mustRun(t, late, `INSERT INTO send (company, queue, pos, lane, caller, bot, state, accepted_at)
		SELECT company, id, nextval('send_pos'), lane, caller, 'demo', 'pending', 1 FROM queue`)
	mustRun(t, late, `INSERT INTO tally (company, queue, stripe, added) SELECT company, id, 99, 1 FROM queue`)

	// Later positions are committed, claimed and old enough to move the hint; then the queue is empty.
	for i := range 3 {
		mustAdd(t, one, newSend(company, 10+i))
	}
	mustExec(t, one, `UPDATE send SET accepted_at = 1`)
	if got := len(serveAll(t, one, company, 9)); got != 3 {
		t.Fatalf("%d were sent", got)
	}
	ready, headPos := 0, 0
	err := one.query(t.Context(), `SELECT ready, head_pos FROM queue`, func(scan scanFunc) error { return scan(&ready, &headPos) })
	if err != nil || ready != 1 || headPos == 0 {
		t.Errorf("ready %d, head_pos %d, %v; want the queue left on and the hint moved on", ready, headPos, err)
	}
	mustRun(t, late, "COMMIT")
	if got := len(serveAll(t, one, company, 9)); got != 1 {
		t.Errorf("%d were sent after the late commit, want 1", got)
	}
}

// An add that finds its queue being switched off waits, and switches it on again.
func TestAddMeetsTheSwitch(t *testing.T) {
	one, _, dsn := openTwo(t)
	company := mustCompany(t, one, "acme")
	mustAdd(t, one, newSend(company, 1))
	serveAll(t, one, company, 9)

	off := mustConnect(t, dsn)
	mustRun(t, off, "BEGIN")
	mustRun(t, off, "SELECT 1 FROM queue FOR UPDATE")
	mustRun(t, off, "SELECT 1 FROM share FOR UPDATE")
	mustRun(t, off, "UPDATE queue SET ready = 0")
	mustRun(t, off, "UPDATE share SET ready = 0")
	added := make(chan error, 1)
	go func() {
		_, err := one.Add(context.Background(), []NewSend{newSend(company, 2)})
		added <- err
	}()
	waitUntil(t, off, `SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'`)
	mustRun(t, off, "COMMIT")
	if err := <-added; err != nil {
		t.Fatal(err)
	}
	if got := len(serveAll(t, one, company, 9)); got != 1 {
		t.Errorf("%d were sent, want 1", got)
	}
}

// waitUntil asks until the answer is yes.
func waitUntil(t *testing.T, conn *pgx.Conn, query string) {
	t.Helper()
	for {
		var yes bool
		if err := conn.QueryRow(t.Context(), query).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		if yes {
			return
		}
	}
}

func TestReplicasWakeEachOther(t *testing.T) {
	one, two, dsn := openTwo(t)
	company := mustCompany(t, one, "acme")
	awaitListening(t, one, two)
	drainWakes(two)

	added := mustAdd(t, one, newSend(company, 1))[0]
	checkWoken(t, two, Wake{Company: company, Lanes: Normal.only()})
	waited := make(chan Send, 1)
	signal, end := one.Subscribe(QueueID{company, added.Send.ID.Queue})
	defer end()
	go func() {
		s, err := one.Wait(t.Context(), added.Send.ID)
		if err != nil {
			t.Error(err)
		}
		waited <- s
	}()
	s := mustClaim(t, two, company, chooseFirst)
	mustSettle(t, two, Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
	if got := <-waited; got.State != Sent {
		t.Errorf("waited for %+v", got)
	}
	<-signal

	// Cut off from the notifications, it finds out by asking as soon as it listens again.
	mustRun(t, mustConnect(t, dsn), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%notify'`)
	other := mustAdd(t, one, newSend(company, 2))[0]
	s = mustClaim(t, two, company, chooseFirst)
	mustSettle(t, two, Settlement{ID: s.ID, Claim: s.Claim, State: Failed})
	if got, err := one.Wait(t.Context(), other.Send.ID); err != nil || got.State != Failed {
		t.Errorf("waited for %+v, %v", got, err)
	}
}

func awaitListening(t *testing.T, ledgers ...*Ledger) {
	t.Helper()
	for _, l := range ledgers {
		for !l.notify.listening.Load() {
			pause(t.Context(), time.Millisecond)
		}
	}
}

func checkWoken(t *testing.T, l *Ledger, want Wake) {
	t.Helper()
	if got := <-l.Wakes(); !slices.Equal(got, []Wake{want}) {
		t.Errorf("woken for %+v, want %+v", got, want)
	}
}

func drainWakes(l *Ledger) {
	for {
		select {
		case <-l.Wakes():
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

// Behind a pooler that takes LISTEN and delivers nothing, new work and results are found by asking.
func TestPollsWithoutNotifications(t *testing.T) {
	dsn := ledgertest.Postgres(t)
	p := ledgertest.NewProxy(t, dsn)
	p.Set(func(kind byte, _ []byte) ledgertest.Verdict {
		if kind == 'A' { // NotificationResponse
			return ledgertest.Swallow
		}
		return ledgertest.Forward
	})
	one := mustOpen(t, Config{URL: dsn, ListenURL: p.URL, Replica: "one"})
	two := mustOpen(t, Config{URL: dsn, Replica: "two"})
	company := mustCompany(t, one, "acme")
	added := mustAdd(t, two, newSend(company, 1))[0]
	checkWoken(t, one, Wake{Company: company, Lanes: Normal.only()})
	s := mustClaim(t, two, company, chooseFirst)
	waited := make(chan Send, 1)
	go func() {
		s, _ := one.Wait(t.Context(), added.Send.ID)
		waited <- s
	}()
	mustSettle(t, two, Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
	if got := <-waited; got.State != Sent {
		t.Errorf("waited for %+v", got)
	}
	if one.notify.listening.Load() {
		t.Error("it believes in notifications that never come")
	}
}

// Behind a pooler that gives every transaction to another session there are no prepared statements, no LISTEN and no lock of a
// session: replicas that start together migrate once, one by one, and send through it without any of them.
func TestPgBouncer(t *testing.T) {
	dsn := ledgertest.NewCluster(t).PgBouncer(t)
	var ledgers [3]*Ledger
	var logs [3]bytes.Buffer
	var opening errgroup.Group
	for i := range ledgers {
		opening.Go(func() (err error) {
			ledgers[i], err = Open(t.Context(), Config{URL: dsn, Replica: fmt.Sprint(i), Logger: slog.New(slog.NewTextHandler(&logs[i], nil))})
			return err
		})
	}
	if err := opening.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, l := range ledgers {
		defer l.Close()
	}
	company := mustCompany(t, ledgers[0], "acme")
	const sends = 60
	for n := range sends {
		mustAdd(t, ledgers[n%3], newSend(company, n))
	}
	for n := range sends {
		s := mustClaim(t, ledgers[n%3], company, chooseFirst)
		mustSettle(t, ledgers[n%3], Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
	}
	if totals, err := ledgers[0].Totals(t.Context()); err != nil || totals != (Totals{Accepted: sends, Sent: sends}) {
		t.Errorf("%+v, %v", totals, err)
	}
	if conn, err := ledgers[0].notify.beginListening(t.Context()); err == nil || !strings.Contains(err.Error(), "so new work is looked for every 50ms") {
		t.Errorf("it listens on %v: %v", conn, err)
	}
	if !strings.Contains(logs[0].String(), "behind a pooler") {
		t.Errorf("not said at the start: %s", &logs[0])
	}
	if err := ledgers[0].CheckInvariant(t.Context()); err != nil {
		t.Error(err)
	}
}

// The answer to a commit is lost, after it happened.
func TestLostCommits(t *testing.T) {
	dsn := ledgertest.Postgres(t)
	p := ledgertest.NewProxy(t, dsn)
	l := mustOpen(t, Config{URL: p.URL, ListenURL: dsn, Replica: "one"})
	company := mustCompany(t, l, "acme")

	p.CutCommits(1)
	first := mustAdd(t, l, newSend(company, 1))[0] // makes its queue, too
	p.CutCommits(1)
	second := mustAdd(t, l, newSend(company, 2))[0]
	if first.Joined || second.Joined {
		t.Errorf("joined itself: %+v, %+v", first, second)
	}
	p.CutCommits(1)
	s := mustClaim(t, l, company, chooseFirst)
	if s == nil || s.ID != first.Send.ID || string(s.Body) != "body 1" {
		t.Fatalf("claimed %+v", s)
	}
	p.CutCommits(1)
	if got := mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent}); got.State != Sent || got.ResultNo != 1 {
		t.Errorf("settled as %+v", got)
	}
	p.CutCommits(1)
	if got, ok, err := l.Expire(t.Context(), second.Send.ID); err != nil || !ok || got.State != Expired {
		t.Errorf("expired: %+v, %v, %v", got, ok, err)
	}
	if totals, err := l.Totals(t.Context()); err != nil || totals != (Totals{Accepted: 2, Sent: 1, Expired: 1}) {
		t.Errorf("%+v, %v", totals, err)
	}
}

// All answers of the round that committed a claim are lost, with the body among them.
func TestLostClaimKeepsItsBody(t *testing.T) {
	dsn := ledgertest.Postgres(t)
	p := ledgertest.NewProxy(t, dsn)
	l := mustOpen(t, Config{URL: p.URL, ListenURL: dsn, Replica: "one"})
	company := mustCompany(t, l, "acme")
	mustAdd(t, l, newSend(company, 1))
	lost := 0
	p.Set(func(kind byte, payload []byte) ledgertest.Verdict {
		if kind == 'D' && lost == 0 && bytes.Contains(payload, []byte("body 1")) {
			lost++
			return ledgertest.Cut
		}
		return ledgertest.Forward
	})
	s := mustClaim(t, l, company, chooseFirst)
	if s == nil || lost != 1 || string(s.Body) != "body 1" {
		t.Errorf("claimed %+v after %d cuts, want it with its body", s, lost)
	}
}

// The connection breaks before the commit happened: nothing was stored, and the call says so.
func TestBrokenBeforeTheCommit(t *testing.T) {
	dsn := ledgertest.Postgres(t)
	p := ledgertest.NewProxy(t, dsn)
	l := mustOpen(t, Config{URL: p.URL, ListenURL: dsn, Replica: "one"})
	company := mustCompany(t, l, "acme")
	mustAdd(t, l, newSend(company, 1))
	cutAnswers := func(tag string) {
		n := 1
		p.Set(func(kind byte, payload []byte) ledgertest.Verdict {
			if n > 0 && kind == 'C' && len(payload) > len(tag) && string(payload[:len(tag)]) == tag {
				n--
				return ledgertest.Cut
			}
			return ledgertest.Forward
		})
	}
	cutAnswers("INSERT")
	if _, err := l.Add(t.Context(), []NewSend{newSend(company, 2)}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("add: %v", err)
	}
	cutAnswers("BEGIN")
	if _, err := l.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst); !errors.Is(err, ErrUnavailable) {
		t.Errorf("claim: %v", err)
	}
	s := mustClaim(t, l, company, chooseFirst)
	if s == nil || s.Claim != 1 {
		t.Fatalf("claimed %+v", s)
	}
	cutAnswers("BEGIN")
	if _, err := l.Settle(t.Context(), Settlement{ID: s.ID, Claim: s.Claim, State: Sent}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("settle: %v", err)
	}
	checkState(t, l, s.ID, Sending)
	mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
	if totals, err := l.Totals(t.Context()); err != nil || totals != (Totals{Accepted: 1, Sent: 1}) {
		t.Errorf("%+v, %v", totals, err)
	}
}

func TestDatabaseGoesAndComesBack(t *testing.T) {
	cluster := ledgertest.NewCluster(t)
	l := mustOpen(t, Config{URL: cluster.URL, Replica: "one"})
	ctx, stop := context.WithCancel(t.Context())
	running := make(chan error, 1)
	go func() { running <- l.Run(ctx) }()
	company := mustCompany(t, l, "acme")
	id := mustAdd(t, l, newSend(company, 1))[0].Send.ID
	s := mustClaim(t, l, company, chooseFirst)
	waited := make(chan Send, 1)
	go func() {
		s, err := l.Wait(t.Context(), id)
		if err != nil {
			t.Error(err)
		}
		waited <- s
	}()

	if err := cluster.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Add(t.Context(), []NewSend{newSend(company, 2)}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("add: %v", err)
	}
	if _, err := l.Settle(t.Context(), Settlement{ID: id, Claim: s.Claim, State: Sent}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("settle: %v", err)
	}
	if _, err := l.Get(t.Context(), id); !errors.Is(err, ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if err := cluster.Start(); err != nil {
		t.Fatal(err)
	}
	mustSettle(t, l, Settlement{ID: id, Claim: s.Claim, State: Sent})
	if got := <-waited; got.State != Sent {
		t.Errorf("waited for %+v", got)
	}
	stop()
	if err := <-running; err != nil {
		t.Error(err)
	}
}

// Adds to many queues, and settles whose recipients have sends waiting in other queues, lock rows in one order: who meets
// waits for milliseconds, and nobody for PostgreSQL to find out that they wait for each other.
func TestAddsAndSettlesDoNotDeadlock(t *testing.T) {
	one, two, _ := openTwo(t)
	replicas := []*Ledger{one, two}
	company := mustCompany(t, replicas[0], "acme")
	const callers, rounds = 4, 300
	var working errgroup.Group
	for r, l := range replicas {
		for part := range 3 {
			working.Go(func() error {
				rng := rand.New(rand.NewPCG(uint64(r), uint64(part)))
				for round := range rounds {
					var sends []NewSend
					for _, c := range rng.Perm(callers)[:2] {
						n := newSend(company, 1) // all to one, so that nearly all are parked and the queues are off
						n.Caller = fmt.Sprint("caller-", c)
						if rng.IntN(4) == 0 {
							n.Final = &Final{Reason: "INVALID_FIELD"}
						}
						sends = append(sends, n)
					}
					if _, err := l.Add(t.Context(), sends); err != nil {
						return fmt.Errorf("add %d: %w", round, err)
					}
				}
				return nil
			})
		}
		working.Go(func() error {
			for range 4 * rounds {
				claims, err := l.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst)
				if err != nil {
					return err
				}
				if s := claims[0].Send; s != nil {
					if _, err := l.Settle(t.Context(), Settlement{ID: s.ID, Claim: s.Claim, State: Sent}); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	if err := working.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, l := range replicas {
		if n := l.deadlocks.Load(); n != 0 {
			t.Errorf("%d deadlocks", n)
		}
	}
	serveAll(t, replicas[0], company, 10_000)
	if err := replicas[0].CheckInvariant(t.Context()); err != nil {
		t.Error(err)
	}
}

// Claims look at many companies at once, and pass over much: what is empty they switch off, what is late they let
// expire. Adds of many companies switch the same shares on meanwhile.
func TestAddsAndClaimsOfManyCompaniesDoNotDeadlock(t *testing.T) {
	one, two, _ := openTwo(t)
	replicas := []*Ledger{one, two}
	var companies []int64
	for i := range 12 {
		companies = append(companies, mustCompany(t, one, fmt.Sprint("company-", i)))
	}
	const callers, rounds = 3, 150
	var working errgroup.Group
	for r, l := range replicas {
		for part := range 3 {
			working.Go(func() error {
				rng := rand.New(rand.NewPCG(uint64(r), uint64(part)))
				for round := range rounds {
					var sends []NewSend
					for i, c := range rng.Perm(len(companies))[:3] {
						n := newSend(companies[c], rng.IntN(1000))
						n.Caller = fmt.Sprint("caller-", rng.IntN(callers))
						if i == 0 && rng.IntN(2) == 0 {
							n.ExpireIn = time.Microsecond
						}
						sends = append(sends, n)
					}
					if _, err := l.Add(t.Context(), sends); err != nil {
						return fmt.Errorf("add %d: %w", round, err)
					}
				}
				return nil
			})
		}
		for range 2 {
			working.Go(func() error {
				for range 4 * rounds {
					claims, err := l.Claim(t.Context(), companies, time.Minute, chooseFirst)
					if err != nil {
						return fmt.Errorf("claim: %w", err)
					}
					for _, c := range claims {
						if c.Send == nil {
							continue
						}
						if _, err := l.Settle(t.Context(), Settlement{ID: c.Send.ID, Claim: c.Send.Claim, State: Sent}); err != nil {
							return fmt.Errorf("settle: %w", err)
						}
					}
				}
				return nil
			})
		}
	}
	if err := working.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, l := range replicas {
		if n := l.deadlocks.Load(); n != 0 {
			t.Errorf("%d deadlocks", n)
		}
	}
	for _, company := range companies {
		serveAll(t, one, company, 10_000)
	}
	if err := one.CheckInvariant(t.Context()); err != nil {
		t.Error(err)
	}
}
