package service

import (
	"context"
	"slices"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// companyOf is the company that has the bot. Who may not use all bots does not learn which others there are.
func (s *core) companyOf(ctx context.Context, botID string) (*dispatch.Company, error) {
	c := callerOf(ctx)
	company, ok := s.settings.Load().Bots[botID]
	switch {
	case ok && c.MayUseBot(company.Name, botID):
		touch(ctx, company.Name, "")
		return company, nil
	case !c.MayUseAll():
		return nil, newFault(facadev1.ErrorReason_CALLER_FORBIDDEN, "this caller may use no such bot; its `companies` and `bots` in the server's configuration say which it may")
	}
	return nil, botNotFound()
}

func botNotFound() *fault {
	f := newFault(facadev1.ErrorReason_BOT_NOT_FOUND, "no company of this server's configuration has the bot")
	f.domain = domainFacade
	return f
}

// mayUseLane refuses a lane that the caller may not send in.
func mayUseLane(c *caller.Caller, lane facadev1.SendOptions_Lane) error {
	if c.MayUseLane(lane) {
		return nil
	}
	return newFault(facadev1.ErrorReason_CALLER_FORBIDDEN, "this caller may not send in the lane %s; its `lanes` in the server's configuration say where it may (options.lane)", lane)
}

// companies are the ids of the companies that the caller may use.
func (s *core) companies(ctx context.Context) []int64 {
	c := callerOf(ctx)
	var ids []int64
	for _, company := range companiesOf(s.settings.Load().Bots) {
		if c.MayUseCompany(company.Name) {
			ids = append(ids, company.ID)
		}
	}
	return ids
}

// listedCaller is whose sends and batches a list shows; empty for all callers'.
func listedCaller(ctx context.Context) string {
	if c := callerOf(ctx); !c.Admin() {
		return c.Name()
	}
	touchOthers(ctx)
	return ""
}

// visible reports whether the caller may know of what a caller stored for a company. What it may not know of is answered
// like what does not exist, in every method.
func (s *core) visible(ctx context.Context, company int64, owner string) bool {
	c := callerOf(ctx)
	return (owner == c.Name() || c.Admin()) && s.visibleCompany(ctx, company)
}

// visibleCompany reports whether the caller may know of what it stored itself for a company.
func (s *core) visibleCompany(ctx context.Context, company int64) bool {
	c := callerOf(ctx)
	if c.MayUseAll() {
		return true // also of companies that the configuration has no more
	}
	for _, known := range companiesOf(s.settings.Load().Bots) {
		if known.ID == company {
			return c.MayUseCompany(known.Name)
		}
	}
	return false
}

// visibleSend reads a send that the caller may know of. Whose a send is never changes, so it may be asked before a change.
func (s *core) visibleSend(ctx context.Context, id ledger.ID) (ledger.Send, error) {
	row, err := s.ledger.Get(ctx, id)
	if err == nil && !s.visible(ctx, id.Company, row.Caller) {
		return ledger.Send{}, ledger.ErrNotFound
	}
	if err == nil {
		s.touchRow(ctx, id.Company, row.Caller, sendName(id))
	}
	return row, err
}

// visibleBatch reads a batch that the caller may know of.
func (s *core) visibleBatch(ctx context.Context, id ledger.QueueID) (ledger.Batch, error) {
	b, err := s.ledger.Batch(ctx, id)
	if err == nil && !s.visible(ctx, id.Company, b.Caller) {
		return ledger.Batch{}, ledger.ErrNotFound
	}
	if err == nil {
		s.touchRow(ctx, id.Company, b.Caller, batchName(id))
	}
	return b, err
}

// openVisibleBatch makes the stream the one that uploads to a batch that the caller may know of.
func (s *core) openVisibleBatch(ctx context.Context, id ledger.QueueID) (b ledger.Batch, uploader int64, err error) {
	if !s.visibleCompany(ctx, id.Company) {
		return ledger.Batch{}, 0, ledger.ErrNotFound
	}
	owner := callerOf(ctx).Name()
	if callerOf(ctx).Admin() {
		owner = "" // anybody's
	}
	if b, uploader, err = s.ledger.OpenBatch(ctx, id, owner); err == nil {
		s.touchRow(ctx, id.Company, b.Caller, batchName(id))
	}
	return b, uploader, err
}

// ownNotifications are those of Jelou's notifications of a bot that the caller may know of.
func (s *core) ownNotifications(ctx context.Context, botID string, ids []string) (map[string]bool, error) {
	company, err := s.companyOf(ctx, botID)
	if err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	if !c.Admin() {
		return s.ledger.OwnNotifications(ctx, company.ID, botID, c.Name(), ids)
	}
	touchOthers(ctx)
	all := map[string]bool{}
	for _, id := range ids {
		all[id] = true
	}
	return all, nil
}

// visibleNotifications leaves out of a list what the caller may not know of.
func (s *core) visibleNotifications(ctx context.Context, botID string, all []*facadev1.Notification) ([]*facadev1.Notification, error) {
	ids := make([]string, len(all))
	for i, n := range all {
		ids[i] = n.NotificationId
	}
	own, err := s.ownNotifications(ctx, botID, ids)
	return slices.DeleteFunc(all, func(n *facadev1.Notification) bool { return !own[n.NotificationId] }), err
}
