package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var rollingBenchmark = benchmark{
	name:  "rolling",
	short: "A rolling restart of 3 replicas and changes of their configuration under load: what callers notice",
	long: `
Three replicas on PostgreSQL with four companies of 15 requests a second, at half of what they may send: single calls that wait, each with a
request_id, and batches over streams. One replica after the other is stopped in order and started again, 6 times around;
meanwhile the configuration file is replaced every second by one with another allowance (never more than Jelou allows), window,
attempt timeout, bounds and log level, and every fourth time by one that must be refused; and SIGHUP is sent.
Clients call again after UNAVAILABLE, with the same request_id or cursor, and after nothing else.

Fields: accepted (rows in the ledger), lost, doubled, contradicted (as in crash), failed_calls (calls and streams that ended with
anything but success or UNAVAILABLE), retried_calls (UNAVAILABLE, then called again), violations (arrivals that made a window hold
more than Jelou allows), http_429, restarts, stop_max_ms (the longest stop in order), reloads, stale (replicas that at the end have
another version of the configuration in force than the file).

Then eight companies of 5 requests a second at full demand of two callers, over a network of 60 ms: by turns the configuration stays, and is
replaced every second by one with other weights, callers, bounds, log level and floor of the lower lanes, and the same
allowance, so that a window that a reload leaves empty shows.

Fields: quiet_utilization, reload_utilization (the share of the allowance that was used in the one and the other turns, each
company alike), reload_ratio (the second by the first). What broke in this part is in the fields above.
--quick: once around, over 300 sends, and one turn of 7 s of each kind.`,
	run: rolling,
}

// rollingPlan is how much is done.
type rollingPlan struct {
	sends, rounds int
	items         int // of a batch
	pause         time.Duration
	quiet         time.Duration
}

func rolling(b *bench) error {
	plan := pick(b,
		rollingPlan{sends: 4000, rounds: 6, items: 200, pause: 5 * time.Second, quiet: time.Minute},
		rollingPlan{sends: 300, rounds: 1, items: 50, pause: time.Second, quiet: 10 * time.Second})
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	r, err := b.roll(p, plan)
	if err != nil {
		return err
	}
	full, err := b.reload(p, pick(b, reloadPlan{companies: 8, rounds: 6, long: 15 * time.Second}, reloadPlan{companies: 8, rounds: 1, long: 7 * time.Second}))
	if err != nil {
		return err
	}
	t := b.found.table("What ended calls and streams, beside success", "code", "reason", "times")
	for f, n := range r.endings {
		t.add(f.code, f.reason, n)
	}
	t = b.found.table("Full demand of 8 companies, 5 a second, 60 ms, three replicas", "configuration", "reloads", "utilization", "worst window", "429")
	t.add("stays", 0, full.quiet, full.worst, full.throttled)
	t.add("changes every second", full.count, full.changing, full.worst, full.throttled)
	f := &b.found
	f.set("accepted", r.accepted)
	f.set("lost", r.lost)
	f.set("doubled", r.doubled+full.doubled)
	f.set("contradicted", len(r.contradicted))
	f.set("failed_calls", r.failed())
	f.set("retried_calls", r.retried())
	f.set("violations", r.violated+full.violations)
	f.set("http_429", r.throttled+full.throttled)
	f.set("restarts", len(r.stops))
	f.set("stop_max_ms", rounded(percentile(r.stops, 100), 0))
	f.set("reloads", r.reloads)
	f.set("stale", r.stale+full.stale)
	for _, field := range []string{"lost", "doubled", "contradicted", "failed_calls", "violations", "http_429", "stale"} {
		f.mustBe(field, 0)
	}
	f.set("quiet_utilization", rounded(full.quiet, 4))
	f.set("reload_utilization", rounded(full.changing, 4))
	f.set("reload_ratio", rounded(full.changing/full.quiet, 4))
	f.atLeast("reload_ratio", 0.99)
	return nil
}

// roller is a campaign in which nothing is killed and nothing fails.
type roller struct {
	campaign
	plan rollingPlan

	starting sync.Mutex // held while a replica starts, or could not

	mu       sync.Mutex
	endings  map[failure]int // of calls and streams, but for successes; without ids
	stops    []float64
	reloads  int
	stale    int
	violated int
}

// ended notes how a call or a stream ended.
func (r *roller) ended(f failure) {
	f.sendID = ""
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endings[f]++
}

func (r *roller) retried() (n int) {
	for f, times := range r.endings {
		if f.code == codes.Unavailable {
			n += times
		}
	}
	return n
}

func (r *roller) failed() (n int) {
	for f, times := range r.endings {
		if f.code != codes.Unavailable {
			n += times
		}
	}
	return n
}

// roll runs the whole.
func (b *bench) roll(p *postgres, plan rollingPlan) (*roller, error) {
	url, err := p.database()
	if err != nil {
		return nil, err
	}
	r := &roller{plan: plan, endings: map[failure]int{}, campaign: campaign{
		b: b, account: account{ledger: "postgres", replicas: 3}, url: url, rng: rand.New(rand.NewPCG(b.rng.Uint64(), 3)),
		plan: crashPlan{sends: plan.sends, items: plan.items, quiet: plan.quiet},
	}}
	r.tenants = busy(tenants("rolling", 4), 15, time.Second)
	if r.sim, err = b.startSimulatorFor(jelousim.Config{
		Processing: jelousim.Processing{Min: jelousim.Duration(5 * time.Millisecond), Max: jelousim.Duration(200 * time.Millisecond)},
	}, r.tenants...); err != nil {
		return nil, err
	}
	if r.fleet, err = b.startFleet(r.replicas, r.url, nil, r.tenants...); err != nil {
		return nil, err
	}
	if err := r.load(); err != nil {
		return nil, err
	}
	b.progress("all sends are in, waiting for quiet")
	if err := r.settle(); err != nil {
		return nil, err
	}
	if err := r.count(); err != nil {
		return nil, err
	}
	if err := r.countViolations(); err != nil {
		return nil, err
	}
	r.fleet.stop()
	return r, r.invariant()
}

// load sends at half of what may be sent, while replicas restart and the configuration changes.
func (r *roller) load() error {
	sent, stopLoad := errgroup.WithContext(r.b.ctx)
	r.limit = rate.NewLimiter(rate.Limit(float64(len(r.tenants)*r.tenants[0].allowed())/2), 20)
	r.upload(stopLoad, sent)
	for _, u := range r.uploads {
		u.saw = r.ended
		u.item = func(sequence int) *facadev1.BatchItem {
			item := itemOf(u.spec.RequestId, sequence)
			item.UserId = fmt.Sprintf("5938%07d", sequence) // all good
			return item
		}
	}
	r.callAll(stopLoad, sent)
	changing, stopChanges := context.WithCancel(r.b.ctx)
	changes, ctx := errgroup.WithContext(changing)
	changes.Go(func() error { return r.change(ctx) })
	err := r.around(stopLoad)
	if loadErr := sent.Wait(); loadErr != nil {
		err = loadErr
	}
	stopChanges()
	if changed := changes.Wait(); changed != nil && r.b.ctx.Err() == nil && err == nil {
		err = changed
	}
	if err != nil {
		return err
	}
	r.stale, err = r.fleet.stale("")
	return err
}

// callAll sends the other half as single calls that wait.
func (r *roller) callAll(ctx context.Context, load *errgroup.Group) {
	kind := &callKinds[0]
	for i := range r.plan.sends / 2 {
		t := r.tenants[i%len(r.tenants)]
		r.calls = append(r.calls, &call{kind: kind, request: &facadev1.SendMessageRequest{
			BotId: t.bot(), UserId: fmt.Sprintf("5937%07d", i), Message: text(fmt.Sprintf("Aviso %d", i)), RequestId: fmt.Sprintf("call-%d", i),
		}})
	}
	var next atomic.Int64
	for range callers {
		load.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(r.calls) {
					return nil
				}
				if err := r.limit.Wait(ctx); err != nil {
					return err
				}
				if err := r.callOne(ctx, r.calls[i]); err != nil {
					return err
				}
			}
		})
	}
}

// callOne calls again after UNAVAILABLE, and after nothing else.
func (r *roller) callOne(ctx context.Context, s *call) error {
	for {
		err := s.once(ctx, r.fleet)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			return nil
		}
		f := failureOf(err)
		r.ended(f)
		if f.code != codes.Unavailable {
			s.told = f.reason
			return nil
		}
		if err := sleep(ctx, time.Duration(20+rand.IntN(100))*time.Millisecond); err != nil {
			return err
		}
	}
}

// around stops and starts one replica after the other.
func (r *roller) around(ctx context.Context) error {
	for round := range r.plan.rounds {
		for seat := range r.replicas {
			if err := sleep(ctx, r.plan.pause); err != nil {
				return err
			}
			began := time.Now()
			r.fleet.seats[seat].Load().stop()
			r.stops = append(r.stops, ms(time.Since(began)))
			if err := r.start(seat); err != nil {
				return err
			}
		}
		r.b.progress("%d times around", round+1)
	}
	return nil
}

func (r *roller) start(seat int) error {
	r.starting.Lock()
	defer r.starting.Unlock()
	return r.fleet.start(seat)
}

// change replaces the configuration until ctx ends; the last one that it leaves is good.
func (r *roller) change(ctx context.Context) error {
	for n := 0; ctx.Err() == nil; n++ {
		if n%4 == 3 {
			if err := r.mistake(n); err != nil {
				return err
			}
			continue
		}
		if err := r.replace(n); err != nil {
			return err
		}
		if n%3 == 0 {
			_ = r.fleet.any().cmd.Process.Signal(syscall.SIGHUP) // it may be gone
		}
		_ = sleep(ctx, time.Second) // it ends above
	}
	return nil
}

// mistake puts a bad configuration in place and mends it. No replica starts meanwhile: it would not.
func (r *roller) mistake(n int) error {
	r.starting.Lock()
	defer r.starting.Unlock()
	if err := r.replace(n); err != nil {
		return err
	}
	_ = sleep(r.b.ctx, 400*time.Millisecond) // what ends it ends the next step, too
	return r.replace(n + 1)
}

// replace puts the n-th configuration in place. Every fourth is bad.
func (r *roller) replace(n int) error {
	c := r.fleet.config
	c.Bounds = &configv1.Bounds{LaneWaiting: int32(100_000 + n)}
	c.Log.Level = []configv1.Log_Level{configv1.Log_WARN, configv1.Log_ERROR}[n%2]
	for _, company := range c.Companies {
		company.AttemptTimeout = durationpb.New(time.Duration(5+n%3) * time.Second)
		company.Allowance = &configv1.Allowance{Requests: int32(15 - n%4), Window: durationpb.New(time.Second + time.Duration(n%3)*100*time.Millisecond)}
	}
	more := ""
	if n%4 == 3 {
		more = `, "no_such_field": 1`
	}
	r.reloads++
	return r.fleet.put(c, more)
}

// put replaces the configuration as an editor does it, with more fields where they are given.
func (f *fleet) put(c *configv1.Config, more string) error {
	text, err := protojson.Marshal(c)
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.path+".new", append(text[:len(text)-1], more+"}"...), 0o600); err != nil {
		return err
	}
	return os.Rename(f.path+".new", f.path)
}

// stale counts the replicas that do not have the file in force within a time. They are asked with an admin's key, where there are callers.
func (f *fleet) stale(key string) (stale int, err error) {
	text, err := os.ReadFile(f.path)
	if err != nil {
		return 0, err
	}
	want := fmt.Sprintf("%x", sha256.Sum256(text))[:12]
	for seat := range f.seats {
		rest := f.seats[seat].Load().rest
		version := ""
		for deadline := time.Now().Add(5 * time.Second); version != want && time.Now().Before(deadline); {
			if version, err = versionOf(f.b.ctx, rest, key); err != nil {
				return 0, err
			}
			if err := f.b.sleep(50 * time.Millisecond); err != nil {
				return 0, err
			}
		}
		if version != want {
			stale++
			f.b.progress("replica %d has version %s in force, and the file is %s", seat, version, want)
		}
	}
	return stale, nil
}

// versionOf is the version of the configuration that a facade has in force.
func versionOf(ctx context.Context, rest, key string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, rest+"/configz", nil)
	if err != nil {
		return "", err
	}
	if key != "" {
		request.Header.Set("X-Api-Key", key)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var shown struct{ Parts []struct{ Version string } }
	if err := json.NewDecoder(answer.Body).Decode(&shown); err != nil {
		return "", err
	}
	return shown.Parts[0].Version, nil
}

func (r *roller) countViolations() error {
	arrived, err := r.sim.arrivals(r.b.ctx)
	if err != nil {
		return err
	}
	for _, t := range r.tenants {
		times := arrived[t.name]
		if times == nil {
			continue
		}
		n, _ := violations(times.all, t.allowed(), t.every())
		r.violated += n
	}
	return nil
}
