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
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
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
senders of headers, bodies and messages. Most calls come with the attacker's own API key or JWT, the others with none, with a wrong key, or
with a JWT that is expired, forged, or of an unknown key. Another caller, in a process and with a key of its own, sends 20 texts a
second, over gRPC and REST in turn, before and meanwhile. The facade logs at DEBUG.

Fields: calls, ok (answered with success), mapped (an error with a reason of the table, over REST in AIP-193's shape), left (the client
did not wait for an answer), refused (by gRPC or net/http themselves, where there is no request to answer), cut (the connection ended
without an answer), cut_unasked (those that are neither of resets nor of raw bytes), unmapped (any other answer, or a panic in the
log), internal (mapped, but as the facade's own fault), alive (it serves at the end, as the same process), rss_max_mib, resets,
good_failed (of the other caller's calls), quiet_p50_ms, quiet_p99_ms, hostile_p50_ms, hostile_p99_ms (of the other caller's answers),
p99_ratio, and the same two percentiles and ratio with grpc_ and rest_ in front. --quick: 2,000 calls.`,
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
	t := b.found.table("What came of the calls", "kind", "ok", "mapped", "left", "refused", "cut", "unmapped")
	for _, kind := range slices.Sorted(maps.Keys(h.counts)) {
		n := h.counts[kind]
		t.add(kind, n[answeredOK], n[answeredMapped], n[answeredLeft], n[answeredRefused], n[answeredCut], n[answeredUnmapped])
	}
	f := &b.found
	f.set("calls", h.made)
	for _, a := range []answered{answeredOK, answeredMapped, answeredLeft, answeredRefused, answeredCut, answeredUnmapped} {
		f.set(string(a), h.sum(a))
	}
	unasked := h.sum(answeredCut)
	for _, k := range hostilities {
		if k.cuts {
			unasked -= h.counts[k.name][answeredCut]
		}
	}
	f.set("cut_unasked", unasked)
	f.set("internal", h.internal)
	f.set("alive", h.alive)
	f.set("rss_max_mib", rounded(h.memory, 0))
	f.set("resets", int(h.resets.Load()))
	f.set("good_failed", h.goodFailed)
	for i, over := range overs {
		quiet, during := h.latency[false][i], h.latency[true][i]
		f.set(over+"_quiet_p99_ms", rounded(percentile(quiet, 99), 1))
		f.set(over+"_hostile_p99_ms", rounded(percentile(during, 99), 1))
		f.set(over+"_p99_ratio", rounded(percentile(during, 99)/percentile(quiet, 99), 2))
	}
	quiet, during := slices.Concat(h.latency[false][:]...), slices.Concat(h.latency[true][:]...)
	f.set("quiet_p50_ms", rounded(percentile(quiet, 50), 1))
	f.set("quiet_p99_ms", rounded(percentile(quiet, 99), 1))
	f.set("hostile_p50_ms", rounded(percentile(during, 50), 1))
	f.set("hostile_p99_ms", rounded(percentile(during, 99), 1))
	f.set("p99_ratio", rounded(percentile(during, 99)/percentile(quiet, 99), 2))
	f.mustBe("unmapped", 0)
	f.mustBe("cut_unasked", 0)
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
	answeredCut      answered = "cut"
	answeredUnmapped answered = "unmapped"
)

// attack is the campaign.
type attack struct {
	b      *bench
	plan   hostilePlan
	tenant *tenant
	facade *facade
	who    *identities
	conn   *grpc.ClientConn // the attacker's own
	http   *http.Client
	resets atomic.Int64

	mu         sync.Mutex
	made       int
	counts     map[string]map[answered]int
	internal   int
	shown      int // of what was wrong
	goodFailed int
	latency    map[bool]*[2][]float64 // of the other caller, by whether there was an attack, and over what
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
	if (what == answeredUnmapped || what == answeredCut && detail != "" || isInternal) && a.shown < 20 {
		a.shown++
		a.b.progress("%s: %s: %s", kind, strings.ToUpper(string(what)), detail)
	}
}

// attack runs the whole.
func (b *bench) attack(plan hostilePlan) (*attack, error) {
	a := &attack{
		b: b, plan: plan, tenant: busy(tenants("hostile", 1), 1000, 100*time.Millisecond)[0],
		http:   &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32}},
		counts: map[string]map[answered]int{}, latency: map[bool]*[2][]float64{false: {}, true: {}},
	}
	var err error
	if a.who, err = b.newIdentities(); err != nil {
		return nil, err
	}
	_, err = b.startSimulatorFor(jelousim.Config{}, a.tenant)
	if err != nil {
		return nil, err
	}
	c, err := b.startFacadesWith(func(c *configv1.Config) {
		c.Log.Level = configv1.Log_DEBUG // net/http tells of a panic there
		a.who.configure(c)
	}, 1, "", a.tenant)
	if err != nil {
		return nil, err
	}
	a.facade = c.members[0]
	if a.conn, err = grpc.NewClient(a.facade.conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return nil, err
	}
	b.atEnd(a.conn.Close)
	other := otherCaller{GRPC: a.facade.conn.Target(), REST: a.facade.rest, Key: a.who.other, Bot: a.tenant.bot(), Seen: b.path("seen")}
	calling, err := b.startOther(other)
	if err != nil {
		return nil, err
	}
	b.progress("the other caller alone")
	if err := b.sleep(plan.quiet); err != nil {
		return nil, err
	}
	b.progress("the attack")
	began := time.Now()
	if err := a.run(); err != nil {
		return nil, err
	}
	ended := time.Now()
	calling.stop()
	seen, err := other.sightings()
	if err != nil {
		return nil, err
	}
	a.hear(seen, began, ended)
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	answer, err := healthv1.NewHealthClient(a.facade.conn).Check(ctx, &healthv1.HealthCheckRequest{})
	a.alive = err == nil && answer.Status == healthv1.HealthCheckResponse_SERVING
	log, err := os.ReadFile(a.facade.log)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "panic") || strings.Contains(line, "goroutine ") {
			a.count("log", answeredUnmapped, describe("%s", line))
		}
	}
	return a, err
}

// attackers is how many hostile calls run at the same time.
const attackers = 16

// run attacks while the other caller goes on.
func (a *attack) run() error {
	ctx, stop := context.WithCancel(a.b.ctx)
	defer stop()
	var beside sync.WaitGroup
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
				k.run(a.who.attacker(attacking, rng), a, k.name, rng)
			}
			return nil
		})
	}
	err := attacks.Wait()
	stop()
	beside.Wait()
	return err
}

// overs are what the other caller sends over, in turn.
var overs = [2]string{"grpc", "rest"}

// hear takes in what the other caller saw: before the attack it was quiet, and what began after it does not count.
func (a *attack) hear(all []sighting, began, ended time.Time) {
	for _, s := range all {
		during := s.Began >= began.UnixMicro()
		if s.Began > ended.UnixMicro() {
			continue
		}
		over := slices.Index(overs[:], s.Over)
		a.latency[during][over] = append(a.latency[during][over], s.MS)
		if s.Error != "" {
			a.goodFailed++
			a.b.progress("the other caller got %v over %s", s.Error, s.Over)
		}
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
		{a.rest(), "POST /v1/bots/x/messages HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + a.who.key + "\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{", " "},
		{a.rest(), "POST /v1/batches:stream HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + a.who.key + "\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000000\r\n\r\n{", " "},
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
	cuts bool // the facade may cut its connection without an answer
}

var hostilities = []hostility{
	{"gRPC: messages of random fields", randomMessage, false},
	{"gRPC: mutated messages", mutatedMessage, false},
	{"gRPC: random bytes", randomBytes, false},
	{"gRPC: unknown methods", unknownMethod, false},
	{"gRPC: large messages", largeMessage, false},
	{"gRPC: floods of metadata", metadataFlood, false},
	{"gRPC: streams out of order", randomStream, false},
	{"gRPC: leaves at once", leaves, false},
	{"HTTP/2: rapid reset", rapidReset, true},
	{"TCP: raw bytes", rawBytes, true},
	{"REST: JSON of random fields", randomJSON, false},
	{"REST: mutated JSON", mutatedJSON, false},
	{"REST: deep JSON", deepJSON, false},
	{"REST: large bodies", largeBody, false},
	{"REST: random routes", randomRoute, false},
	{"REST: floods of headers", headerFlood, false},
	{"REST: streams out of order", randomLines, false},
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
