package dispatch

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// SelfCheck is the process's log of its own sends, and what it says about how well the promises are kept. It sees only
// what this process did: every replica has its own.
type SelfCheck struct {
	log *slog.Logger

	mu         sync.Mutex
	companies  map[string]*ownSends
	ghosts     int64
	duplicates int64
	claims     Claims
	unknown    []AgedCount
	errors     []time.Duration // of the last promises, a ring
	nextError  int
	fairness   float64
	fair       map[lineKey]int64 // claims of those who waited when last looked
}

// Conduct is a moment's reading of a SelfCheck.
type Conduct struct {
	Companies []CompanyConduct `json:"companies"`
	// GhostSends left after their own time was over: for callers who were gone.
	GhostSends int64 `json:"ghost_sends"`
	// DuplicatesPrevented counts calls that were answered with a send that there was already.
	DuplicatesPrevented int64 `json:"duplicates_prevented"`
	// Unknown sends that nobody has settled yet, in the whole ledger, by age.
	Unknown []AgedCount `json:"unknown"`
	// Fairness is Jain's index over the callers that waited in the same lane of the same company, by what they got for
	// their weight: 1 is fair. Of the least fair lane; 1 where nobody competes.
	Fairness float64 `json:"fairness"`
	// EstimateErrorP50 and P95 are by how much sends left earlier or later than their callers were told.
	EstimateErrorP50 time.Duration `json:"estimate_error_p50"`
	EstimateErrorP95 time.Duration `json:"estimate_error_p95"`
	Claims           Claims        `json:"claims"`
}

// CompanyConduct is one company's.
type CompanyConduct struct {
	Company string `json:"company"`
	// WorstWindow is how many requests this process began within one window, at most, since it was started.
	WorstWindow int `json:"worst_window"`
	// Allowed is how many it may.
	Allowed int `json:"allowed"`
	// Exceeded counts the requests that were one too many within a window.
	Exceeded int64 `json:"exceeded"`
}

// AgedCount counts what is at least so old and younger than the next age.
type AgedCount struct {
	Age   time.Duration `json:"age"`
	Count int64         `json:"count"`
}

// Claims counts the looks at companies that took their lock, by what came of them.
type Claims struct {
	Sends int64 `json:"sends"` // a send was claimed, or a read got its turn
	Early int64 `json:"early"` // something waits and may not leave yet: somebody else was there before
	Busy  int64 `json:"busy"`  // somebody else had the lock
	Empty int64 `json:"empty"` // nothing waited any more
}

// Wasted is the share of the claims that met another replica's.
func (c Claims) Wasted() float64 {
	all := c.Sends + c.Early + c.Busy + c.Empty
	if all == 0 {
		return 0
	}
	return float64(c.Early+c.Busy) / float64(all)
}

// ownSends are the starts of a company's last requests by this process.
type ownSends struct {
	starts  []time.Time // ascending
	window  time.Duration
	allowed int
	worst   int
	excess  int64 // starts that were one too many
}

const (
	// keptStarts is how many starts are kept beyond the allowance, for requests that end out of order.
	keptStarts = 64
	// keptErrors is how many promises the error of estimates is taken of.
	keptErrors = 1000
)

// unknownAges are the ages by which unknown sends are counted.
var unknownAges = []time.Duration{0, time.Hour, 24 * time.Hour, 7 * 24 * time.Hour}

// ageNames are their names in metrics.
var ageNames = map[time.Duration]string{0: "0s", time.Hour: "1h", 24 * time.Hour: "1d", 7 * 24 * time.Hour: "7d"}

func newSelfCheck(log *slog.Logger) *SelfCheck {
	return &SelfCheck{log: log, companies: map[string]*ownSends{}, fairness: 1, fair: map[lineKey]int64{}}
}

// Check is the process's check of itself.
func (d *Dispatcher) Check() *SelfCheck { return d.check }

// Joined notes that a call was answered with a send that there was already.
func (s *SelfCheck) Joined() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.duplicates++
}

// Snapshot is the conduct until now.
func (s *SelfCheck) Snapshot() Conduct {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Conduct{
		GhostSends: s.ghosts, DuplicatesPrevented: s.duplicates, Unknown: slices.Clone(s.unknown),
		Fairness: s.fairness, Claims: s.claims,
	}
	for _, name := range slices.Sorted(maps.Keys(s.companies)) {
		o := s.companies[name]
		out.Companies = append(out.Companies, CompanyConduct{Company: name, WorstWindow: o.worst, Allowed: o.allowed, Exceeded: o.excess})
	}
	if sorted := slices.Sorted(slices.Values(s.errors)); len(sorted) > 0 {
		out.EstimateErrorP50, out.EstimateErrorP95 = sorted[len(sorted)/2], sorted[len(sorted)*95/100]
	}
	return out
}

// claimed notes what came of a claim.
func (s *SelfCheck) claimed(cl ledger.Claim, d *decision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case cl.Busy:
		s.claims.Busy++
	case cl.Send != nil || d != nil && d.read != nil:
		s.claims.Sends++
	case d != nil && d.waits != pace.Lanes{}:
		s.claims.Early++
	default:
		s.claims.Empty++
	}
}

// attempted notes a request that is over.
func (s *SelfCheck) attempted(c *company, send ledger.Send, t jelou.Timing) {
	if t.Started.IsZero() {
		return // it never left
	}
	promised, wasPromised := c.promise(send.ID)
	rule := c.currentRule()
	ghost := send.ExpireAt != 0 && int64(c.clock.at(t.Started)) > send.ExpireAt
	s.mu.Lock()
	defer s.mu.Unlock()
	if ghost {
		s.ghosts++
	}
	if wasPromised {
		s.missed(t.Started.Sub(promised).Abs())
	}
	o := s.companies[c.Name]
	if o == nil {
		o = &ownSends{}
		s.companies[c.Name] = o
	}
	if o.allowed != rule.InWindow() || o.window != rule.EachWindow() {
		// What began before kept another rule.
		*o = ownSends{allowed: rule.InWindow(), window: rule.EachWindow(), excess: o.excess}
	}
	worst := o.began(t.Started)
	if worst > o.allowed {
		o.excess++
	}
	if worst > o.worst {
		o.worst = worst
		if worst > o.allowed {
			c.log.Error("self-check: too many requests began within one window", slog.Int("requests", worst), slog.Int("allowed", o.allowed))
		}
	}
}

func (s *SelfCheck) missed(by time.Duration) {
	if len(s.errors) < keptErrors {
		s.errors = append(s.errors, by)
		return
	}
	s.errors[s.nextError] = by
	s.nextError = (s.nextError + 1) % keptErrors
}

// began notes a start, and says how many requests began in the fullest window around it.
func (o *ownSends) began(at time.Time) int {
	i, _ := slices.BinarySearchFunc(o.starts, at, time.Time.Compare)
	o.starts = slices.Insert(o.starts, i, at)
	if most := o.allowed + keptStarts; len(o.starts) > most {
		drop := len(o.starts) - most
		o.starts = slices.Delete(o.starts, 0, drop)
		i = max(0, i-drop)
	}
	worst := 0
	for first, last := 0, 0; last < len(o.starts); last++ {
		for o.starts[last].Sub(o.starts[first]) >= o.window {
			first++
		}
		if first <= i && i <= last {
			worst = max(worst, last-first+1)
		}
	}
	return worst
}

// promise takes out when a send was promised to leave.
func (c *company) promise(id ledger.ID) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.promised[id]
	delete(c.promised, id)
	return at, ok
}

// lineKey names a share of any company.
type lineKey struct {
	company int64
	share
}

// maxInspected bounds the companies whose lines are counted for one inspection.
const maxInspected = 100

// inspect looks at what the ledger knows, and logs the conduct.
func (d *Dispatcher) inspect(ctx context.Context) {
	d.inspectFairness(ctx)
	s := d.check.Snapshot()
	worst, allowed := 0, 0
	for _, c := range s.Companies {
		if allowed == 0 || c.WorstWindow*allowed > worst*c.Allowed {
			worst, allowed = c.WorstWindow, c.Allowed
		}
	}
	unknown := int64(0)
	for _, u := range s.Unknown {
		unknown += u.Count
	}
	d.log.Info("self-check", slog.Int("worst_window", worst), slog.Int("allowed", allowed), slog.Int64("ghost_sends", s.GhostSends),
		slog.Int64("unknown", unknown), slog.Int64("duplicates_prevented", s.DuplicatesPrevented), slog.Float64("fairness", s.Fairness),
		slog.Duration("estimate_error_p95", s.EstimateErrorP95), slog.Int64("sends", s.Claims.Sends), slog.Float64("wasted_claims", s.Claims.Wasted()))
}

func (d *Dispatcher) inspectUnknown(ctx context.Context) {
	counts, err := d.config.Ledger.UnknownByAge(ctx, unknownAges)
	if err != nil {
		return // the last counts stand
	}
	aged := make([]AgedCount, len(counts))
	for i, n := range counts {
		aged[i] = AgedCount{Age: unknownAges[i], Count: n}
	}
	d.check.mu.Lock()
	defer d.check.mu.Unlock()
	d.check.unknown = aged
}

// inspectFairness compares what those got who waited at the last inspection and still do.
func (d *Dispatcher) inspectFairness(ctx context.Context) {
	fair := map[lineKey]int64{}
	fairness, inspected := 1.0, 0
	d.check.mu.Lock()
	before := d.check.fair
	d.check.mu.Unlock()
	for id, c := range d.all() {
		c.mu.Lock()
		idle := c.waits == pace.Lanes{}
		c.mu.Unlock()
		if inspected == maxInspected || idle {
			continue
		}
		inspected++
		if d.recount(ctx, c) != nil {
			return
		}
		fairness = min(fairness, c.compare(id, before, fair))
	}
	d.check.mu.Lock()
	defer d.check.mu.Unlock()
	d.check.fair, d.check.fairness = fair, fairness
}

// compare notes who waits, and gives the index of the least fair lane.
func (c *company) compare(id int64, before, now map[lineKey]int64) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := map[ledger.Lane][]float64{}
	for _, x := range c.line.shares() {
		key := lineKey{id, share{x.Lane, x.Caller}}
		if c.line.waiting(key.share) == 0 {
			continue
		}
		now[key] = x.Served
		if served, ok := before[key]; ok {
			got[x.Lane] = append(got[x.Lane], float64(x.Served-served)/float64(max(1, x.Tag.Weight)))
		}
	}
	least := 1.0
	for _, g := range got {
		least = min(least, jain(g))
	}
	return least
}

// jain is Jain's fairness index: 1 when all are equal, 1/n when one has everything.
func jain(got []float64) float64 {
	var sum, squares float64
	for _, x := range got {
		sum += x
		squares += x * x
	}
	if squares == 0 {
		return 1
	}
	return sum * sum / (float64(len(got)) * squares)
}
