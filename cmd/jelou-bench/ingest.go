package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

var ingestBenchmark = benchmark{
	name:  "ingest",
	short: "A batch of a million items: items a second, memory, and claims while a million wait",
	long: `
One batch of 1,000,000 items through one StreamBatch, from the first item until all are acknowledged as durable; then the
server's resident memory while all of them wait (the company's allowance is one request a minute). The same rows are
then inserted by the database's driver alone into an empty ledger's table with all its indexes and checks, one prepared INSERT a row
and 1,000 rows a commit: the ratio is the facade's share of that.

Then the ledger is opened without a server, and claims are timed one at a time, each followed by its settle: with the million
waiting; with 10,000 more at the front whose recipient is busy; with 10,000 paused batches beside; and while another
connection holds a snapshot from before as many claims and settles as five a second make in an hour. In the same run
the same with a thousand waiting.

Fields (SQLite; the same with postgres_ in front): items_per_second, driver_ratio, rss_mib (with all waiting), claim_p99_ms (the
worst of the cases with a million), claim_thousand_p99_ms. items.
--quick: 30,000 items, 300 busy and paused heads, 600 claims under the snapshot.`,
	run: ingest,
}

// ingestPlan is how much is measured.
type ingestPlan struct {
	items, heads int
	claims       int // timed of each case
	snapshot     int // claims under the snapshot
}

func ingest(b *bench) error {
	plan := pick(b, ingestPlan{1_000_000, 10_000, 3000, 18_000}, ingestPlan{30_000, 300, 200, 600})
	b.found.set("items", plan.items)
	ingested := b.found.table(fmt.Sprintf("A batch of %d items", plan.items),
		"ledger", "items/s", "driver rows/s", "ratio", "RSS empty MiB", "RSS at most", "RSS with all waiting")
	claimed := b.found.table("One claim at a time, ms", "ledger", "waiting", "case", "claims", "p50", "p99", "largest")
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	for _, name := range []string{"sqlite", "postgres"} {
		s, err := b.newStore(name, p)
		if err != nil {
			return err
		}
		if err := b.ingestOn(s, plan, ingested); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := b.claimsOn(s, plan, claimed); err != nil {
			return fmt.Errorf("%s: claims: %w", name, err)
		}
	}
	return nil
}

// store is a database of one kind: a ledger's, and others like it.
type store struct {
	b      *bench
	name   string
	prefix string // of fields
	p      *postgres
	ledger ledger.Config
}

func (b *bench) newStore(name string, p *postgres) (*store, error) {
	s := &store{b: b, name: name, p: p}
	if name == "postgres" {
		s.prefix = "postgres_"
	}
	var err error
	s.ledger, err = s.empty()
	return s, err
}

// empty is a new database of this kind.
func (s *store) empty() (c ledger.Config, err error) {
	c.Replica = "jelou-bench"
	if s.name == "sqlite" {
		c.Path = s.b.path("ledger.db")
		return c, nil
	}
	c.URL, err = s.p.database()
	return c, err
}

// connect opens a database as anybody would: nothing of the ledger is between.
func connect(c ledger.Config) (*sql.DB, error) {
	q := url.Values{"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "cache_size(-65536)"}}
	return sql.Open("sqlite", "file:"+c.Path+"?"+q.Encode())
}

func (b *bench) ingestOn(s *store, plan ingestPlan, t *table) error {
	shops := busy(tenants("shop", 1), 1, time.Minute)
	sim, err := b.startSimulatorFor(jelousim.Config{}, shops...)
	if err != nil {
		return err
	}
	defer sim.kill()
	f, err := b.startFleet(0, s.ledger.URL, nil, shops...)
	if err != nil {
		return err
	}
	if s.ledger.URL == "" {
		s.ledger.Path = f.config.Ledger.Path
	}
	server, err := b.startFacade(f.path)
	if err != nil {
		return err
	}
	empty, err := server.resident()
	if err != nil {
		return err
	}
	b.progress("%s: %d items", s.name, plan.items)
	took, most, err := b.uploadAll(server, shops[0], plan.items)
	if err != nil {
		return err
	}
	if err := b.sleep(pick(b, 10*time.Second, time.Second)); err != nil { // as it is when nothing comes any more
		return err
	}
	full, err := server.resident()
	if err != nil {
		return err
	}
	server.stop()
	b.progress("%s: the same rows by the driver", s.name)
	raw, err := s.insertAgain()
	if err != nil {
		return fmt.Errorf("by the driver: %w", err)
	}
	speed := float64(plan.items) / took.Seconds()
	t.add(s.name, speed, raw, speed/raw, empty, most, full)
	b.found.set(s.prefix+"items_per_second", rounded(speed, 0))
	b.found.set(s.prefix+"driver_ratio", rounded(speed/raw, 3))
	b.found.set(s.prefix+"rss_mib", rounded(full, 1))
	b.found.atMost(s.prefix+"rss_mib", 150)
	return nil
}

// uploadAll uploads a batch and gives the time from the first item to the acknowledgement of the last, and the server's
// largest memory meanwhile.
func (b *bench) uploadAll(server *facade, t *tenant, items int) (took time.Duration, most float64, err error) {
	s, err := server.batches.StreamBatch(b.ctx)
	if err != nil {
		return 0, 0, err
	}
	open := &facadev1.StreamBatchRequest_Open{Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: &facadev1.BatchSpec{BotId: t.bot()}}}
	_ = s.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: open}}) // Recv says what went wrong
	if _, err := s.Recv(); err != nil {
		return 0, 0, err
	}
	start := time.Now()
	go func() {
		for sequence := 1; sequence <= items; sequence++ {
			user := t.user()
			item := &facadev1.BatchItem{
				Sequence: int32(sequence), UserId: user,
				Content: &facadev1.BatchItem_Message{Message: text("Estimado cliente " + user + ", su pedido salió de bodega y llega hoy entre las 14 y las 17 horas.")},
			}
			if s.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: item}}) != nil {
				return
			}
		}
		_ = s.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Seal_{Seal: &facadev1.StreamBatchRequest_Seal{ItemCount: int32(items)}}})
	}()
	looked := time.Time{}
	for {
		m, err := s.Recv()
		if err != nil {
			return 0, 0, err
		}
		if time.Since(looked) > 250*time.Millisecond {
			looked = time.Now()
			now, err := server.resident()
			if err != nil {
				return 0, 0, err
			}
			most = max(most, now)
		}
		if ack := m.GetAck(); ack != nil && int(ack.ThroughSequence) == items {
			took = time.Since(start)
			return took, most, s.CloseSend()
		}
	}
}

// rawCommit is how many rows the driver inserts before it commits.
const rawCommit = 1000

// insertAgain inserts the ledger's sends into an empty ledger's table by the driver alone and gives the rows a second. Only
// the insertion is timed.
func (s *store) insertAgain() (float64, error) {
	to, err := s.empty()
	if err != nil {
		return 0, err
	}
	l, err := ledger.Open(s.b.ctx, to) // which makes the tables
	if err != nil {
		return 0, err
	}
	if err := l.Close(); err != nil {
		return 0, err
	}
	copying := copySQLite
	if s.name == "postgres" {
		copying = copyPostgres
	}
	rows, took, err := copying(s.b.ctx, s.ledger, to)
	if err != nil {
		return 0, err
	}
	return float64(rows) / took.Seconds(), nil
}

// placeholders are so many for an INSERT.
func placeholders(n int, form func(int) string) string {
	var all []string
	for i := range n {
		all = append(all, form(i+1))
	}
	return strings.Join(all, ", ")
}

func copySQLite(ctx context.Context, from, to ledger.Config) (n int, took time.Duration, err error) {
	source, err := connect(from)
	if err != nil {
		return 0, 0, err
	}
	defer source.Close()
	sink, err := connect(to)
	if err != nil {
		return 0, 0, err
	}
	defer sink.Close()
	rows, err := source.QueryContext(ctx, "SELECT * FROM send")
	if err != nil {
		return 0, 0, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return 0, 0, err
	}
	conn, err := sink.Conn(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	insert, err := conn.PrepareContext(ctx, "INSERT INTO send VALUES ("+placeholders(len(columns), func(int) string { return "?" })+")")
	if err != nil {
		return 0, 0, err
	}
	defer insert.Close()
	for more := true; more; {
		var chunk [][]any
		for len(chunk) < rawCommit && more {
			if more = rows.Next(); more {
				values, into := make([]any, len(columns)), make([]any, len(columns))
				for i := range values {
					into[i] = &values[i]
				}
				if err := rows.Scan(into...); err != nil {
					return 0, 0, err
				}
				chunk = append(chunk, values)
			}
		}
		start := time.Now()
		if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
			return 0, 0, err
		}
		for _, values := range chunk {
			if _, err := insert.ExecContext(ctx, values...); err != nil {
				return 0, 0, err
			}
		}
		if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
			return 0, 0, err
		}
		n, took = n+len(chunk), took+time.Since(start)
	}
	return n, took, rows.Err()
}

func copyPostgres(ctx context.Context, from, to ledger.Config) (n int, took time.Duration, err error) {
	err = onDatabase(ctx, from.URL, func(source *pgx.Conn) error {
		return onDatabase(ctx, to.URL, func(sink *pgx.Conn) error {
			rows, err := source.Query(ctx, "SELECT * FROM send")
			if err != nil {
				return err
			}
			defer rows.Close()
			insert := "INSERT INTO send VALUES (" + placeholders(len(rows.FieldDescriptions()), func(i int) string { return fmt.Sprint("$", i) }) + ")"
			for more := true; more; {
				var batch pgx.Batch
				batch.Queue("BEGIN")
				for batch.Len() <= rawCommit && more {
					if more = rows.Next(); more {
						values, err := rows.Values()
						if err != nil {
							return err
						}
						batch.Queue(insert, values...)
					}
				}
				batch.Queue("COMMIT")
				start := time.Now()
				if err := sink.SendBatch(ctx, &batch).Close(); err != nil {
					return err
				}
				n, took = n+batch.Len()-2, took+time.Since(start)
			}
			return rows.Err()
		})
	})
	return n, took, err
}

// claimer claims from one company of a ledger without a server.
type claimer struct {
	ctx     context.Context
	l       *ledger.Ledger
	company int64
	took    []float64 // ms of each claim
}

// claimsOn times claims: with a thousand waiting in a new ledger, and with all that the upload left in the other.
func (b *bench) claimsOn(s *store, plan ingestPlan, t *table) error {
	few, err := s.empty()
	if err != nil {
		return err
	}
	thousand, err := b.claimCases(s, few, "1,000", ingestPlan{items: 1000, heads: plan.heads, claims: plan.claims, snapshot: plan.snapshot}, true, t)
	if err != nil {
		return err
	}
	worst, err := b.claimCases(s, s.ledger, fmt.Sprint(plan.items), plan, false, t)
	if err != nil {
		return err
	}
	b.found.set(s.prefix+"claim_p99_ms", rounded(worst, 3))
	b.found.atMost(s.prefix+"claim_p99_ms", 5)
	b.found.set(s.prefix+"claim_thousand_p99_ms", rounded(thousand, 3))
	return nil
}

// claimCases times the cases on one ledger, one after the other, and gives the worst p99. Where keep is set, as many are added as
// were claimed, so that a thousand stay a thousand.
func (b *bench) claimCases(s *store, config ledger.Config, waiting string, plan ingestPlan, keep bool, t *table) (worst float64, err error) {
	l, err := ledger.Open(b.ctx, config)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	c := &claimer{ctx: b.ctx, l: l}
	if c.company, err = l.Company(b.ctx, "shop-0"); err != nil {
		return 0, err
	}
	refill := func(int) error { return nil }
	if keep {
		main, err := c.batch(ledger.Bulk, false)
		if err != nil {
			return 0, err
		}
		if err := c.fill(main, plan.items, nil); err != nil {
			return 0, err
		}
		refill = func(n int) error { return c.fill(main, n, nil) }
	}
	for _, step := range []struct {
		name    string
		claims  int
		prepare func() (release func() error, err error)
	}{
		{"", plan.claims, nil},
		{fmt.Sprintf("%d busy heads", plan.heads), plan.claims, func() (func() error, error) { return nil, c.busyHeads(plan.heads) }},
		{fmt.Sprintf("%d paused heads", plan.heads), plan.claims, func() (func() error, error) { return nil, c.pausedHeads(plan.heads) }},
		{"old snapshot", plan.snapshot, func() (func() error, error) { return s.snapshot(config) }},
	} {
		b.progress("%s: claims with %s waiting, %s", s.name, waiting, step.name)
		release := func() error { return nil }
		if step.prepare != nil {
			r, err := step.prepare()
			if err != nil {
				return 0, err
			}
			if r != nil {
				release = r
			}
		}
		c.took = nil
		runtime.GC() // of what was prepared
		for done := 0; done < step.claims; done += 500 {
			n := min(500, step.claims-done)
			if err := c.claim(n); err != nil {
				return 0, err
			}
			if err := refill(n); err != nil {
				return 0, err
			}
		}
		if err := release(); err != nil {
			return 0, err
		}
		timed := c.took[max(len(c.took)-plan.claims, 0):] // under the snapshot the last ones, when it is oldest
		p99 := percentile(timed, 99)
		t.add(s.name, waiting, step.name, len(timed), percentile(timed, 50), p99, percentile(timed, 100))
		worst = max(worst, p99)
	}
	return worst, nil
}

// lease of the claims; longer than anything here takes.
const benchLease = time.Hour

// claim claims and settles so many sends.
func (c *claimer) claim(n int) error {
	for n > 0 {
		start := time.Now()
		claims, err := c.l.Claim(c.ctx, []int64{c.company}, benchLease, firstHead)
		if err != nil {
			return err
		}
		c.took = append(c.took, ms(time.Since(start)))
		send := claims[0].Send
		if send == nil {
			if claims[0].More {
				continue
			}
			return fmt.Errorf("nothing to claim: %+v", claims[0])
		}
		if _, err := c.l.Settle(c.ctx, ledger.Settlement{ID: send.ID, Claim: send.Claim, State: ledger.Sent, Result: make([]byte, 60)}); err != nil {
			return err
		}
		n--
	}
	return nil
}

// firstHead claims the most urgent head, and serves its share and queue in their fair order.
func firstHead(v ledger.View) ledger.Choice {
	if len(v.Heads) == 0 {
		return ledger.Choice{}
	}
	h := v.Heads[0]
	serve := func(t ledger.Tag) ledger.Tag {
		from := max(t.Virtual, t.Start)
		return ledger.Tag{Start: from + (1<<24)/int64(t.Weight), Virtual: from}
	}
	return ledger.Choice{Lane: h.Send.Lane, Pace: make([]byte, 120), Share: serve(h.Share), Queue: serve(h.Queue)}
}

// openBatch is a batch that takes items.
type openBatch struct {
	id       ledger.QueueID
	lane     ledger.Lane
	uploader int64
	next     int64
}

const benchCaller = "anonymous" // as on a server without authentication

func (c *claimer) batch(lane ledger.Lane, paused bool) (*openBatch, error) {
	made, _, err := c.l.CreateBatch(c.ctx, ledger.NewBatch{Company: c.company, Lane: lane, Caller: benchCaller, Bot: "shop-0", Paused: paused})
	if err != nil {
		return nil, err
	}
	_, uploader, err := c.l.OpenBatch(c.ctx, made.ID, "")
	return &openBatch{made.ID, lane, uploader, 1}, err
}

// fill adds items; recipient nil is a new one for each.
func (c *claimer) fill(o *openBatch, n int, recipient func() string) error {
	for n > 0 {
		sends := make([]ledger.NewSend, min(n, rawCommit))
		for i := range sends {
			to := fmt.Sprintf("59391%07d", o.next)
			if recipient != nil {
				to = recipient()
			}
			sends[i] = ledger.NewSend{
				Company: c.company, Lane: o.lane, Caller: benchCaller, Bot: "shop-0", Recipient: to, Kind: "text",
				Body: make([]byte, 100), Hash: make([]byte, 32), Queue: o.id.Queue, Pos: o.next, Uploader: o.uploader,
			}
			o.next++
		}
		added, err := c.l.Add(c.ctx, sends)
		if err != nil {
			return err
		}
		for _, a := range added {
			if a.Err != nil {
				return a.Err
			}
		}
		n -= len(sends)
	}
	return nil
}

// busyHeads puts sends at the front whose recipient has one under way.
func (c *claimer) busyHeads(n int) error {
	const busy = "593990000000"
	o, err := c.batch(ledger.Normal, false)
	if err != nil {
		return err
	}
	if err := c.fill(o, n+1, func() string { return busy }); err != nil {
		return err
	}
	// The first is claimed and never settled; whatever the order of queues, it is the next or soon one of them.
	for {
		claims, err := c.l.Claim(c.ctx, []int64{c.company}, benchLease, firstHead)
		if err != nil {
			return err
		}
		send := claims[0].Send
		switch {
		case send == nil:
			return errors.New("no busy head could be claimed")
		case send.Recipient == busy:
			return nil
		}
		if _, err := c.l.Settle(c.ctx, ledger.Settlement{ID: send.ID, Claim: send.Claim, State: ledger.Sent}); err != nil {
			return err
		}
	}
}

// pausedHeads makes paused batches with one item each, all before what waits in their lane.
func (c *claimer) pausedHeads(n int) error {
	var making errgroup.Group
	making.SetLimit(8)
	for range n {
		making.Go(func() error {
			o, err := c.batch(ledger.Normal, true)
			if err != nil {
				return err
			}
			return c.fill(o, 1, nil)
		})
	}
	return making.Wait()
}

// snapshot holds a reading transaction open, so that no version of a row that it may see can be cleaned away.
func (s *store) snapshot(c ledger.Config) (release func() error, err error) {
	if s.name == "postgres" {
		conn, err := pgx.Connect(s.b.ctx, c.URL)
		if err != nil {
			return nil, err
		}
		release = func() error { return conn.Close(context.WithoutCancel(s.b.ctx)) }
		for _, statement := range []string{"BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1 FROM company"} {
			if _, err := conn.Exec(s.b.ctx, statement); err != nil {
				return nil, errors.Join(err, release())
			}
		}
		return release, nil
	}
	db, err := connect(c)
	if err != nil {
		return nil, err
	}
	tx, err := db.BeginTx(s.b.ctx, nil)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	var n int
	if err := tx.QueryRowContext(s.b.ctx, "SELECT count(*) FROM company").Scan(&n); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return func() error { return errors.Join(tx.Rollback(), db.Close()) }, nil
}
