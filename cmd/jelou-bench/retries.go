package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var retriesBenchmark = benchmark{
	name:  "retries",
	short: "Messages per intent when clients retry, commits lose their answers, processes freeze and ledgers go back in time",
	long: `
Trials that run at the same time, each with its own processes and ledger:

A client that calls again on UNAVAILABLE and nothing else, with and without request_id, while connections to Jelou are refused, while Jelou
answers 401, while the server stops in order and a new one starts, and while it is killed: messages at Jelou per intent.
A proxy in front of PostgreSQL that ends the connection in place of the answer to a commit of an add, of a claim, of a settle.
SIGSTOP of a replica for three leases, then SIGCONT: inside the claim's transaction, after the claim was committed and before the
request is written, while Jelou answers, and after Jelou answered and before that is written. Another replica must go on within 3 s.
A base backup, 1,000 sends, and the backup put in the ledger's place: recovered to a new timeline and served by a new process; as it was, under a
process that ran through it; and a copied SQLite file. Nothing may leave until somebody releases the ledger, and nothing twice after; 50 sends with
ids whose time is over by then are asked for again.
Two replicas that get the same 1,000 request ids in opposite order. A second process on one SQLite file.
What the ledger's own tests show better is run as tests and listed by name: every (state, event) pair against the CHECKs,
writers that commit out of order, cursors in commit order, two replicas with the same ids, commits without an answer.

Fields: messages_per_intent_with_id, messages_per_intent_without_id (the most of the four cases), doubled_with_id, doubled (in all trials but the
client without ids), others_ms (the longest until another replica sent while one was frozen), late_200_recorded, trials, failed
(trials in which something did not hold), tests_passed, tests_failed. Attempts are bounded by 1 s, so a lease is 6 s.
--quick: fewer intents, 200 sends after the backups.`,
	run: retries,
}

// trial is one thing that must hold.
type trial struct {
	name  string
	run   func(ctx context.Context, t *trial) error
	said  []string // for people
	wrong []string // what did not hold

	doubled int
}

func (t *trial) say(format string, args ...any) {
	t.said = append(t.said, fmt.Sprintf(format, args...))
}

// must notes what does not hold.
func (t *trial) must(holds bool, format string, args ...any) {
	if !holds {
		t.wrong = append(t.wrong, fmt.Sprintf(format, args...))
	}
}

// once asks the simulator that nothing was sent twice.
func (t *trial) once(ctx context.Context, sim *simulator) error {
	n, err := sim.duplicates(ctx)
	t.doubled += n
	t.must(n == 0, "%d sends were sent twice", n)
	return err
}

func retries(b *bench) error {
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	trials := []*trial{b.testTrial()}
	var clients []*retrying
	for _, id := range []bool{true, false} {
		r, err := b.newRetrying(id)
		if err != nil {
			return err
		}
		clients, trials = append(clients, r), append(trials, r.trial())
	}
	frozen, err := b.freezeTrials(p)
	if err != nil {
		return err
	}
	for _, make := range []func(*postgres) ([]*trial, error){b.commitTrials, b.restoreTrials, b.oppositeTrials, b.secondTrials} {
		more, err := make(p)
		if err != nil {
			return err
		}
		trials = append(trials, more...)
	}
	all := slices.Concat(trials, frozen)
	// How soon others send while a replica is frozen is a time, and the other trials take all that there is of the machine.
	for _, wave := range pick(b, [][]*trial{frozen, trials}, [][]*trial{all}) {
		if err := b.try(wave); err != nil {
			return err
		}
	}
	printRetrying(&b.found, clients)
	printTrials(&b.found, all)
	return nil
}

// try runs trials beside each other.
func (b *bench) try(trials []*trial) error {
	all, ctx := errgroup.WithContext(b.ctx)
	for _, t := range trials {
		all.Go(func() error {
			if err := t.run(ctx, t); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			b.progress("over: %s", t.name)
			return nil
		})
	}
	return all.Wait()
}

func printTrials(f *findings, trials []*trial) {
	t := f.table("What must hold", "trial", "", "seen")
	failed, doubled := 0, 0
	for _, r := range trials {
		verdict := "holds"
		if len(r.wrong) > 0 {
			verdict = "DOES NOT HOLD"
			failed++
		}
		doubled += r.doubled
		t.add(r.name, verdict, strings.Join(append(r.wrong, r.said...), "; "))
	}
	f.set("doubled", doubled)
	f.mustBe("doubled", 0)
	f.set("trials", len(trials))
	f.set("failed", failed)
	f.mustBe("failed", 0)
	f.atMost("others_ms", 3000)
	f.mustBe("late_200_recorded", 1)
}

// retrying is the client that calls again.
type retrying struct {
	b      *bench
	fleet  *fleet
	tenant *tenant
	sim    *simulator
	gate   *gate
	id     bool // every intent has one
	each   int  // intents of each case

	lines []retryLine
}

// retryLine is a case as it came out.
type retryLine struct {
	during          string
	intents, calls  int
	messages, twice int
	answers         map[string]int
}

func (b *bench) newRetrying(id bool) (*retrying, error) {
	r := &retrying{b: b, id: id, each: pick(b, 100, 25)}
	all := busy(tenants("retrying", 1), 40, time.Second)
	r.tenant = all[0]
	var err error
	r.sim, err = b.startSimulatorFor(jelousim.Config{Processing: jelousim.Processing{Min: jelousim.Duration(150 * time.Millisecond)}}, all...)
	if err != nil {
		return nil, err
	}
	if r.gate, err = b.gateBefore(r.tenant); err != nil {
		return nil, err
	}
	r.fleet, err = b.startFleet(1, "", shortAttempts, all...)
	return r, err
}

// gateBefore has a tenant reach Jelou through a gate.
func (b *bench) gateBefore(t *tenant) (*gate, error) {
	g, err := b.startGate(strings.TrimPrefix(t.sim.api, "http://"))
	if err == nil {
		t.sim = &simulator{child: t.sim.child, api: "http://" + g.address, control: t.sim.control}
	}
	return g, err
}

// shortAttempts bounds the attempts, and with them the leases, so that a trial ends soon.
func shortAttempts(config *configv1.Config) {
	for _, company := range config.Companies {
		company.AttemptTimeout = durationpb.New(attemptTimeout)
	}
}

// retryCases are what happens meanwhile: before the client begins, and while it calls.
var retryCases = []struct {
	name          string
	before, while func(*retrying) error
}{
	{"connections are refused", func(r *retrying) error { r.gate.shut(); return nil }, (*retrying).letAgain},
	{"the server stops in order", nil, func(r *retrying) error { return r.fleet.restart(0, syscall.SIGTERM) }},
	{"the server is killed", nil, func(r *retrying) error { return r.fleet.restart(0, syscall.SIGKILL) }},
	{"Jelou answers 401", func(r *retrying) error { return r.secret("wrong") }, func(r *retrying) error {
		if err := r.b.sleep(time.Second); err != nil {
			return err
		}
		return r.secret("secret-of-" + r.tenant.name)
	}},
}

func (r *retrying) letAgain() error {
	if err := r.b.sleep(1500 * time.Millisecond); err != nil {
		return err
	}
	return r.gate.let()
}

// secret changes the facade's credential.
func (r *retrying) secret(value string) error {
	return os.WriteFile(r.fleet.config.Companies[0].ClientSecretFile, []byte(value+"\n"), 0o600)
}

func (r *retrying) trial() *trial {
	name := "a client that retries UNAVAILABLE without request_id"
	if r.id {
		name = "a client that retries UNAVAILABLE with request_id"
	}
	return &trial{name: name, run: func(ctx context.Context, t *trial) error {
		for i := range retryCases {
			line, err := r.measure(ctx, i)
			if err != nil {
				return fmt.Errorf("%s: %w", retryCases[i].name, err)
			}
			r.lines = append(r.lines, line)
			if r.id {
				t.doubled += line.twice
				t.must(line.twice == 0, "while %s: %d intents were sent twice", line.during, line.twice)
			}
			t.say("%d of %d sent twice while %s", line.twice, line.intents, line.during)
		}
		return r.repeatBatch(ctx, t)
	}}
}

// repeatBatch creates a batch twice, as gRPC's and Envoy's retries do where the first answer was lost.
func (r *retrying) repeatBatch(ctx context.Context, t *trial) error {
	if err := r.sim.reset(ctx); err != nil {
		return err
	}
	request := &facadev1.CreateBatchRequest{Spec: &facadev1.BatchSpec{BotId: r.tenant.bot()}}
	if r.id {
		request.Spec.RequestId = "repeated-batch"
	}
	const items = 3
	for sequence := 1; sequence <= items; sequence++ {
		request.Items = append(request.Items, itemOf("repetida", sequence))
	}
	var errs []error
	for _, attempt := range []string{"1", "2"} {
		_, err := r.fleet.any().batches.CreateBatch(metadata.AppendToOutgoingContext(ctx, "x-envoy-attempt-count", attempt), request)
		errs = append(errs, err)
	}
	if errs[0] != nil {
		return errs[0]
	}
	refused := failureOf(errs[1]).reason == facadev1.ErrorReason_RETRY_WITHOUT_REQUEST_ID.String()
	t.must(refused != r.id, "a repeated batch is answered %v", errs[1])
	if err := r.fleet.any().quiet(ctx); err != nil {
		return err
	}
	report, err := ask[struct{ Accepted int }](ctx, r.sim, http.MethodGet, "/report", nil)
	t.must(report.Accepted == items, "%d messages of a repeated batch of %d", report.Accepted, items)
	t.say("%d messages of a repeated batch of %d", report.Accepted, items)
	return err
}

// measure runs one case.
func (r *retrying) measure(ctx context.Context, i int) (retryLine, error) {
	c := retryCases[i]
	line := retryLine{during: c.name, intents: r.each, answers: map[string]int{}}
	if err := r.sim.reset(ctx); err != nil {
		return line, err
	}
	if c.before != nil {
		if err := c.before(r); err != nil {
			return line, err
		}
	}
	var mu sync.Mutex
	var calls errgroup.Group
	for n := range r.each {
		calls.Go(func() error {
			m := r.tenant.message(r.tenant.bot(), facadev1.SendOptions_NORMAL)
			if r.id {
				m.RequestId = fmt.Sprintf("case-%d-%d", i, n)
			}
			times, answer, err := r.intend(ctx, m)
			mu.Lock()
			defer mu.Unlock()
			line.calls += times
			line.answers[answer]++
			return err
		})
	}
	// Some are answered by then, some are under way, some wait for their turn.
	if err := sleep(ctx, 300*time.Millisecond); err != nil {
		return line, err
	}
	if err := c.while(r); err != nil {
		return line, err
	}
	if err := calls.Wait(); err != nil {
		return line, err
	}
	if err := r.fleet.any().quiet(ctx); err != nil {
		return line, err
	}
	report, err := ask[struct{ Accepted, Duplicates int }](ctx, r.sim, http.MethodGet, "/report", nil)
	line.messages, line.twice = report.Accepted, report.Duplicates
	return line, err
}

// intend calls until it is answered by anything but UNAVAILABLE, as gRPC's and Envoy's retries do, only with more
// patience.
func (r *retrying) intend(ctx context.Context, m *facadev1.SendMessageRequest) (calls int, answer string, err error) {
	for calls = 1; ; calls++ {
		once, cancel := context.WithTimeout(ctx, 6*time.Second)
		_, err := r.fleet.any().messages.SendMessage(once, m)
		cancel()
		f := failureOf(err)
		switch {
		case ctx.Err() != nil:
			return calls, "", context.Cause(ctx)
		case err == nil:
			return calls, "SENT", nil
		case f.code != codes.Unavailable || calls == 12:
			if f.reason == "" {
				return calls, f.code.String(), nil
			}
			return calls, f.reason, nil
		}
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
			return calls, "", err
		}
	}
}

func printRetrying(f *findings, clients []*retrying) {
	t := f.table("A client that calls again on UNAVAILABLE", "while", "request_id", "intents", "calls", "messages", "per intent", "sent twice", "answers")
	most, twice := map[bool]float64{}, map[bool]int{}
	for _, r := range clients {
		for _, l := range r.lines {
			each := float64(l.messages) / float64(l.intents)
			most[r.id] = max(most[r.id], each)
			twice[r.id] += l.twice
			t.add(l.during, r.id, l.intents, l.calls, l.messages, each, l.twice, fmt.Sprint(l.answers))
		}
	}
	f.set("messages_per_intent_with_id", rounded(most[true], 3))
	f.set("messages_per_intent_without_id", rounded(most[false], 3))
	f.set("doubled_with_id", twice[true])
	f.mustBe("doubled_with_id", 0)
	f.set("doubled_without_id", twice[false])
}

// commitKinds are the rounds whose commit loses its answer, by words that only they have.
var commitKinds = []struct{ name, words string }{
	{"an add", "INSERT INTO send"}, {"a claim", "SET state = 'sending'"}, {"a settle", "UPDATE send SET state = $6"},
}

// commitTrials lose the answers to commits.
func (b *bench) commitTrials(p *postgres) ([]*trial, error) {
	var trials []*trial
	for _, kind := range commitKinds {
		all := busy(tenants("commits", 1), 40, time.Second)
		sim, err := b.startSimulatorFor(jelousim.Config{}, all...)
		if err != nil {
			return nil, err
		}
		database, err := p.database()
		if err != nil {
			return nil, err
		}
		w, err := b.startWire(database)
		if err != nil {
			return nil, err
		}
		f, err := b.startFleet(1, w.url, shortAttempts, all...)
		if err != nil {
			return nil, err
		}
		trials = append(trials, &trial{name: "the answer to the commit of " + kind.name + " is lost", run: func(ctx context.Context, t *trial) error {
			return b.loseCommits(ctx, t, w, kind.words, f, all[0], sim)
		}})
	}
	return trials, nil
}

// loseCommits cuts the connection in place of every fourth answer of a kind.
func (b *bench) loseCommits(ctx context.Context, t *trial, w *wire, words string, f *fleet, shop *tenant, sim *simulator) error {
	var met, lost atomic.Int64
	w.watch(func(r round) verdict {
		if r.answered && r.commits(words) && met.Add(1)%4 == 0 {
			lost.Add(1)
			return drop
		}
		return pass
	})
	sends := pick(b, 120, 40)
	answers, err := sendEach(ctx, f, shop, sends)
	if err != nil {
		return err
	}
	w.watch(nil)
	if err := f.any().quiet(ctx); err != nil {
		return err
	}
	t.say("%d of %d commits lost their answer, answers %v", lost.Load(), met.Load(), answers)
	t.must(lost.Load() > 0, "no commit of this kind was seen")
	t.must(answers["SENT"] == sends, "not all of %d were sent: %v", sends, answers)
	return t.once(ctx, sim)
}

// sendEach sends so many messages with ids, some at a time, each until it is answered.
func sendEach(ctx context.Context, f *fleet, shop *tenant, sends int) (map[string]int, error) {
	var mu sync.Mutex
	answers := map[string]int{}
	var calls errgroup.Group
	calls.SetLimit(8)
	for n := range sends {
		calls.Go(func() error {
			r := shop.message(shop.bot(), facadev1.SendOptions_NORMAL)
			r.RequestId = fmt.Sprintf("send-%d", n)
			s := &call{kind: &callKinds[0], request: r}
			err := s.send(ctx, f)
			mu.Lock()
			defer mu.Unlock()
			answers[s.told]++
			return err
		})
	}
	return answers, calls.Wait()
}

// oppositeTrials give two replicas the same ids in opposite order.
func (b *bench) oppositeTrials(p *postgres) ([]*trial, error) {
	all := busy(tenants("opposite", 4), 100, time.Second)
	sim, err := b.startSimulatorFor(jelousim.Config{}, all...)
	if err != nil {
		return nil, err
	}
	database, err := p.database()
	if err != nil {
		return nil, err
	}
	f, err := b.startFleet(2, database, nil, all...)
	if err != nil {
		return nil, err
	}
	const ids = 1000
	return []*trial{{name: "two replicas, the same 1,000 ids in opposite order", run: func(ctx context.Context, t *trial) error {
		both, calling := errgroup.WithContext(ctx)
		for seat := range f.seats {
			lanes, calling := errgroup.WithContext(calling)
			lanes.SetLimit(16)
			both.Go(func() error {
				for i := range ids {
					n := i
					if seat == 1 {
						n = ids - 1 - i
					}
					lanes.Go(func() error {
						shop := all[n%len(all)]
						_, err := f.seats[seat].Load().messages.SendMessage(calling, &facadev1.SendMessageRequest{
							BotId: shop.bot(), UserId: fmt.Sprintf("5936%07d", n), Message: text(fmt.Sprint("Turno ", n)),
							RequestId: fmt.Sprint("id-", n), Mode: facadev1.SendOptions_QUEUE,
						})
						return err
					})
				}
				return lanes.Wait()
			})
		}
		if err := both.Wait(); err != nil {
			return err
		}
		if err := f.any().quiet(ctx); err != nil {
			return err
		}
		sent, err := sim.sends(ctx)
		if err != nil {
			return err
		}
		t.say("%d sends at Jelou", len(sent))
		t.must(len(sent) == ids, "%d sends at Jelou for %d ids", len(sent), ids)
		return t.once(ctx, sim)
	}}}, nil
}

// secondTrials start a second process on one SQLite file.
func (b *bench) secondTrials(*postgres) ([]*trial, error) {
	all := tenants("second", 1)
	if _, err := b.startSimulatorFor(jelousim.Config{}, all...); err != nil {
		return nil, err
	}
	f, err := b.startFleet(1, "", nil, all...)
	if err != nil {
		return nil, err
	}
	return []*trial{{name: "a second process on one SQLite file", run: func(ctx context.Context, t *trial) error {
		first := f.any()
		second, err := b.spawn("jelou-facade", "serve", "--config", f.path, "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0")
		if err != nil {
			return err
		}
		select {
		case <-second.ended:
		case <-time.After(10 * time.Second):
			t.must(false, "it runs")
			second.kill()
		}
		said := second.logTail()
		t.must(strings.Contains(said, fmt.Sprint(first.cmd.Process.Pid)), "it does not name the first process: %s", said)
		t.must(second.cmd.ProcessState.ExitCode() == 1, "it ended with %v", second.cmd.ProcessState)
		t.say("refused, with the first one's process id")
		_, err = first.messages.SendMessage(ctx, all[0].message(all[0].bot(), facadev1.SendOptions_NORMAL))
		t.must(err == nil, "the first one does not send any more: %v", err)
		return nil
	}}}, nil
}

// ledgerTests are what the ledger's own tests show.
var ledgerTests = []string{
	"TestEveryStateAndEvent", "TestIllegalStatesCannotBeStored", "TestLateCommitIsNotLeftBehind", "TestAddMeetsTheSwitch",
	"TestResultNumbersAreGivenOnce", "TestReplicasAddTheSameIDsInOppositeOrder", "TestReplicasClaimEachSendOnce",
	"TestLostCommits", "TestBrokenBeforeTheCommit", "TestSecondProcessIsRefused", "TestLateEvidence", "TestDatabaseGoesAndComesBack",
}

func (b *bench) testTrial() *trial {
	return &trial{name: "tests of the ledger", run: func(ctx context.Context, t *trial) error {
		test := exec.CommandContext(ctx, "go", "test", "-count=1", "-vet=off", "-v", "-run", "^("+strings.Join(ledgerTests, "|")+")$", module+"/service/ledger")
		test.Cancel = func() error { return test.Process.Signal(os.Interrupt) } // which ends its databases, too
		test.WaitDelay = 10 * time.Second
		out, err := test.CombinedOutput()
		if failed := (&exec.ExitError{}); err != nil && !errors.As(err, &failed) {
			return err
		}
		passed := map[string]bool{}
		for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
			if rest, ok := strings.CutPrefix(lines.Text(), "--- PASS: "); ok {
				name, _, _ := strings.Cut(rest, " ")
				passed[name] = true
			}
		}
		good := 0
		for _, name := range ledgerTests {
			t.must(passed[name], "%s did not pass", name)
			if passed[name] {
				t.say("%s", name)
				good++
			}
		}
		if good < len(ledgerTests) {
			b.progress("go test: %s", out)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.found.set("tests_passed", good)
		b.found.set("tests_failed", len(ledgerTests)-good)
		b.found.mustBe("tests_failed", 0)
		return nil
	}}
}
