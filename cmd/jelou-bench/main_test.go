package main

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/jelou-facade/jelou-facade/internal/canary"
	"github.com/jelou-facade/jelou-facade/service/keyring"
)

// newTestBench is a run of real processes that ends with the test. Its seed is in the log.
func newTestBench(t *testing.T) *bench {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	b := &bench{
		ctx: ctx, name: t.Name(), quick: true, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)),
		stderr: t.Output(), began: time.Now(), folder: t.TempDir(),
	}
	t.Cleanup(func() {
		cancel()
		if err := b.end(); err != nil {
			t.Error(err)
		}
	})
	if err := b.build(ctx, "jelou-facade", "jelousim"); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.keyFile, err = b.write("ledger.key", []byte(keyring.New())); err != nil {
		t.Fatal(err)
	}
	b.searchAtEnd(t, "log", filepath.Join(b.folder, "*jelou-facade.log")) // after every process has ended
	return b
}

// sentWords begin the numbers and texts that campaigns send.
var sentWords = []string{"59390000", "593800000", "59370000", "593991234567", "Novedad ", "Su pedido ", "Aviso ", "secret-of-"}

// searchAtEnd searches files for what was sent, once those have ended that were started after this call.
func (b *bench) searchAtEnd(t *testing.T, sink string, patterns ...string) {
	b.atEnd(func() error {
		search := canary.NewSearch(sentWords...)
		found, err := search.InFiles(sink, patterns...)
		for _, one := range found {
			t.Errorf("found %s", one)
		}
		t.Logf("bytes searched: %v", search.Bytes())
		return err
	})
}

// Processes are killed in the middle of everything: nothing accepted is lost, nothing is sent twice, nobody was told
// anything that the ledger does not say.
func TestCrash(t *testing.T) {
	b := newTestBench(t)
	b.searchAtEnd(t, "database", filepath.Join(b.folder, "*ledger.db*"))
	accounts, err := b.crashBoth(crashPlan{sends: 800, kills: 4, between: 2500 * time.Millisecond, items: 50, quiet: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range accounts {
		t.Logf("%s: %d accepted, %d sent, %d failed, %d unknown, %d expired, %d cancelled", a.ledger, a.accepted, a.sent, a.failed, a.unknown, a.expired, a.cancelled)
		if a.lost != 0 || a.doubled != 0 || a.waiting != 0 {
			t.Errorf("%s: %d lost, %d sent twice, %d still waiting; want none", a.ledger, a.lost, a.doubled, a.waiting)
		}
		for _, wrong := range a.contradicted {
			t.Errorf("%s: %s", a.ledger, wrong)
		}
	}
}

// Streams are cut on both sides and at the database: every item has one result.
func TestCuts(t *testing.T) {
	b := newTestBench(t)
	p, err := b.startPostgres()
	if err != nil {
		t.Fatal(err)
	}
	b.searchAtEnd(t, "PostgreSQL's files", filepath.Join(p.data(), "base/*/*"), filepath.Join(p.data(), "pg_wal/*"), filepath.Join(p.folder, "log"))
	c, err := b.cutStreams(p, cutPlan{cuts: 60, items: 2000, batches: 20, between: 150 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if cuts := c.total(); cuts < 40 {
		t.Errorf("only %d streams were cut", cuts)
	}
	if c.lost != 0 || c.doubled != 0 {
		t.Errorf("%d items lost, %d sent twice; want none", c.lost, c.doubled)
	}
	for _, u := range c.uploads {
		for _, wrong := range u.wrong {
			t.Errorf("%s: %s", u.batchID, wrong)
		}
	}
}

// Replicas restart one after the other and their configuration changes, and callers notice nothing but UNAVAILABLE.
func TestRolling(t *testing.T) {
	b := newTestBench(t)
	p, err := b.startPostgres()
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.roll(p, rollingPlan{sends: 300, rounds: 1, items: 50, pause: time.Second, quiet: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if r.lost != 0 || r.doubled != 0 || r.failed() != 0 || r.violated != 0 || r.stale != 0 || len(r.contradicted) != 0 {
		t.Errorf("%d lost, %d doubled, %d violations, %d stale, %v, %v", r.lost, r.doubled, r.violated, r.stale, r.endings, r.contradicted)
	}
}

// Whatever is sent to either port, the process lives, and every answer is an error of the table.
func TestHostile(t *testing.T) {
	b := newTestBench(t)
	a, err := b.attack(hostilePlan{calls: 600, rate: 100, quiet: time.Second, slow: 20})
	if err != nil {
		t.Fatal(err)
	}
	if n := a.sum(answeredUnmapped); n != 0 || a.internal != 0 || !a.alive || a.goodFailed != 0 || a.memory > 512 {
		t.Errorf("%d unmapped, %d internal, alive %t, %d calls of the other client failed, %.0f MiB", n, a.internal, a.alive, a.goodFailed, a.memory)
	}
}
