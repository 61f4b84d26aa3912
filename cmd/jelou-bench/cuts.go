package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var cutsBenchmark = benchmark{
	name:  "cuts",
	short: "Streams cut at random moments: one result for each item, how fast they go on, what one costs",
	long: `
100,000 items as 50 batches, all uploaded at the same time over StreamBatch to three replicas on PostgreSQL, each client on
a connection of its own, until 1,000 streams were cut: clients killed (their connection is reset; the next one knows
the batch's id and its latest cursor or an older one), servers killed (kill -9), servers that stop in order (GOAWAY and
DRAINING), the database restarted, which ends no stream. One item in fifty is bad and has its result at once. Jelou has no limit here: 25 companies
with 20 requests in 100 ms each. Every client checks that each item has one result with one cursor, and reads all
results again at the end.

Then the memory of a stream: what a fresh server's resident memory grows by while so many streams upload 1,000 items each,
as fast as they can, and read nothing; and the same while the database stores nothing, so that each stream holds all that it
may; with texts of 160 letters, and with 800.

Fields: cuts, items, lost (acknowledged items that are not there, items without a result), twice (items with two results, or
any other thing that must not be), doubled (at Jelou), resume_p99_ms (from opening a cut stream again on a server that
is there, or from when its database is there again, to the first answer), stream_mib, stream_stalled_mib,
stream_long_mib, stream_long_stalled_mib.
--quick: 40 cuts over 2,000 items in 20 batches, 100 streams in memory instead of 200.`,
	run: cuts,
}

// cutPlan is how much a campaign does.
type cutPlan struct {
	cuts, items, batches int
	between              time.Duration // cuts, on average
	streams              int           // in memory
}

func cuts(b *bench) error {
	plan := pick(b,
		cutPlan{cuts: 1000, items: 100_000, batches: 50, between: 300 * time.Millisecond, streams: 200},
		cutPlan{cuts: 40, items: 2000, batches: 20, between: 250 * time.Millisecond, streams: 100})
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	c, err := b.cutStreams(p, plan)
	if err != nil {
		return err
	}
	t := b.found.table(fmt.Sprintf("%d items in %d batches, three replicas on PostgreSQL", plan.items, plan.batches), "cut by", "times", "streams cut")
	for _, w := range c.ways {
		t.add(w.name, w.times, w.cut)
	}
	c.set(&b.found)
	return b.streamMemory(p, plan.streams)
}

// cutting is a campaign of cuts.
type cutting struct {
	b       *bench
	plan    cutPlan
	rng     *rand.Rand
	p       *postgres
	fleet   *fleet
	sim     *simulator
	uploads []*upload
	ways    []*cutWay

	databaseSince atomic.Int64           // when it last came back, in microseconds
	at            atomic.Pointer[cutWay] // what cuts at the moment

	lost, twice, doubled int
}

// cutWay is one way in which streams are cut.
type cutWay struct {
	name  string
	share int // of so many
	run   func(*cutting) error

	times, cut int
}

// ways of cutting. A database that restarts cuts no stream by itself; what it does to them is counted all the same.
func cutWays() []*cutWay {
	return []*cutWay{
		{name: "client killed", share: 88, run: (*cutting).killClient},
		{name: "server killed", share: 6, run: func(c *cutting) error { return c.fleet.restart(c.rng.IntN(len(c.fleet.seats)), syscall.SIGKILL) }},
		{name: "GOAWAY and DRAINING", share: 4, run: func(c *cutting) error { return c.fleet.restart(c.rng.IntN(len(c.fleet.seats)), syscall.SIGTERM) }},
		{name: "database restarted", share: 2, run: (*cutting).restartDatabase},
	}
}

func (c *cutting) restartDatabase() error {
	c.p.signal(syscall.SIGINT)
	err := c.p.start()
	c.databaseSince.Store(time.Now().UnixMicro())
	return err
}

// cutStreams runs a campaign.
func (b *bench) cutStreams(p *postgres, plan cutPlan) (*cutting, error) {
	c := &cutting{b: b, plan: plan, rng: rand.New(rand.NewPCG(b.rng.Uint64(), 3)), p: p, ways: cutWays()}
	c.at.Store(c.ways[0])
	all := busy(tenants("shop", 25), 20, 100*time.Millisecond)
	var err error
	if c.sim, err = b.startSimulatorFor(jelousim.Config{}, all...); err != nil {
		return nil, err
	}
	url, err := p.database()
	if err != nil {
		return nil, err
	}
	c.fleet, err = b.startFleet(3, url, func(config *configv1.Config) {
		for _, company := range config.Companies {
			company.AttemptTimeout = durationpb.New(attemptTimeout)
		}
	}, all...)
	if err != nil {
		return nil, err
	}
	defer c.fleet.stop()
	limit := rate.NewLimiter(rate.Limit(float64(plan.items)/(time.Duration(plan.cuts)*plan.between).Seconds()), 50)
	for i := range plan.batches {
		c.uploads = append(c.uploads, &upload{
			spec:  &facadev1.BatchSpec{BotId: all[i%len(all)].bot(), RequestId: fmt.Sprintf("batch-%d", i)},
			items: plan.items / plan.batches, limit: limit,
			item:  func(sequence int) *facadev1.BatchItem { return itemOf(fmt.Sprint("lote ", i), sequence) },
			dial:  func() (*link, error) { return c.fleet.any().dialAlone() },
			there: func() time.Time { return time.UnixMicro(c.databaseSince.Load()) },
			cause: func() string { return c.at.Load().name },
		})
	}
	return c, c.run(limit)
}

func (c *cutting) run(limit *rate.Limiter) error {
	ctx, cancel := context.WithCancel(c.b.ctx)
	defer cancel()
	var uploading errgroup.Group
	done := make(chan struct{})
	for _, u := range c.uploads {
		uploading.Go(func() error {
			err := u.run(ctx)
			if err != nil {
				cancel()
			}
			return err
		})
	}
	var failed error
	go func() {
		failed = uploading.Wait()
		close(done)
	}()
	err := c.cut(done)
	limit.SetLimit(rate.Inf) // the rest as fast as it goes
	if err != nil {
		cancel()
	}
	<-done
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	return c.account()
}

// cut cuts streams until enough are cut or all batches have ended.
func (c *cutting) cut(done <-chan struct{}) error {
	said := 0
	for c.total() < c.plan.cuts {
		select {
		case <-done:
			return nil
		case <-time.After(time.Duration(c.rng.Int64N(int64(2 * c.plan.between)))):
		}
		w := c.way()
		before := c.total()
		c.at.Store(w)
		if err := w.run(c); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		w.times++
		w.cut += c.total() - before
		if said < c.total()/100 {
			said = c.total() / 100
			c.b.progress("%d streams were cut", c.total())
		}
	}
	return nil
}

// way draws one by its share. The first ones are one of each, so that none is left out.
func (c *cutting) way() *cutWay {
	n := 0
	for _, w := range c.ways {
		n += w.share
		if w.times == 0 && c.total() >= c.plan.cuts/4 {
			return w
		}
	}
	draw := c.rng.IntN(n)
	for _, w := range c.ways {
		if draw -= w.share; draw < 0 {
			return w
		}
	}
	panic("unreachable: the draw is below the sum")
}

// killClient kills the client of a stream, and waits until it has noticed.
func (c *cutting) killClient() error {
	u := c.uploads[c.rng.IntN(len(c.uploads))]
	before, _ := u.cutSoFar()
	if !u.cutNow() {
		return nil
	}
	for {
		if now, ended := u.cutSoFar(); now > before || ended {
			return nil
		}
		if err := c.b.sleep(time.Millisecond); err != nil {
			return err
		}
	}
}

// cutSoFar is how many of a batch's streams were cut, and whether it has ended.
func (u *upload) cutSoFar() (int, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.cuts, u.ended
}

// total is how many streams were cut so far.
func (c *cutting) total() (n int) {
	for _, u := range c.uploads {
		cuts, _ := u.cutSoFar()
		n += cuts
	}
	return n
}

// account looks at every item once more.
func (c *cutting) account() error {
	for _, u := range c.uploads {
		if _, err := u.watchAgain(c.b.ctx, c.fleet.any().batches); err != nil {
			return fmt.Errorf("watch %s: %w", u.batchID, err)
		}
		c.lost += u.missing()
		c.twice += len(u.wrong)
		for _, w := range u.wrong {
			c.b.progress("%s: %s", u.batchID, w)
		}
	}
	var err error
	c.doubled, err = c.sim.duplicates(c.b.ctx)
	return err
}

func (c *cutting) set(f *findings) {
	var resumes []resume
	for _, u := range c.uploads {
		resumes = append(resumes, u.resumes...)
	}
	t := f.table("Going on after a cut, ms", "cut by", "streams", "open to answer p50", "p90", "p99", "largest", "cut to answer p50", "p99")
	for _, w := range c.ways {
		var open, outage []float64
		for _, r := range resumes {
			if r.cause == w.name {
				open, outage = append(open, r.open), append(outage, r.outage)
			}
		}
		t.add(w.name, len(open), percentile(open, 50), percentile(open, 90), percentile(open, 99), percentile(open, 100), percentile(outage, 50), percentile(outage, 99))
	}
	f.set("cuts", c.total())
	f.set("items", c.plan.items)
	f.set("lost", c.lost)
	f.set("twice", c.twice)
	f.set("doubled", c.doubled)
	for _, field := range []string{"lost", "twice", "doubled"} {
		f.mustBe(field, 0)
	}
	f.set("resume_p99_ms", rounded(percentile(opens(resumes), 99), 1))
	f.atMost("resume_p99_ms", 200)
}

// dialAlone connects to the server as a client of its own that can be killed.
func (f *facade) dialAlone() (*link, error) {
	var mu sync.Mutex
	var open []net.Conn
	conn, err := grpc.NewClient(f.conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err == nil {
				mu.Lock()
				open = append(open, c)
				mu.Unlock()
			}
			return c, err
		}))
	if err != nil {
		return nil, err
	}
	return &link{
		batches: facadev1.NewBatchServiceClient(conn),
		cut: func() {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range open {
				_ = c.(*net.TCPConn).SetLinger(0) // a reset, as when a process is gone with data unread
				_ = c.Close()
			}
		},
		close: func() { _ = conn.Close() },
	}, nil
}

// memoryCases are what streams upload whose memory is measured.
var memoryCases = []struct {
	name, field string
	letters     int  // of each text
	lock        bool // the ledger takes nothing
}{
	{"as it comes", "stream_mib", 160, false},
	{"stalled", "stream_stalled_mib", 160, true},
	{"long texts", "stream_long_mib", 800, false},
	{"long texts, stalled", "stream_long_stalled_mib", 800, true},
}

// memoryItems is what every stream uploads: as much as it may without an acknowledgement.
const memoryItems = 1000

// streamMemory measures what a server's memory grows by for a stream whose client reads nothing.
func (b *bench) streamMemory(p *postgres, streams int) error {
	all := busy(tenants("memory", 1), 5, time.Second)
	if _, err := b.startSimulatorFor(jelousim.Config{}, all...); err != nil {
		return err
	}
	url, err := p.database()
	if err != nil {
		return err
	}
	t := b.found.table(fmt.Sprintf("A server's memory with %d streams that upload %d items each and read nothing, MiB", streams, memoryItems),
		"", "letters", "before", "at most", "per stream")
	for _, m := range memoryCases {
		b.progress("memory of %d streams: %s", streams, m.name)
		f, err := b.startFleet(1, url, nil, all...)
		if err != nil {
			return err
		}
		server := f.seats[0].Load()
		// A few before, so that what a server needs once is not counted.
		if _, _, err := b.holdStreams(server, all[0], 5, m.letters, url, false); err != nil {
			return err
		}
		before, most, err := b.holdStreams(server, all[0], streams, m.letters, url, m.lock)
		if err != nil {
			return err
		}
		f.stop()
		each := max(most-before, 0) / float64(streams)
		t.add(m.name, m.letters, before, most, each)
		b.found.set(m.field, rounded(each, 3))
		b.found.atMost(m.field, 1)
	}
	return nil
}

// holdStreams opens streams that upload and never read, and samples the server's memory.
func (b *bench) holdStreams(server *facade, t *tenant, streams, letters int, url string, lock bool) (before, most float64, err error) {
	if before, err = server.resident(); err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	words := strings.Repeat("abcdefghijklmnopqrstuvwxyz ", letters/27+1)[:letters]
	var opened, uploading errgroup.Group
	begin := make(chan struct{})
	for range streams {
		l, err := server.dialAlone()
		if err != nil {
			return 0, 0, err
		}
		defer l.close()
		opened.Go(func() error {
			s, err := l.batches.StreamBatch(ctx)
			if err != nil {
				return err
			}
			open := &facadev1.StreamBatchRequest_Open{Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: &facadev1.BatchSpec{BotId: t.bot(), Paused: true}}}
			_ = s.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: open}})
			if _, err := s.Recv(); err != nil {
				return err
			}
			uploading.Go(func() error {
				<-begin
				for sequence := 1; sequence <= memoryItems; sequence++ {
					item := itemOf(words, sequence)
					if s.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: item}}) != nil {
						break // a stream whose ledger is stalled is ended by the server in time
					}
				}
				return nil
			})
			return nil
		})
	}
	if err := opened.Wait(); err != nil {
		return 0, 0, err
	}
	release := func() error { return nil }
	if lock {
		if release, err = b.lockSends(url); err != nil {
			return 0, 0, err
		}
	}
	close(begin)
	finished := make(chan struct{})
	go func() { _ = uploading.Wait(); close(finished) }()
	timeout := time.After(pick(b, 20*time.Second, 6*time.Second))
	if lock {
		timeout = time.After(3 * time.Second) // less than a statement waits
	}
	for over := false; !over; {
		now, err := server.resident()
		if err != nil {
			return 0, 0, err
		}
		most = max(most, now)
		select {
		case <-finished:
			over = true
		case <-timeout:
			over = true
		case <-time.After(20 * time.Millisecond):
		}
	}
	cancel()
	<-finished
	return before, most, release()
}

// lockSends keeps everybody from storing sends until the lock is released.
func (b *bench) lockSends(url string) (release func() error, err error) {
	conn, err := pgx.Connect(b.ctx, url)
	if err != nil {
		return nil, err
	}
	release = func() error { return conn.Close(context.WithoutCancel(b.ctx)) }
	for _, statement := range []string{"BEGIN", "LOCK TABLE send IN EXCLUSIVE MODE"} {
		if _, err := conn.Exec(b.ctx, statement); err != nil {
			return nil, errors.Join(err, release())
		}
	}
	return release, nil
}
