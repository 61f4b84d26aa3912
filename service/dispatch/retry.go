package dispatch

import (
	"context"
	"crypto/sha256"
	"time"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

const (
	// maxAttempts is how often a send is tried that never left, or that its caller wants retried when unknown.
	maxAttempts = 5
	// Backoff of a send that is tried again.
	backoffFirst = 500 * time.Millisecond
	backoffMost  = time.Minute
	// repeatShare is one in how many requests of the allowance may be a repeated attempt, so that repeats never crowd out
	// first attempts; repeatBurst of them may come together.
	repeatShare = 5
	repeatBurst = 3
)

// settlement is what becomes of a send: three outcomes and not two, for what may have left is unknown.
func (d *Dispatcher) settlement(c *company, send ledger.Send, result *jelou.Result, e *jelou.Error, now time.Time) ledger.Settlement {
	s := ledger.Settlement{ID: send.ID, Claim: send.Claim}
	if e == nil {
		s.State, s.Result = ledger.Sent, d.config.Result(result)
		for _, n := range result.Notifications {
			s.Notifications = append(s.Notifications, n.NotificationId)
		}
		return s
	}
	s.State, s.Reason, s.Result = ledger.Failed, e.Reason.String(), d.config.Error(e)
	again := send.Attempt < maxAttempts
	switch e.Outcome {
	case jelou.Throttled:
		// It costs no attempt; the company waits, not the send.
		s.State, s.Uncounted = ledger.Pending, true
	case jelou.Unauthorized:
		// Somebody waits for a single send and must hear of it; a batch waits for the credential.
		if send.Batch {
			s.State, s.Uncounted = ledger.Pending, true
		}
	case jelou.Unreachable:
		if again {
			s.State = ledger.Pending
		}
	case jelou.Unknown:
		switch {
		case send.OnUnknown == ledger.Hold, send.OnUnknown == ledger.Retry && !again:
			s.State = ledger.Unknown
		case send.OnUnknown == ledger.Retry:
			s.State, s.AfterLease = ledger.Pending, true
		}
	}
	if unknown := facadev1.ErrorReason_OUTCOME_UNKNOWN.String(); send.Reason == unknown {
		// An earlier attempt may have been sent. That this one was not, whatever the reason, does not change that.
		s.Reason = unknown
		if s.State == ledger.Failed {
			s.State, s.Result = ledger.Unknown, nil
		}
	}
	if s.State == ledger.Pending {
		s.Result = nil
		if !s.Uncounted {
			s.Backoff = max(backoff(send.Attempt), c.repeatIn(now, int(d.replicas.Load())))
		}
	}
	return s
}

// backoff grows with the attempts made, with jitter on its upper half.
func backoff(attempts int) time.Duration {
	return halfJitter(min(backoffFirst<<min(max(attempts-1, 0), 10), backoffMost))
}

// repeatIn takes a place among the repeated attempts that fit into their share of the allowance, of which every replica
// has its part, and says how long until it comes.
func (c *company) repeatIn(now time.Time, replicas int) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	every := c.rule.EachWindow() * time.Duration(repeatShare*replicas) / time.Duration(c.rule.InWindow())
	c.repeatAt = later(c.repeatAt, now.Add(-repeatBurst*every)).Add(every)
	return max(0, c.repeatAt.Sub(now))
}

// credentialEvery is how often the credential is read while Jelou refuses it.
const credentialEvery = time.Second

// watchCredentials ends the pause of a company whose credential was refused as soon as it is another one.
func (d *Dispatcher) watchCredentials(ctx context.Context) {
	tick := time.NewTicker(credentialEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, c := range d.all() {
				if c.renewed() {
					d.updatePace(ctx, c, func(b *pace.Budget, now pace.Time) bool { b.Resume(now); return true })
					d.replan(c)
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// renewed reports whether the company waits because of its credential and has another one by now.
func (c *company) renewed() bool {
	read := c.settings.Load().Credential
	c.mu.Lock()
	waits := c.pause == pace.PausedRejected && read != nil
	c.mu.Unlock()
	if !waits {
		return false
	}
	print := fingerprint(read)
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := c.refused != [32]byte{} && c.refused != print
	c.refused = print
	return changed
}

// fingerprint tells credentials apart without keeping them. One that cannot be read has a fingerprint too.
func fingerprint(credential func() (id, secret string, err error)) [32]byte {
	id, secret, err := credential()
	if err != nil {
		return sha256.Sum256([]byte("unreadable"))
	}
	return sha256.Sum256([]byte(id + "\x00" + secret))
}
