package service

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// The names under which grpc.health.v1 answers. The empty one is readiness too, for clients that ask for the server. Each
// company has one of its own, which is NOT_SERVING while Jelou refuses its credential.
const (
	healthServer    = ""
	healthReadiness = "readiness"
	healthLiveness  = "liveness"
	healthCompany   = "company/" // and its id
)

const (
	// readyEvery is how often the server asks itself whether it is ready, readyWait how long the ledger may take to answer.
	readyEvery = time.Second
	readyWait  = 2 * time.Second
)

// condition is how the process is, as last seen.
type condition struct {
	looked     bool // at least once
	ledgerUp   bool
	halt       ledger.Halt
	durability ledger.Durability
	stopping   bool
	unwritable error    // why sends cannot be stored, while the ledger answers
	keyMissing bool     // something is stored whose key this process has not got
	refused    []string // companies whose credential Jelou refuses
}

func (c *condition) ready() bool { return len(c.problems()) == 0 }

// problems are why the process is not ready.
func (c *condition) problems() []string {
	var found []string
	if c.stopping {
		found = append(found, "the server stops")
	}
	switch {
	case !c.looked:
		found = append(found, "the server starts")
	case !c.ledgerUp:
		found = append(found, "the ledger's database does not answer")
	case c.halt.Rewound:
		found = append(found, "the ledger went back in time and is held until `jelou-facade ledger release`")
	case c.halt.Held:
		found = append(found, "the ledger is another database than before and is held until `jelou-facade ledger release`")
	}
	return found
}

// degraded is what goes wrong while the process is ready.
func (c *condition) degraded() []string {
	found := slices.Clone(c.refused)
	if c.unwritable != nil {
		found = append(found, "sends are not taken: "+c.unwritable.Error())
	}
	if c.keyMissing {
		found = append(found, "ledger.encryption_key_file: a key is missing; what it sealed is not sent from here")
	}
	return found
}

// readiness tells who asks whether calls may come here. A database that is away, a ledger that is held and a stop make the
// process not ready. A credential that Jelou refuses does not, not even the only company's: every replica has the same, so
// taking all of them away would turn an error that says what to do into connections that fail, and batches that can
// wait into batches that are refused. It shows as degraded. So does a database that is full or read-only: all replicas have
// the same, and only what stores sends fails, with an error that says why, while sends and results can be read. And so does a
// key that is missing: what it sealed other replicas send.
type readiness struct {
	health *health.Server
	core   *core
	log    *slog.Logger

	mu  sync.Mutex
	now condition
}

func newReadiness(core *core, log *slog.Logger) *readiness {
	r := &readiness{health: health.NewServer(), core: core, log: log}
	r.health.SetServingStatus(healthLiveness, healthv1.HealthCheckResponse_SERVING)
	for _, name := range []string{healthServer, healthReadiness} {
		r.health.SetServingStatus(name, healthv1.HealthCheckResponse_NOT_SERVING) // until it has looked
	}
	return r
}

// run looks until ctx ends.
func (r *readiness) run(ctx context.Context) {
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// look asks the ledger, and tells what came of it.
func (r *readiness) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	seen := condition{looked: true}
	halt, err := r.core.ledger.Halt(ctx)
	if err == nil {
		seen.durability, err = r.core.ledger.Durability(ctx)
	}
	seen.ledgerUp, seen.halt = err == nil, halt
	for _, c := range companiesOf(r.core.settings.Load().Bots) {
		refused := r.core.dispatch.CredentialRefused(c.ID)
		if refused {
			seen.refused = append(seen.refused, c.Name)
		}
		r.health.SetServingStatus(healthCompany+c.Name, serving(!refused))
	}
	slices.Sort(seen.refused)
	seen.keyMissing = r.core.keyMissing()
	if seen.ledgerUp {
		seen.unwritable = r.core.ledger.Writable()
	}
	r.set(func(c *condition) {
		seen.stopping = c.stopping
		if !seen.ledgerUp {
			seen.halt, seen.durability = c.halt, c.durability // as last known
		}
		*c = seen
	})
}

// stop makes the process not ready for good.
func (r *readiness) stop() { r.set(func(c *condition) { c.stopping = true }) }

// set changes the condition, and tells and logs what it means.
func (r *readiness) set(change func(*condition)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.now.problems()
	change(&r.now)
	problems := r.now.problems()
	for _, name := range []string{healthServer, healthReadiness} {
		r.health.SetServingStatus(name, serving(len(problems) == 0))
	}
	switch {
	case slices.Equal(before, problems):
	case len(problems) > 0:
		r.log.Warn("not ready", slog.Any("problems", problems))
	default:
		r.log.Info("ready")
	}
}

func serving(ok bool) healthv1.HealthCheckResponse_ServingStatus {
	if ok {
		return healthv1.HealthCheckResponse_SERVING
	}
	return healthv1.HealthCheckResponse_NOT_SERVING
}

// current is the condition as last seen.
func (r *readiness) current() condition {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}
