// Package caller says who calls and what a caller may do. It knows API keys, JWTs and client certificates, but neither gRPC nor
// HTTP: credentials go in, a Caller or an Error comes out. A Set holds all callers of one configuration and never
// changes; another configuration is another Set, made by the same Source.
package caller

import (
	"slices"
	"time"

	"golang.org/x/time/rate"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// Anonymous is the name of whoever calls a server without callers.
const Anonymous = "anonymous"

// A Caller is who calls and what it may do.
type Caller struct {
	config *configv1.Caller
	rate   *rate.Limiter // nil is no bound
}

var anonymous = &Caller{config: &configv1.Caller{Name: Anonymous, Companies: []string{everyCompany}, Admin: true}}

// everyCompany stands for all companies, also later ones.
const everyCompany = "*"

// Name is the caller's name, under which its sends are stored.
func (c *Caller) Name() string { return c.config.Name }

// Admin reports whether the caller may see and change what is other callers', in its companies.
func (c *Caller) Admin() bool { return c.config.Admin }

// MayResolve reports whether the caller may say what became of unknown sends.
func (c *Caller) MayResolve() bool { return c.config.MayResolve || c.config.Admin }

// MayUseAll reports whether the caller may use every company and bot, so that it may know which there are.
func (c *Caller) MayUseAll() bool {
	return slices.Contains(c.config.Companies, everyCompany) && len(c.config.Bots) == 0
}

// MayUseCompany reports whether the caller may use anything of a company.
func (c *Caller) MayUseCompany(id string) bool {
	return slices.Contains(c.config.Companies, everyCompany) || slices.Contains(c.config.Companies, id)
}

// MayUseBot reports whether the caller may use a bot of a company.
func (c *Caller) MayUseBot(company, bot string) bool {
	return c.MayUseCompany(company) && (len(c.config.Bots) == 0 || slices.Contains(c.config.Bots, bot))
}

// MayUseLane reports whether the caller may send in a lane.
func (c *Caller) MayUseLane(lane facadev1.SendOptions_Lane) bool {
	return len(c.config.Lanes) == 0 || slices.Contains(c.config.Lanes, lane)
}

// Weight is the caller's share against others, at least 1.
func (c *Caller) Weight() int { return max(1, int(c.config.Weight)) }

// DailySends is how many sends a company accepts from the caller in a day; 0 is no bound.
func (c *Caller) DailySends() int64 { return int64(c.config.DailySends) }

// MostWaiting is how many sends of the caller may wait in a lane of a company; 0 says nothing about it.
func (c *Caller) MostWaiting() int64 { return int64(c.config.MostWaiting) }

// CallsPerSecond is the caller's rate on this replica; 0 is no bound.
func (c *Caller) CallsPerSecond() int { return int(c.config.CallsPerSecond) }

// Call counts a call against the caller's rate: zero, or how long to wait before the next one.
func (c *Caller) Call(now time.Time) time.Duration {
	if c.rate == nil {
		return 0
	}
	r := c.rate.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}
