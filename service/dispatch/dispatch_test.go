package dispatch

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// world is a simulator of Jelou and replicas that send to it.
type world struct {
	*testing.T
	sim      *jelousim.Server
	company  int64
	replicas []*replica
	logs     *logged
	secret   string
	baseURL  string
	database string // its URL, where there are more replicas than one
}

// replica is one process: a ledger and a dispatcher.
type replica struct {
	ledger   *ledger.Ledger
	dispatch *Dispatcher
	settings Company
	stop     func()
}

// logged keeps what was logged.
type logged struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	l.lines = append(l.lines, line)
	return nil
}

// has reports whether a line begins so.
func (l *logged) has(begin string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.lines, func(line string) bool { return strings.HasPrefix(line, begin) })
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { return l }

// setup is what a test may want different.
type setup struct {
	sim      jelousim.Config
	company  Company
	baseURL  string
	replicas int // more than one are on PostgreSQL
	open     func(replica int) func(body []byte) ([]byte, error)
}

// quick is a fast company: 5 requests in 100 ms.
var quick = pace.Config{Requests: 5, Window: 100 * time.Millisecond}

func newWorld(t *testing.T, change func(*setup)) *world {
	t.Helper()
	s := setup{sim: jelousim.Sandbox(), company: Company{Name: "sandbox", Pace: quick, AttemptTimeout: 2 * time.Second}, replicas: 1}
	s.sim.Processing, s.sim.EveryoneOpen = jelousim.Processing{}, true
	if change != nil {
		change(&s)
	}
	s.sim.Rate = jelousim.Rate{Requests: s.company.Pace.InWindow(), Window: jelousim.Duration(s.company.Pace.EachWindow())}
	w := &world{T: t, sim: jelousim.New(s.sim), logs: &logged{}, secret: "sandbox"}
	if s.baseURL == "" {
		server := httptest.NewServer(w.sim)
		t.Cleanup(server.Close)
		s.baseURL = server.URL
	}
	config := ledger.Config{Path: filepath.Join(t.TempDir(), "ledger.db")}
	if s.replicas > 1 {
		w.database = ledgertest.Postgres(t)
		config = ledger.Config{URL: w.database}
	}
	for i := range s.replicas {
		config.Replica = fmt.Sprintf("replica-%d", i)
		var open func([]byte) ([]byte, error)
		if s.open != nil {
			open = s.open(i)
		}
		w.replicas = append(w.replicas, w.newReplica(config, s, open))
	}
	return w
}

func (w *world) newReplica(config ledger.Config, s setup, open func([]byte) ([]byte, error)) *replica {
	w.Helper()
	l, err := ledger.Open(w.Context(), config)
	w.must(err)
	w.company, err = l.Company(w.Context(), s.company.Name)
	w.must(err)
	company := s.company
	company.ID = w.company
	w.baseURL = s.baseURL
	company.Client = w.newClient(company)
	r := &replica{ledger: l, settings: company, dispatch: New(Config{
		Ledger: l, Companies: []*Company{&company}, Open: open, Logger: slog.New(w.logs),
		Result: func(r *jelou.Result) []byte { return []byte(r.MessageID) }, Error: func(e *jelou.Error) []byte { return []byte(e.Message) },
	})}
	dispatching, stopDispatching := context.WithCancel(context.Background())
	keeping, stopKeeping := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = l.Run(keeping) }) // ends with its context
	ended := make(chan error, 1)
	go func() { ended <- r.dispatch.Run(dispatching) }()
	r.stop = sync.OnceFunc(func() {
		stopDispatching()
		w.must(<-ended)
		stopKeeping()
		running.Wait()
		w.must(l.CheckInvariant(context.Background()))
		w.must(l.Close())
	})
	w.Cleanup(r.stop)
	return r
}

// newClient is a client that is closed after the test.
func (w *world) newClient(company Company) *jelou.Client {
	w.Helper()
	client, err := jelou.New(jelou.Config{
		BaseURL: w.baseURL, AttemptTimeout: company.AttemptTimeout,
		Credential: func() (string, string, error) { return "sandbox", w.secret, nil },
	})
	w.must(err)
	w.Cleanup(client.Close)
	return client
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// send is a text to a user.
func (w *world) send(lane ledger.Lane, user int) ledger.NewSend {
	item := &facadev1.BatchItem{UserId: fmt.Sprintf("59399%07d", user), Content: &facadev1.BatchItem_Message{Message: &facadev1.Message{
		Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: fmt.Sprintf("hola %d", textNo.add())}},
	}}}
	body, err := proto.Marshal(item)
	w.must(err)
	return ledger.NewSend{Company: w.company, Lane: lane, Caller: "shop", Bot: "demo", Recipient: item.UserId, Kind: "text", Body: body}
}

// textNo makes every text another one, so that the simulator finds what was sent twice.
var textNo counter

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) add() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

// add stores sends at a replica.
func (w *world) add(r *replica, sends ...ledger.NewSend) []ledger.ID {
	w.Helper()
	added, err := r.ledger.Add(w.Context(), sends)
	w.must(err)
	ids := make([]ledger.ID, len(added))
	for i, a := range added {
		w.must(a.Err)
		ids[i] = a.Send.ID
	}
	return ids
}

// many are sends of a lane, each to its own user.
func (w *world) many(lane ledger.Lane, n int) []ledger.NewSend {
	sends := make([]ledger.NewSend, n)
	for i := range sends {
		sends[i] = w.send(lane, i)
	}
	return sends
}

// wait waits for the ends of sends, and checks that they are as wanted.
func (w *world) wait(r *replica, want ledger.State, ids ...ledger.ID) (rows []ledger.Send) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	defer cancel()
	for _, id := range ids {
		row, err := r.ledger.Wait(ctx, id)
		w.must(err)
		if row.State != want {
			w.Fatalf("a send is %s %s, want %s", row.State, row.Reason, want)
		}
		rows = append(rows, row)
	}
	return rows
}

// check is what must hold at the simulator: no window over the allowance, nothing twice.
func (w *world) check(accepted int) {
	w.Helper()
	r := w.sim.Report()
	if r.WorstWindow > r.Requests || r.Throttled > 0 || r.Duplicates > 0 || r.Accepted != accepted {
		w.Errorf("worst window %d of %d, %d times 429, %d duplicates, %d accepted, want %d", r.WorstWindow, r.Requests, r.Throttled, r.Duplicates, r.Accepted, accepted)
	}
}

func TestOneReplica(t *testing.T) {
	w := newWorld(t, nil)
	r := w.replicas[0]
	ids := w.add(r, w.many(ledger.Bulk, 60)...)
	w.wait(r, ledger.Sent, ids...)
	w.check(60)
	c := r.dispatch.Check().Snapshot()
	if c.Claims.Sends != 60 || c.Claims.Wasted() > 0.2 {
		t.Errorf("claims: %+v", c.Claims)
	}
	if c.GhostSends != 0 || c.Companies[0].WorstWindow > 5 {
		t.Errorf("self-check: %+v", c)
	}
}

// TestReplicas has three replicas send what is stored at all of them.
func TestReplicas(t *testing.T) {
	w := newWorld(t, func(s *setup) { s.replicas, s.company.Pace.Window = 3, 250*time.Millisecond })
	var ids []ledger.ID
	for i := range 60 {
		ids = append(ids, w.add(w.replicas[i%3], w.send(ledger.Lane(1+i%3), i))...)
	}
	w.wait(w.replicas[0], ledger.Sent, ids...)
	w.check(60)
	var all Claims
	for _, r := range w.replicas {
		c := r.dispatch.Check().Snapshot().Claims
		all = Claims{all.Sends + c.Sends, all.Early + c.Early, all.Busy + c.Busy, all.Empty + c.Empty}
	}
	if all.Sends != 60 {
		t.Errorf("claims: %+v", all)
	}
	// The one that was first leaves, and the others go on.
	for _, r := range w.replicas {
		if rank(w.company, r.ledger.Replica(), []string{"replica-0", "replica-1", "replica-2"}) == 0 {
			r.stop()
		} else {
			defer func() { w.wait(r, ledger.Sent, w.add(r, w.many(ledger.Normal, 10)...)...) }()
		}
	}
}

// TestHang has a Jelou that does not answer: what hangs keeps its slots, and the next send goes when the attempts are
// given up and a window is over.
func TestHang(t *testing.T) {
	w := newWorld(t, func(s *setup) { s.company.AttemptTimeout = time.Second })
	r := w.replicas[0]
	w.must(w.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultHang, Times: 5, Delay: jelousim.Duration(20 * time.Second)}))
	hung := w.add(r, w.many(ledger.Bulk, 5)...)
	w.wait(r, ledger.Unknown, hung...)
	began := time.Now()
	urgent := w.add(r, w.send(ledger.Urgent, 9))
	w.wait(r, ledger.Sent, urgent...)
	if took := time.Since(began); took > 5*time.Second { // the leases of the sends that hung go on for longer
		t.Errorf("an urgent send waited for %v", took)
	}
}

// TestLostSettles: the database goes away at every commit of an answer of Jelou's, for longer than the ledger itself is patient.
func TestLostSettles(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.replicas = 2 })
	db, err := sql.Open("pgx", w.database)
	w.must(err)
	defer db.Close()
	run := func(statement string) {
		t.Helper()
		_, err := db.ExecContext(t.Context(), statement)
		w.must(err)
	}
	run(`CREATE FUNCTION go_away() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'`)
	run(`CREATE CONSTRAINT TRIGGER go_away AFTER UPDATE ON send DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.state = 'sent') EXECUTE FUNCTION go_away()`)
	id := w.add(w.replicas[0], w.send(ledger.Normal, 1))[0]
	w.eventually(func() bool { return w.logs.has("settle waits for the ledger") })
	run(`DROP TRIGGER go_away ON send`)
	w.eventually(func() bool {
		row, err := w.replicas[0].ledger.Get(t.Context(), id)
		w.must(err)
		return row.State == ledger.Sent
	})
	w.check(1)
}

// eventually polls until something is so.
func (w *world) eventually(so func() bool) {
	w.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.After(40 * time.Second)
	for !so() {
		select {
		case <-tick.C:
		case <-end:
			w.Fatal("it did not come to be")
		}
	}
}

// TestUnreachable counts the attempts while nobody listens.
func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	w := newWorld(t, func(s *setup) { s.baseURL = "http://" + address })
	r := w.replicas[0]
	expiring := w.many(ledger.Bulk, 50)
	for i := range expiring {
		expiring[i].ExpireIn = 1500 * time.Millisecond
	}
	rows := w.wait(r, ledger.Expired, w.add(r, expiring...)...)
	attempts, told := 0, 0
	for _, row := range rows {
		attempts += row.Attempt
		if row.Reason == facadev1.ErrorReason_UPSTREAM_UNREACHABLE.String() {
			told++
		}
	}
	if attempts == 0 || attempts > 8 {
		t.Errorf("%d attempts at an address where nobody listens", attempts)
	}
	if told != attempts && told == 0 {
		t.Errorf("%d of %d attempts are told as the reason", told, attempts)
	}
}

// TestCredential ends a company's pause as soon as its credential is another one.
func TestCredential(t *testing.T) {
	var mu sync.Mutex
	var w *world
	w = newWorld(t, func(s *setup) {
		s.sim.Companies[0].ClientSecret = "new"
		s.company.Credential = func() (string, string, error) {
			mu.Lock()
			defer mu.Unlock()
			return "sandbox", w.secret, nil
		}
	})
	r := w.replicas[0]
	w.wait(r, ledger.Failed, w.add(r, w.send(ledger.Normal, 1))...)
	if st := r.dispatch.Status(w.company); st.Pause != pace.PausedRejected {
		t.Errorf("status %+v after a refused credential", st)
	}
	waits := w.add(r, w.send(ledger.Normal, 2))
	mu.Lock()
	w.secret = "new"
	mu.Unlock()
	began := time.Now()
	w.wait(r, ledger.Sent, waits...)
	if took := time.Since(began); took > 4*time.Second { // the pause goes on for longer
		t.Errorf("it took %v to try the new credential", took)
	}
}

// TestRecipientInterval leaves a time between two sends to one user, and nobody else waits for it.
func TestRecipientInterval(t *testing.T) {
	const interval = 2 * time.Second
	w := newWorld(t, func(s *setup) { s.company.RecipientInterval = interval })
	r := w.replicas[0]
	same := w.add(r, w.send(ledger.Bulk, 1), w.send(ledger.Bulk, 1), w.send(ledger.Normal, 1))
	others := w.add(r, w.many(ledger.Bulk, 20)[2:]...)
	urgent := w.add(r, w.send(ledger.Urgent, 1))
	rows := w.wait(r, ledger.Sent, same...)
	quickRows := w.wait(r, ledger.Sent, append(others, urgent...)...)
	times := []int64{rows[0].SentAt, rows[1].SentAt, rows[2].SentAt}
	for i := range times {
		for j := range i {
			if apart := time.Duration(abs(times[i]-times[j])) * time.Microsecond; apart < interval/4 { // they are told apart by the database's clock, and leave when this machine comes to it
				t.Errorf("two sends to one user left %v apart", apart)
			}
		}
	}
	for _, row := range quickRows {
		if row.SentAt > max(times[0], times[1], times[2]) {
			t.Errorf("a send to somebody else, or an urgent one, waited for those to the same user")
		}
	}
	w.check(22)
}

func abs(n int64) int64 { return max(n, -n) }

// TestThrottled pauses the company at a 429, which costs no attempt, and goes on after it.
func TestThrottled(t *testing.T) {
	w := newWorld(t, nil)
	r := w.replicas[0]
	w.must(w.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultThrottle, RetryAfter: jelousim.Duration(time.Second)}))
	began := time.Now()
	for _, row := range w.wait(r, ledger.Sent, w.add(r, w.many(ledger.Normal, 10)...)...) {
		if row.Attempt != 1 {
			t.Errorf("a send took %d attempts", row.Attempt)
		}
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("with a Retry-After of a second it took %v", took)
	}
	if n := w.sim.Report().Throttled; n > 4+1 {
		t.Errorf("%d times 429", n)
	}
}

// TestRead gives reads the slots that sends leave over.
func TestRead(t *testing.T) {
	w := newWorld(t, nil)
	r := w.replicas[0]
	ids := w.add(r, w.many(ledger.Normal, 20)...)
	for range 5 {
		err := r.dispatch.Read(t.Context(), w.company, func(context.Context, *jelou.Client) (jelou.Timing, error) {
			now := time.Now()
			return jelou.Timing{Started: now, Seen: now, Trip: time.Microsecond}, nil
		})
		w.must(err)
	}
	w.wait(r, ledger.Sent, ids...)
	left, leave := context.WithCancel(t.Context())
	leave()
	if err := r.dispatch.Read(left, w.company, func(context.Context, *jelou.Client) (jelou.Timing, error) {
		t.Error("a read ran for a caller who had left")
		return jelou.Timing{}, nil
	}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	r.stop()
	if err := r.dispatch.Read(t.Context(), w.company, nil); !errors.Is(err, ErrStopping) {
		t.Error(err)
	}
}

// TestUpdate changes the allowance while sends wait.
func TestUpdate(t *testing.T) {
	w := newWorld(t, func(s *setup) { s.company.Pace = pace.Config{Requests: 1, Window: time.Minute} })
	r := w.replicas[0]
	ids := w.add(r, w.many(ledger.Normal, 20)...)
	w.must(w.sim.SetLimit(jelousim.Rate{Requests: 5, Window: jelousim.Duration(100 * time.Millisecond)}))
	company := r.settings
	company.Pace = quick
	r.dispatch.Update([]*Company{&company})
	w.wait(r, ledger.Sent, ids...)
	w.check(20)
}

// TestUpdateUnderLoad replaces the settings again and again, with a new client each time, while there is always something to send: no
// slot is lost and no window is over the limit.
func TestUpdateUnderLoad(t *testing.T) {
	w := newWorld(t, nil)
	r := w.replicas[0]
	for _, id := range w.add(r, w.many(ledger.Normal, 60)...) {
		company := r.settings
		company.Client = w.newClient(company)
		company.AttemptTimeout += time.Millisecond
		r.dispatch.Update([]*Company{&company})
		w.wait(r, ledger.Sent, id)
	}
	w.check(60)
	if used := r.dispatch.Check().Snapshot().Companies[0]; used.WorstWindow > 5 {
		t.Errorf("%+v", used)
	}
}

// TestUpdateRemoves: what waits for a company that was removed stays in the ledger, and is sent when it is there again. A new one
// begins to send.
func TestUpdateRemoves(t *testing.T) {
	w := newWorld(t, nil)
	r := w.replicas[0]
	w.wait(r, ledger.Sent, w.add(r, w.many(ledger.Normal, 1)...)...)
	other := r.settings
	other.Name = "other"
	var err error
	other.ID, err = r.ledger.Company(t.Context(), other.Name)
	w.must(err)
	r.dispatch.Update([]*Company{&other})
	if err := r.dispatch.Read(t.Context(), w.company, nil); !errors.Is(err, ErrRemoved) {
		t.Errorf("a read of a removed company: %v", err)
	}
	waiting := w.add(r, w.many(ledger.Normal, 2)...)
	for i, send := range w.many(ledger.Normal, 2) { // with the same credential: 4 of the 5 that it may

		send.Company, send.Recipient = other.ID, fmt.Sprintf("59398000000%d", i)
		w.wait(r, ledger.Sent, w.add(r, send)...)
	}
	for _, id := range waiting {
		row, err := r.ledger.Get(t.Context(), id)
		w.must(err)
		if row.State != ledger.Pending {
			t.Errorf("a send of a removed company is %s", row.State)
		}
	}
	company := r.settings
	r.dispatch.Update([]*Company{&company, &other})
	w.wait(r, ledger.Sent, waiting...)
	w.check(5)
}
