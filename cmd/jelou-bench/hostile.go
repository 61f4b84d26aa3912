package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var hostileBenchmark = benchmark{
	name:  "hostile",
	short: "Hostile calls over gRPC and REST: does the process live, are answers mapped, what do others notice",
	long: `
10,000 generated calls against one process on SQLite, 100 a second and at most 16 at a time: fuzzed protobuf and JSON, deep and huge bodies, bad UTF-8, random
methods, routes and queries, floods of headers, streams out of order, calls that leave at once, HTTP/2 connections whose streams are
reset as soon as they are opened, raw bytes on both ports; beside them connections that are opened and left half-open, and slow
senders of headers, bodies and messages. Another client sends 20 texts a second, before and meanwhile.

Fields: calls, ok (answered with success), mapped (an error with a reason of the table, over REST in AIP-193's shape), left (the client
did not wait for an answer), refused (by gRPC or net/http themselves, where there is no request to answer), unmapped (any other
answer), internal (mapped, but as the facade's own fault), alive (it serves at the end, as the same process), rss_max_mib, resets, good_failed (of
the other client's calls), quiet_p50_ms, quiet_p99_ms, hostile_p50_ms, hostile_p99_ms (of the other client's answers), p99_ratio.
--quick: 2,000 calls.`,
	run: hostile,
}

// hostilePlan is how much is done.
type hostilePlan struct {
	calls int
	rate  rate.Limit    // of calls
	quiet time.Duration // of measuring before
	slow  int           // connections that are held half-open or slow
}

func hostile(b *bench) error {
	plan := pick(b, hostilePlan{calls: 10_000, rate: 100, quiet: 30 * time.Second, slow: 200}, hostilePlan{calls: 2000, rate: 100, quiet: 8 * time.Second, slow: 50})
	h, err := b.attack(plan)
	if err != nil {
		return err
	}
	t := b.found.table("What came of the calls", "kind", "ok", "mapped", "left", "refused", "unmapped")
	for _, kind := range slices.Sorted(maps.Keys(h.counts)) {
		n := h.counts[kind]
		t.add(kind, n[answeredOK], n[answeredMapped], n[answeredLeft], n[answeredRefused], n[answeredUnmapped])
	}
	f := &b.found
	f.set("calls", h.made)
	for _, a := range []answered{answeredOK, answeredMapped, answeredLeft, answeredRefused, answeredUnmapped} {
		f.set(string(a), h.sum(a))
	}
	f.set("internal", h.internal)
	f.set("alive", h.alive)
	f.set("rss_max_mib", rounded(h.memory, 0))
	f.set("resets", int(h.resets.Load()))
	f.set("good_failed", h.goodFailed)
	quiet, during := h.latency[false], h.latency[true]
	f.set("quiet_p50_ms", rounded(percentile(quiet, 50), 1))
	f.set("quiet_p99_ms", rounded(percentile(quiet, 99), 1))
	f.set("hostile_p50_ms", rounded(percentile(during, 50), 1))
	f.set("hostile_p99_ms", rounded(percentile(during, 99), 1))
	f.set("p99_ratio", rounded(percentile(during, 99)/percentile(quiet, 99), 2))
	f.mustBe("unmapped", 0)
	f.mustBe("internal", 0)
	f.mustBe("alive", 1)
	f.mustBe("good_failed", 0)
	f.atMost("rss_max_mib", 512)
	f.atMost("p99_ratio", 2)
	return nil
}

// answered is what came of a hostile call.
type answered string

const (
	answeredOK       answered = "ok"
	answeredMapped   answered = "mapped"
	answeredLeft     answered = "left"
	answeredRefused  answered = "refused"
	answeredUnmapped answered = "unmapped"
)

// attack is the campaign.
type attack struct {
	b      *bench
	plan   hostilePlan
	tenant *tenant
	facade *facade
	http   *http.Client
	resets atomic.Int64

	mu         sync.Mutex
	made       int
	counts     map[string]map[answered]int
	internal   int
	shown      int // of what was wrong
	goodFailed int
	latency    map[bool][]float64 // of the other client, by whether there was an attack
	memory     float64
	alive      bool
}

func (a *attack) sum(what answered) (n int) {
	for _, kind := range a.counts {
		n += kind[what]
	}
	return n
}

// count notes what came of a call; detail says more about what must not be.
func (a *attack) count(kind string, what answered, detail string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.made++
	if a.counts[kind] == nil {
		a.counts[kind] = map[answered]int{}
	}
	a.counts[kind][what]++
	isInternal := strings.Contains(detail, facadev1.ErrorReason_INTERNAL.String())
	if isInternal {
		a.internal++
	}
	if (what == answeredUnmapped || isInternal) && a.shown < 20 {
		a.shown++
		a.b.progress("%s: %s: %s", kind, strings.ToUpper(string(what)), detail)
	}
}

// attack runs the whole.
func (b *bench) attack(plan hostilePlan) (*attack, error) {
	a := &attack{
		b: b, plan: plan, tenant: busy(tenants("hostile", 1), 1000, 100*time.Millisecond)[0],
		http:   &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32}},
		counts: map[string]map[answered]int{}, latency: map[bool][]float64{},
	}
	_, err := b.startSimulatorFor(jelousim.Config{}, a.tenant)
	if err != nil {
		return nil, err
	}
	c, err := b.startFacades(1, "", a.tenant)
	if err != nil {
		return nil, err
	}
	a.facade = c.members[0]
	b.progress("the other client alone")
	quiet, cancel := context.WithTimeout(b.ctx, plan.quiet)
	a.good(quiet, false)
	cancel()
	b.progress("the attack")
	if err := a.run(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	answer, err := healthv1.NewHealthClient(a.facade.conn).Check(ctx, &healthv1.HealthCheckRequest{})
	a.alive = err == nil && answer.Status == healthv1.HealthCheckResponse_SERVING
	log, err := os.ReadFile(a.facade.log)
	if strings.Contains(string(log), "panic") || strings.Contains(string(log), "goroutine ") {
		a.count("log", answeredUnmapped, "a panic: "+a.facade.logTail())
	}
	return a, err
}

// attackers is how many hostile calls run at the same time.
const attackers = 16

// run attacks while the other client goes on.
func (a *attack) run() error {
	ctx, stop := context.WithCancel(a.b.ctx)
	defer stop()
	var beside sync.WaitGroup
	beside.Go(func() { a.good(ctx, true) })
	beside.Go(func() { a.watchMemory(ctx) })
	beside.Go(func() { a.hold(ctx) })
	attacks, attacking := errgroup.WithContext(ctx)
	limit := rate.NewLimiter(a.plan.rate, attackers)
	var next atomic.Int64
	for range attackers {
		rng := rand.New(rand.NewPCG(a.b.rng.Uint64(), 5))
		attacks.Go(func() error {
			for int(next.Add(1)) <= a.plan.calls {
				if err := limit.Wait(attacking); err != nil {
					return err
				}
				k := hostilities[rng.IntN(len(hostilities))]
				k.run(attacking, a, k.name, rng)
			}
			return nil
		})
	}
	err := attacks.Wait()
	stop()
	beside.Wait()
	return err
}

// goodEvery is how often the other client sends.
const goodEvery = 50 * time.Millisecond

// good sends texts until ctx ends and notes how long each took.
func (a *attack) good(ctx context.Context, during bool) {
	tick := time.NewTicker(goodEvery)
	defer tick.Stop()
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		calls.Go(func() {
			call, cancel := context.WithTimeout(a.b.ctx, 10*time.Second)
			defer cancel()
			began := time.Now()
			_, err := a.facade.messages.SendMessage(call, a.tenant.message(a.tenant.bot(), facadev1.SendOptions_NORMAL))
			a.mu.Lock()
			defer a.mu.Unlock()
			a.latency[during] = append(a.latency[during], ms(time.Since(began)))
			if err != nil {
				a.goodFailed++
				a.b.progress("the other client got %v", err)
			}
		})
	}
}

func (a *attack) watchMemory(ctx context.Context) {
	for sleep(ctx, 100*time.Millisecond) == nil {
		mib, err := a.facade.resident()
		if err == nil {
			a.mu.Lock()
			a.memory = max(a.memory, mib)
			a.mu.Unlock()
		}
	}
}

// hold opens connections on which nothing more comes, or hardly anything, until ctx ends.
func (a *attack) hold(ctx context.Context) {
	beginnings := []struct{ port, begin, drop string }{
		{a.facade.conn.Target(), "", ""},
		{a.facade.conn.Target(), "PRI * HTTP/2.0\r\n", ""},
		{a.rest(), "", ""},
		{a.rest(), "GET /healthz HTTP/1.1\r\nHost: x\r\n", "X-Slow: 1\r\n"},
		{a.rest(), "POST /v1/bots/x/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{", " "},
		{a.rest(), "POST /v1/batches:stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000000\r\n\r\n{", " "},
	}
	var held sync.WaitGroup
	defer held.Wait()
	for i := range a.plan.slow {
		s := beginnings[i%len(beginnings)]
		held.Go(func() {
			c, err := net.Dial("tcp", s.port)
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = c.Write([]byte(s.begin)) // the server may close it at any time
			for sleep(ctx, 500*time.Millisecond) == nil {
				if _, err := c.Write([]byte(s.drop)); err != nil {
					return
				}
			}
		})
	}
}

// rest is the REST port's address.
func (a *attack) rest() string { return strings.TrimPrefix(a.facade.rest, "http://") }

// hostility is a kind of hostile call.
type hostility struct {
	name string
	run  func(ctx context.Context, a *attack, kind string, rng *rand.Rand)
}

var hostilities = []hostility{
	{"gRPC: messages of random fields", randomMessage},
	{"gRPC: mutated messages", mutatedMessage},
	{"gRPC: random bytes", randomBytes},
	{"gRPC: unknown methods", unknownMethod},
	{"gRPC: large messages", largeMessage},
	{"gRPC: floods of metadata", metadataFlood},
	{"gRPC: streams out of order", randomStream},
	{"gRPC: leaves at once", leaves},
	{"HTTP/2: rapid reset", rapidReset},
	{"TCP: raw bytes", rawBytes},
	{"REST: JSON of random fields", randomJSON},
	{"REST: mutated JSON", mutatedJSON},
	{"REST: deep JSON", deepJSON},
	{"REST: large bodies", largeBody},
	{"REST: random routes", randomRoute},
	{"REST: floods of headers", headerFlood},
	{"REST: streams out of order", randomLines},
}

// nasty are texts that break things.
func nasty(rng *rand.Rand) string {
	texts := []string{
		"", " ", "\x00", "demo", "593991234567", "hola", "\u202e", "\ufeff", "👩‍👩‍👧‍👦", "é", "'; DROP TABLE send; --", "../../etc/passwd", "%00", "${jndi:ldap://x}",
		"{{.}}", "<script>", "null", "true", "-1", "1e999", "9223372036854775808", strings.Repeat("a", 1+rng.IntN(5000)), "s000000000000000000000000",
		"b06jvqpp3tewx781msr7w8", "1-56m30x", "2026-13-45T99:99:99Z", "https://[::1", "http://x/" + strings.Repeat("%2e", 50), "\n\r\t",
	}
	return texts[rng.IntN(len(texts))]
}

// mutate changes, cuts, repeats or adds bytes.
func mutate(data []byte, rng *rand.Rand) []byte {
	data = slices.Clone(data)
	for range 1 + rng.IntN(8) {
		if len(data) == 0 {
			return []byte{byte(rng.Uint32())}
		}
		at := rng.IntN(len(data))
		switch rng.IntN(5) {
		case 0:
			data[at] = byte(rng.Uint32())
		case 1:
			data = data[:at]
		case 2:
			data = append(data[:at:at], data[at/2:]...)
		case 3:
			data = slices.Insert(data, at, []byte(nasty(rng))...)
		case 4:
			data = slices.Delete(data, at, min(len(data), at+1+rng.IntN(10)))
		}
	}
	return data[:min(len(data), 1<<20)]
}

// describe shortens what is shown of an answer.
func describe(format string, args ...any) string {
	text := fmt.Sprintf(format, args...)
	return text[:min(len(text), 300)]
}
