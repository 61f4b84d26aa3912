package jelousim

import (
	"slices"
	"strings"
	"time"
)

// Report is what the recorded requests come to, since the start or the last reset.
type Report struct {
	// Seed of the random choices.
	Seed uint64 `json:"seed"`
	// Arrived requests, whatever became of them.
	Arrived int `json:"arrived"`
	// Accepted sends; a notification to n destinations is n of them.
	Accepted int `json:"accepted"`
	// Duplicates are the accepted sends beyond the first of each content, bot and recipient.
	Duplicates int `json:"duplicates"`
	// Throttled is the number of 429.
	Throttled int `json:"throttled"`
	// WorstWindow is the largest of the credentials'.
	WorstWindow int `json:"worst_window"`
	// Window that the worst is measured with, and Requests allowed in it; 0: no limit.
	Window   Duration `json:"window"`
	Requests int      `json:"requests"`
	// Outcomes counts the requests by what became of them.
	Outcomes map[Outcome]int `json:"outcomes"`
	// Credentials in the order of their names; those that sent nothing are left out.
	Credentials []CredentialReport `json:"credentials"`
	// Doubled are the contents that were accepted more than once, the first 100 by fingerprint.
	Doubled []Doubled `json:"doubled"`
	// Forgotten requests and sends were pushed out by newer ones and are in none of the numbers above.
	Forgotten int `json:"forgotten"`
}

// CredentialReport is one credential's part.
type CredentialReport struct {
	Credential string `json:"credential"`
	Arrived    int    `json:"arrived"`
	// Admitted requests were not answered 429.
	Admitted  int `json:"admitted"`
	Throttled int `json:"throttled"`
	// WorstWindow is the largest number of arrivals in any [t, t+window), WorstAdmitted that of admitted ones.
	WorstWindow   int `json:"worst_window"`
	WorstAdmitted int `json:"worst_admitted"`
	// Busy is the time from the first admitted request to the last.
	Busy Duration `json:"busy"`
	// Used is the share of the allowance in force now that the admitted requests took of the busy time
	// and one window more: 1 for a client that always sends as soon as it may.
	Used float64 `json:"used"`
}

// Doubled is a content that was accepted more than once.
type Doubled struct {
	Fingerprint Fingerprint `json:"fingerprint"`
	Count       int         `json:"count"`
}

const maxDoubled = 100

// Report is computed from the records.
func (s *Server) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Report{
		Seed: s.cfg.Seed, Window: s.rate.Window, Requests: s.rate.Requests,
		Arrived: s.requests.len(), Accepted: s.sends.len(), Forgotten: s.forgotten,
		Outcomes: map[Outcome]int{}, Credentials: []CredentialReport{}, Doubled: []Doubled{},
	}
	type arrivals struct{ all, admitted []time.Duration }
	of := map[*credential]*arrivals{}
	for q := range s.requests.oldestFirst() {
		r.Outcomes[q.outcome]++
		a := of[q.credential]
		if a == nil {
			a = &arrivals{}
			of[q.credential] = a
		}
		a.all = append(a.all, q.at)
		if q.outcome != Throttled {
			a.admitted = append(a.admitted, q.at)
		}
	}
	r.Throttled = r.Outcomes[Throttled]
	window := time.Duration(s.rate.Window)
	for credential, a := range of {
		c := CredentialReport{
			Credential: credential.name,
			Arrived:    len(a.all), Admitted: len(a.admitted), Throttled: len(a.all) - len(a.admitted),
			WorstWindow: worstWindow(a.all, window), WorstAdmitted: worstWindow(a.admitted, window),
		}
		if n := len(a.admitted); n > 0 {
			busy := a.admitted[n-1] - a.admitted[0]
			c.Busy = Duration(busy)
			if s.rate.Requests > 0 {
				c.Used = float64(n) / (float64(s.rate.Requests) * float64(busy+window) / float64(window))
			}
		}
		r.WorstWindow = max(r.WorstWindow, c.WorstWindow)
		r.Credentials = append(r.Credentials, c)
	}
	slices.SortFunc(r.Credentials, func(a, b CredentialReport) int { return strings.Compare(a.Credential, b.Credential) })
	r.addDoubled(s.accepted)
	return r
}

func (r *Report) addDoubled(accepted map[Fingerprint]int) {
	for f, n := range accepted {
		if n > 1 {
			r.Duplicates += n - 1
			r.Doubled = append(r.Doubled, Doubled{f, n})
		}
	}
	slices.SortFunc(r.Doubled, func(a, b Doubled) int { return slices.Compare(a.Fingerprint[:], b.Fingerprint[:]) })
	r.Doubled = r.Doubled[:min(len(r.Doubled), maxDoubled)]
}

// worstWindow is the most times in any [t, t+window). Times do not fall. A fullest window can be moved to begin
// at one of the times, so only those are tried.
func worstWindow(times []time.Duration, window time.Duration) (worst int) {
	first := 0
	for i, t := range times {
		for t-times[first] >= window {
			first++
		}
		worst = max(worst, i-first+1)
	}
	return worst
}

// Requests that arrived, oldest first: the newest limit of them, all for 0.
func (s *Server) Requests(limit int) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []Request{}
	for q := range s.requests.newest(or(limit, s.requests.len())) {
		all = append(all, Request{s.start.Add(q.at), q.endpoint, q.credential.name, q.outcome, q.status, q.fault})
	}
	return all
}

// Sends that were accepted, oldest first: the newest limit of them, all for 0.
func (s *Server) Sends(limit int) []Send {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []Send{}
	for send := range s.sends.newest(or(limit, s.sends.len())) {
		all = append(all, s.shown(send))
	}
	return all
}

// SendsWithText finds the accepted messages with this text, or notifications whose parameters, joined by a
// space, are this text. Oldest first.
func (s *Server) SendsWithText(text string) []Send {
	s.mu.Lock()
	defer s.mu.Unlock()
	said, found := TextFingerprint(text), []Send{}
	for send := range s.sends.oldestFirst() {
		if send.Text == said {
			found = append(found, s.shown(send))
		}
	}
	return found
}

func (s *Server) shown(send *Send) Send {
	copied := *send
	copied.Status = s.progress(send, time.Now()).status
	return copied
}
