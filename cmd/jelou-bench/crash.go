package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

var crashBenchmark = benchmark{
	name:  "crash",
	short: "kill -9 at random moments: what was accepted, what was lost, what was sent twice",
	long: `
20,000 sends (half of them items of batches over streams; the others single: waiting with and without request_id, queued,
scheduled, some cancelled, some with little time) while processes are killed 50 times at random moments and started
again: one process on SQLite, and one of three replicas on PostgreSQL, both at the same time, each with its own sends.
Jelou loses 5% of its answers after the send took effect, resets 2% before it, and answers 502 to 1%. Attempts are
bounded by 1 s, so a lease is 6 s; ten companies with 15 requests a second each, so that 20,000 sends are
through in minutes and some wait. Clients with a request_id call again until they are answered. At the end the ledger's rows are held
against what clients were told and what the simulator saw.

Fields: accepted (rows in the ledger), and of them sent, failed, unknown, expired, cancelled, waiting (when all is quiet);
lost (acknowledged to a client, and not in the ledger or without final state; a batch's item without a result), doubled (sends
that Jelou accepted more than once), contradicted (clients were told what the ledger does not say, an item with two
results, counts that do not add up, sends at Jelou that the ledger calls neither sent nor unknown), kills, http_429,
resume_p99_ms (from opening a cut stream again on a process that is there to its first answer), restart_p99_ms
(from a kill to a new process that serves, in which its ledger is recovered).
--quick: 6 kills over 1,500 sends each. Both ledgers together in each field; the table has them apart.`,
	run: crash,
}

// crashPlan is how much a campaign does.
type crashPlan struct {
	sends, kills int
	between      time.Duration // kills, on average
	items        int           // of a batch
	quiet        time.Duration // to wait for at most
}

func crash(b *bench) error {
	plan := pick(b,
		crashPlan{sends: 20_000, kills: 50, between: 5 * time.Second, items: 500, quiet: 2 * time.Minute},
		crashPlan{sends: 1500, kills: 6, between: 3 * time.Second, items: 75, quiet: 20 * time.Second})
	sums, err := b.crashBoth(plan)
	if err != nil {
		return err
	}
	t := b.found.table(fmt.Sprintf("%d kills over %d sends on each ledger", plan.kills, plan.sends),
		"ledger", "replicas", "accepted", "sent", "failed", "unknown", "expired", "cancelled", "waiting", "lost", "doubled", "contradicted", "429", "reopened", "resume p99 ms", "restart p99 ms")
	all := account{}
	for _, a := range sums {
		t.add(a.ledger, a.replicas, a.accepted, a.sent, a.failed, a.unknown, a.expired, a.cancelled, a.waiting, a.lost, a.doubled, len(a.contradicted), a.throttled,
			len(a.resumes), percentile(a.resumes, 99), percentile(a.restarts, 99))
		all.add(a)
	}
	all.set(&b.found)
	return nil
}

// crashBoth runs a campaign on each kind of ledger at the same time.
func (b *bench) crashBoth(plan crashPlan) ([]*account, error) {
	p, err := b.startPostgres()
	if err != nil {
		return nil, err
	}
	url, err := p.database()
	if err != nil {
		return nil, err
	}
	var campaigns []*campaign
	for _, c := range []*campaign{{account: account{ledger: "sqlite", replicas: 1}}, {account: account{ledger: "postgres", replicas: 3}, url: url}} {
		c.b, c.plan, c.rng = b, plan, rand.New(rand.NewPCG(b.rng.Uint64(), 2))
		if err := c.start(); err != nil {
			return nil, err
		}
		campaigns = append(campaigns, c)
	}
	both, ctx := errgroup.WithContext(b.ctx)
	var sums []*account
	for _, c := range campaigns {
		sums = append(sums, &c.account)
		both.Go(func() error {
			if err := c.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", c.ledger, err)
			}
			return nil
		})
	}
	return sums, both.Wait()
}

// account is what became of a campaign's sends.
type account struct {
	ledger   string
	replicas int

	accepted, sent, failed, unknown, expired, cancelled, waiting int
	lost, doubled, throttled, kills                              int
	contradicted                                                 []string
	resumes, restarts                                            []float64
}

func (a *account) add(o *account) {
	a.accepted += o.accepted
	a.sent += o.sent
	a.failed += o.failed
	a.unknown += o.unknown
	a.expired += o.expired
	a.cancelled += o.cancelled
	a.waiting += o.waiting
	a.lost += o.lost
	a.doubled += o.doubled
	a.throttled += o.throttled
	a.kills += o.kills
	a.contradicted = append(a.contradicted, o.contradicted...)
	a.resumes = append(a.resumes, o.resumes...)
	a.restarts = append(a.restarts, o.restarts...)
}

func (a *account) set(f *findings) {
	f.set("accepted", a.accepted)
	f.set("sent", a.sent)
	f.set("failed", a.failed)
	f.set("unknown", a.unknown)
	f.set("expired", a.expired)
	f.set("cancelled", a.cancelled)
	f.set("waiting", a.waiting)
	f.set("lost", a.lost)
	f.set("doubled", a.doubled)
	f.set("contradicted", len(a.contradicted))
	for _, field := range []string{"waiting", "lost", "doubled", "contradicted"} {
		f.mustBe(field, 0)
	}
	f.set("kills", a.kills)
	f.set("http_429", a.throttled)
	f.atMost("http_429", 0)
	f.set("resume_p99_ms", rounded(percentile(a.resumes, 99), 1))
	f.atMost("resume_p99_ms", 200)
	f.set("restart_p99_ms", rounded(percentile(a.restarts, 99), 1))
}

// campaign is the load on one ledger whose processes are killed.
type campaign struct {
	account
	b       *bench
	plan    crashPlan
	url     string // of PostgreSQL; empty for SQLite
	rng     *rand.Rand
	tenants []*tenant
	sim     *simulator
	fleet   *fleet
	limit   *rate.Limiter // of all that clients send

	calls   []*call
	uploads []*upload
}

// attemptTimeout of a campaign's companies; a lease is 5 s longer.
const attemptTimeout = time.Second

func (c *campaign) start() (err error) {
	c.tenants = busy(tenants(c.ledger, 10), 15, time.Second)
	if c.sim, err = c.b.startSimulatorFor(jelousim.Config{
		Processing: jelousim.Processing{Min: jelousim.Duration(5 * time.Millisecond), Max: jelousim.Duration(60 * time.Millisecond)},
		Faults: []jelousim.Fault{
			{Kind: jelousim.FaultReset, Accepted: true, Probability: 0.05},
			{Kind: jelousim.FaultReset, Probability: 0.02},
			{Kind: jelousim.FaultBadGateway, Probability: 0.01},
		},
	}, c.tenants...); err != nil {
		return err
	}
	c.fleet, err = c.b.startFleet(c.replicas, c.url, func(config *configv1.Config) {
		for _, company := range config.Companies {
			company.AttemptTimeout = durationpb.New(attemptTimeout)
		}
	}, c.tenants...)
	return err
}

func (c *campaign) run(ctx context.Context) error {
	long := time.Duration(c.plan.kills) * c.plan.between
	c.limit = rate.NewLimiter(rate.Limit(float64(c.plan.sends)/long.Seconds()), 20)
	load, ctx := errgroup.WithContext(ctx)
	c.upload(ctx, load)
	c.call(ctx, load)
	load.Go(func() error { return c.killing(ctx) })
	if err := load.Wait(); err != nil {
		return err
	}
	c.b.progress("%s: all sends are in, waiting for quiet", c.ledger)
	if err := c.settle(); err != nil {
		return err
	}
	if err := c.count(); err != nil {
		return err
	}
	c.fleet.stop()
	return c.invariant()
}

// killing kills one process after the other, each at a random moment, whatever it is doing.
func (c *campaign) killing(ctx context.Context) error {
	for range c.plan.kills {
		if err := sleep(ctx, c.plan.between/5+time.Duration(c.rng.Int64N(int64(c.plan.between*8/5)))); err != nil {
			return err
		}
		killed := time.Now()
		if err := c.fleet.restart(c.rng.IntN(c.replicas), syscall.SIGKILL); err != nil {
			return err
		}
		c.restarts = append(c.restarts, ms(time.Since(killed)))
		c.kills++
		if c.kills%10 == 0 {
			c.b.progress("%s: %d kills", c.ledger, c.kills)
		}
	}
	return nil
}

// uploaders is how many batches are uploaded at the same time.
const uploaders = 8

// upload sends half of the sends as batches.
func (c *campaign) upload(ctx context.Context, load *errgroup.Group) {
	batches := c.plan.sends / 2 / c.plan.items
	for i := range batches {
		t := c.tenants[i%len(c.tenants)]
		c.uploads = append(c.uploads, &upload{
			spec:  &facadev1.BatchSpec{BotId: t.bot(), RequestId: fmt.Sprintf("batch-%d", i)},
			items: c.plan.items, limit: c.limit,
			item: func(sequence int) *facadev1.BatchItem { return itemOf(fmt.Sprintf("%s %d", c.ledger, i), sequence) },
			dial: func() (*link, error) {
				return &link{batches: c.fleet.any().batches, cut: func() {}, close: func() {}}, nil
			},
		})
	}
	var next atomic.Int64
	for range min(uploaders, batches) {
		load.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= batches {
					return nil
				}
				if err := c.uploads[i].run(ctx); err != nil {
					return err
				}
			}
		})
	}
}

// itemOf is an item of a batch: always the same for its sequence. Some are bad and cost only themselves, and
// recipients come again, so that sends wait for each other.
func itemOf(batch string, sequence int) *facadev1.BatchItem {
	user := fmt.Sprintf("5938%07d", sequence%97)
	if sequence%50 == 0 {
		user = "no recipient"
	}
	return &facadev1.BatchItem{
		Sequence: int32(sequence), UserId: user,
		Content: &facadev1.BatchItem_Message{Message: text(fmt.Sprintf("Novedad %d de %s", sequence, batch))},
	}
}

// call is one single send as its client knows it.
type call struct {
	kind    *callKind
	request *facadev1.SendMessageRequest
	sendID  string // empty: the client never heard of it
	told    string // SENT, QUEUED or the error's reason; empty: nothing
}

// callKind is a way of calling, and how many of so many calls are of it.
type callKind struct {
	name   string
	share  int
	id     bool
	cancel bool
	fill   func(*facadev1.SendMessageRequest)
}

func queued(r *facadev1.SendMessageRequest) { r.Mode = facadev1.SendOptions_QUEUE }

var callKinds = []callKind{
	{name: "waiting with request_id", share: 5, id: true, fill: func(*facadev1.SendMessageRequest) {}},
	{name: "waiting without request_id", share: 5, fill: func(*facadev1.SendMessageRequest) {}},
	{name: "urgent", share: 2, id: true, fill: func(r *facadev1.SendMessageRequest) { r.Options.Lane = facadev1.SendOptions_URGENT }},
	{name: "queued", share: 5, id: true, fill: queued},
	{name: "queued, failed when unknown", share: 1, id: true, fill: func(r *facadev1.SendMessageRequest) {
		queued(r)
		r.Options.OnUnknown = facadev1.SendOptions_FAIL
	}},
	{name: "scheduled", share: 1, id: true, fill: scheduled},
	{name: "scheduled and cancelled", share: 1, id: true, cancel: true, fill: scheduled},
	{name: "with little time", share: 1, id: true, fill: func(r *facadev1.SendMessageRequest) {
		queued(r)
		r.Options.ExpireTime = timestamppb.New(time.Now().Add(1500 * time.Millisecond))
	}},
}

func scheduled(r *facadev1.SendMessageRequest) {
	queued(r)
	r.Options.ScheduleTime = timestamppb.New(time.Now().Add(3 * time.Second))
}

// callers is how many single calls run at the same time.
const callers = 24

// call sends the other half as single calls.
func (c *campaign) call(ctx context.Context, load *errgroup.Group) {
	var kinds []*callKind
	for i := range callKinds {
		kinds = append(kinds, slices.Repeat([]*callKind{&callKinds[i]}, callKinds[i].share)...)
	}
	for i := range c.plan.sends - c.plan.sends/2 {
		t := c.tenants[c.rng.IntN(len(c.tenants))]
		s := &call{kind: kinds[c.rng.IntN(len(kinds))], request: &facadev1.SendMessageRequest{
			BotId: t.bot(), UserId: fmt.Sprintf("5937%07d", c.rng.IntN(500)), Message: text(fmt.Sprintf("Aviso %d de %s", i, c.ledger)), Options: &facadev1.SendOptions{},
		}}
		if s.kind.id {
			s.request.RequestId = fmt.Sprintf("call-%d", i)
		}
		c.calls = append(c.calls, s)
	}
	var next atomic.Int64
	for range callers {
		load.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(c.calls) {
					return nil
				}
				if err := c.limit.Wait(ctx); err != nil {
					return err
				}
				c.calls[i].kind.fill(c.calls[i].request)
				if err := c.calls[i].send(ctx, c.fleet); err != nil {
					return err
				}
			}
		})
	}
}

// send calls until it is answered, or once where there is no request_id.
func (s *call) send(ctx context.Context, f *fleet) error {
	for {
		err := s.once(ctx, f)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			break
		}
		fail := failureOf(err)
		s.sendID = fail.sendID
		// Where the time that the call gave itself is over, it does not call again.
		if !s.kind.id || !fail.mayRepeat() || fail.code == codes.InvalidArgument {
			s.told = fail.reason
			break
		}
		if err := sleep(ctx, time.Duration(20+rand.IntN(100))*time.Millisecond); err != nil {
			return err
		}
	}
	if !s.kind.cancel || s.sendID == "" {
		return nil
	}
	// Whether it was in time is in the ledger.
	_, _ = facadev1.NewSendServiceClient(f.any().conn).CancelSend(ctx, &facadev1.CancelSendRequest{SendId: s.sendID})
	return nil
}

func (s *call) once(ctx context.Context, f *fleet) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	answer, err := f.any().messages.SendMessage(ctx, s.request)
	if err != nil {
		return err
	}
	s.sendID, s.told = answer.Send.SendId, answer.Send.State.String()
	return nil
}

// settle waits until nothing in the ledger waits any more. What waits for too long is counted.
func (c *campaign) settle() error {
	ctx, cancel := context.WithTimeoutCause(c.b.ctx, c.plan.quiet, errors.New("it does not become quiet"))
	defer cancel()
	err := c.fleet.any().quiet(ctx)
	if err != nil && ctx.Err() != nil && c.b.ctx.Err() == nil {
		c.b.progress("%s: %v", c.ledger, err)
		return nil
	}
	return err
}

// rows are all sends of the ledger.
func (c *campaign) rows() ([]*facadev1.Send, error) {
	var all []*facadev1.Send
	sends := facadev1.NewSendServiceClient(c.fleet.any().conn)
	for r := (&facadev1.ListSendsRequest{PageSize: 1000}); ; {
		page, err := sends.ListSends(c.b.ctx, r)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Sends...)
		if r.PageToken = page.NextPageToken; r.PageToken == "" {
			return all, nil
		}
	}
}

func (c *campaign) contradict(format string, args ...any) {
	c.contradicted = append(c.contradicted, fmt.Sprintf(format, args...))
	if len(c.contradicted) <= 10 {
		c.b.progress("%s: CONTRADICTED %s", c.ledger, c.contradicted[len(c.contradicted)-1])
	}
}

func (c *campaign) lose(format string, args ...any) {
	if c.lost++; c.lost <= 10 {
		c.b.progress("%s: LOST %s", c.ledger, fmt.Sprintf(format, args...))
	}
}

// count holds the ledger against what clients and Jelou saw.
func (c *campaign) count() error {
	rows, err := c.rows()
	if err != nil {
		return err
	}
	byID, byRequest, byItem := map[string]*facadev1.Send{}, map[string]*facadev1.Send{}, map[string]*facadev1.Send{}
	states := map[resultState]int{}
	for _, row := range rows {
		if byID[row.SendId] != nil {
			c.contradict("%s is listed twice", row.SendId)
		}
		byID[row.SendId] = row
		states[row.State]++
		switch {
		case row.BatchId != "":
			byItem[fmt.Sprint(row.BatchId, "/", row.Sequence)] = row
		case row.RequestId != "":
			// The newest is listed first: what expired before may have started again.
			if byRequest[row.RequestId] == nil {
				byRequest[row.RequestId] = row
			}
		}
	}
	c.accepted = len(rows)
	c.sent, c.failed, c.unknown = states[facadev1.Send_SENT], states[facadev1.Send_FAILED], states[facadev1.Send_UNKNOWN]
	c.expired, c.cancelled = states[facadev1.Send_EXPIRED], states[facadev1.Send_CANCELLED]
	c.waiting = states[facadev1.Send_SCHEDULED] + states[facadev1.Send_PENDING] + states[facadev1.Send_SENDING]
	if sum := c.sent + c.failed + c.unknown + c.expired + c.cancelled + c.waiting; sum != c.accepted {
		c.contradict("%d sends in states that add up to %d", c.accepted, sum)
	}
	for _, s := range c.calls {
		c.countCall(s, byID, byRequest)
	}
	for _, u := range c.uploads {
		if err := c.countUpload(u, byItem); err != nil {
			return err
		}
	}
	return c.countUpstream(rows, c.textRows(byID, byRequest, byItem))
}

// textRows are the rows of each text: of one that expired and started again all of them, of one whose caller never heard of a row none.
func (c *campaign) textRows(byID, byRequest, byItem map[string]*facadev1.Send) map[jelousim.Fingerprint][]*facadev1.Send {
	rows := map[jelousim.Fingerprint][]*facadev1.Send{}
	for _, s := range c.calls {
		row := byID[s.sendID]
		if s.kind.id {
			row = byRequest[s.request.RequestId]
		}
		for ; row != nil; row = byID[row.SourceSendId] {
			said := jelousim.TextFingerprint(s.request.Message.GetText().Text)
			rows[said] = append(rows[said], row)
		}
	}
	for _, u := range c.uploads {
		for sequence := 1; sequence <= u.items; sequence++ {
			if row := byItem[fmt.Sprint(u.batchID, "/", sequence)]; row != nil {
				said := jelousim.TextFingerprint(u.item(sequence).GetMessage().GetText().Text)
				rows[said] = append(rows[said], row)
			}
		}
	}
	return rows
}

// toldStates are the states that a call's error tells.
var toldStates = map[string]resultState{
	"SENT":      facadev1.Send_SENT,
	"EXPIRED":   facadev1.Send_EXPIRED,
	"CANCELLED": facadev1.Send_CANCELLED,
}

func (c *campaign) countCall(s *call, byID, byRequest map[string]*facadev1.Send) {
	row := byID[s.sendID]
	if s.kind.id && (s.told != "" || s.sendID != "") {
		latest := byRequest[s.request.RequestId]
		if row == nil && s.sendID == "" {
			row = latest
		}
		if row == nil && s.told != facadev1.ErrorReason_INVALID_FIELD.String() {
			c.lose("%s, %s, was told %s", s.kind.name, s.request.RequestId, s.told)
			return
		}
	}
	switch {
	case row == nil && s.sendID != "":
		c.lose("%s was told %s", s.sendID, s.told)
	case row == nil:
	case waits(row.State):
		c.lose("%s, %s, is %v", s.kind.name, row.SendId, row.State)
	default:
		if want, said := toldStates[s.told]; said && row.State != want {
			c.contradict("%s, %s, was told %s and is %v", s.kind.name, row.SendId, s.told, row.State)
		}
	}
}

func (c *campaign) countUpload(u *upload, byItem map[string]*facadev1.Send) error {
	batch, err := u.watchAgain(c.b.ctx, c.fleet.any().batches)
	if err != nil {
		return fmt.Errorf("watch %s: %w", u.batchID, err)
	}
	states := map[resultState]int{}
	for sequence := 1; sequence <= u.items; sequence++ {
		row := byItem[fmt.Sprint(u.batchID, "/", sequence)]
		if row == nil || waits(row.State) {
			c.lose("item %d of %s: %v", sequence, u.batchID, row.GetState())
			continue
		}
		states[row.State]++
	}
	for range u.missing() {
		c.lose("an item of %s has no result", u.batchID)
	}
	for _, w := range u.wrong {
		c.contradict("%s: %s", u.batchID, w)
	}
	n := batch.Counts
	counts := map[resultState]int{
		facadev1.Send_SENT: int(n.Sent), facadev1.Send_FAILED: int(n.Failed), facadev1.Send_UNKNOWN: int(n.Unknown),
		facadev1.Send_EXPIRED: int(n.Expired), facadev1.Send_CANCELLED: int(n.Cancelled),
	}
	maps.DeleteFunc(counts, func(_ resultState, n int) bool { return n == 0 })
	if !maps.Equal(states, counts) || int(n.Accepted) != u.items {
		c.contradict("%s counts %v, and its items are %v", u.batchID, n, states)
	}
	c.resumes = append(c.resumes, opens(u.resumes)...)
	return nil
}

// mayHaveLeft reports whether the ledger says that nobody knows.
func mayHaveLeft(row *facadev1.Send) bool {
	return row.State == facadev1.Send_UNKNOWN || row.State == facadev1.Send_FAILED && row.ErrorReason == facadev1.ErrorReason_OUTCOME_UNKNOWN.String()
}

// countUpstream looks at Jelou: no content twice, what the ledger calls sent was sent, and whatever else arrived is of a row that says
// that nobody knows.
func (c *campaign) countUpstream(rows []*facadev1.Send, byText map[jelousim.Fingerprint][]*facadev1.Send) error {
	report, err := ask[struct{ Duplicates, Throttled, Forgotten int }](c.b.ctx, c.sim, http.MethodGet, "/report", nil)
	if err != nil {
		return err
	}
	if report.Forgotten > 0 {
		return errors.New("jelousim has forgotten requests")
	}
	c.doubled, c.throttled = report.Duplicates, report.Throttled
	accepted, err := c.sim.sends(c.b.ctx)
	if err != nil {
		return err
	}
	at := map[string]jelousim.Fingerprint{}
	for _, s := range accepted {
		at[s.ID] = s.Text
	}
	told := map[string]bool{}
	for _, known := range byText {
		for _, row := range known {
			told[row.SendId] = true
		}
	}
	untold := 0 // rows that may have left and whose callers never heard of them
	for _, row := range rows {
		switch _, there := at[row.MessageId]; {
		case row.State == facadev1.Send_SENT && !there:
			c.contradict("%s is SENT, and Jelou has no message %q", row.SendId, row.MessageId)
		case row.State == facadev1.Send_SENT:
			delete(at, row.MessageId)
		case mayHaveLeft(row) && !told[row.SendId]:
			untold++
		}
	}
	for id, text := range at {
		known := byText[text]
		switch {
		case slices.ContainsFunc(known, mayHaveLeft):
		case len(known) == 0 && untold > 0:
			untold--
		default:
			c.contradict("Jelou accepted %s, and the ledger says %v", id, known)
		}
	}
	return nil
}

// invariant opens the ledger itself, when nobody else has it, and has it check its books.
func (c *campaign) invariant() error {
	l, err := ledger.Open(c.b.ctx, ledger.Config{Path: c.fleet.config.Ledger.Path, URL: c.url, Replica: "jelou-bench"})
	if err != nil {
		return err
	}
	defer l.Close() // it was only read
	if err := l.CheckInvariant(c.b.ctx); err != nil {
		c.contradict("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}
