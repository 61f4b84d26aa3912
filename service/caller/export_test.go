package caller

import "net/http"

// Remembered is how many addresses are remembered.
func (a *Attempts) Remembered() int { return len(a.failures.new) + len(a.failures.old) }

// FetchOver has public keys fetched over another transport than the network.
func (s *Source) FetchOver(t http.RoundTripper) { s.transport = t }

// The times at which public keys are fetched again.
const (
	FetchEvery   = fetchEvery
	RefetchEvery = refetchEvery
)
