package caller

import (
	"crypto/sha256"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How many failed attempts an address has at once, and how often it gets another one.
const (
	failuresAtOnce = 20
	failureEvery   = time.Second
)

// remembered is how many addresses, and how many good credentials, are remembered at least; at most twice as many.
const remembered = 4096

// Attempts limits the failed attempts of each address. Where an address has used up its
// failures nothing from it is looked at any more, but for credentials that were good before: a wrong configuration of one service
// behind a proxy must not lock out the others, whose calls come from the same address. The zero Attempts is ready.
type Attempts struct {
	mu       sync.Mutex
	failures recent[netip.Addr, *rate.Limiter]
	good     recent[[sha256.Size]byte, struct{}]
}

// Blocked reports whether a credential is to be refused unseen.
func (a *Attempts) Blocked(now time.Time, from netip.Addr, c Credentials) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	failures, failed := a.failures.get(block(from))
	if !failed || failures.TokensAt(now) >= 1 {
		return false
	}
	_, good := a.good.get(c.digest())
	return !good
}

// Passed notes a good credential.
func (a *Attempts) Passed(c Credentials) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.good.put(c.digest(), struct{}{})
}

// Failed notes a refused one. One that is missing says nothing about secrets, and is not held against the address.
func (a *Attempts) Failed(now time.Time, from netip.Addr, why Reason) {
	if why == Missing || why == Limited {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	failures, ok := a.failures.get(block(from))
	if !ok {
		failures = rate.NewLimiter(rate.Every(failureEvery), failuresAtOnce)
		a.failures.put(block(from), failures)
	}
	failures.AllowN(now, 1)
}

// block is what stands for an address: of IPv6 the part that one customer of a provider has at least.
func block(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// recent is a bounded map: when the new half is full the old half is forgotten.
type recent[K comparable, V any] struct{ new, old map[K]V }

func (r *recent[K, V]) get(k K) (V, bool) {
	v, ok := r.new[k]
	if !ok {
		if v, ok = r.old[k]; ok {
			r.put(k, v)
		}
	}
	return v, ok
}

func (r *recent[K, V]) put(k K, v V) {
	if r.new == nil || len(r.new) >= remembered {
		r.old, r.new = r.new, make(map[K]V)
	}
	r.new[k] = v
}
