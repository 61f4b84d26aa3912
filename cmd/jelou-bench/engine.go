package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// engine is a replica without its API: a ledger and a dispatcher in this process. It measures what depends on who
// calls, which the API learns from authentication.
type engine struct {
	ledger     *ledger.Ledger
	dispatcher *dispatch.Dispatcher
	companies  map[*tenant]*dispatch.Company
}

// startEngine starts a replica for the tenants with its ledger in PostgreSQL; it ends with the run.
func (b *bench) startEngine(name, databaseURL string, all ...*tenant) (*engine, error) {
	l, err := ledger.Open(b.ctx, ledger.Config{URL: databaseURL, Replica: name})
	if err != nil {
		return nil, err
	}
	e := &engine{ledger: l, companies: map[*tenant]*dispatch.Company{}}
	var companies []*dispatch.Company
	for _, t := range all {
		id, err := l.Company(b.ctx, t.name)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		client, err := jelou.New(jelou.Config{BaseURL: t.sim.api, Credential: func() (string, string, error) { return t.name, "secret-of-" + t.name, nil }})
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		company := &dispatch.Company{ID: id, Name: t.name, Client: client, Pace: pace.Config{Requests: t.requests, Window: t.window}}
		e.companies[t] = company
		companies = append(companies, company)
	}
	e.dispatcher = dispatch.New(dispatch.Config{
		Ledger: l, Companies: companies,
		Result: func(*jelou.Result) []byte { return nil }, Error: func(*jelou.Error) []byte { return nil },
	})
	work, stopWork := context.WithCancel(context.Background())
	take, stopTaking := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- l.Run(work) }()
	go func() { ended <- e.dispatcher.Run(take) }()
	b.atEnd(func() error {
		stopTaking()
		errs := []error{<-ended}
		stopWork()
		errs = append(errs, <-ended)
		for _, c := range companies {
			c.Client.Close()
		}
		return errors.Join(append(errs, l.Close())...)
	})
	return e, nil
}

// add stores so many sends of a caller in the BULK lane, each to somebody new.
func (e *engine) add(ctx context.Context, t *tenant, bot, caller string, weight, sends int) error {
	return e.store(ctx, t, sends, ledger.NewSend{Caller: caller, Weight: weight, Bot: bot})
}

// batch stores a sealed batch of so many items of a caller in the BULK lane.
func (e *engine) batch(ctx context.Context, t *tenant, bot, caller string, items int) (ledger.QueueID, error) {
	created, _, err := e.ledger.CreateBatch(ctx, ledger.NewBatch{Company: e.companies[t].ID, Lane: ledger.Bulk, Caller: caller, Bot: bot})
	if err != nil {
		return created.ID, err
	}
	_, uploader, err := e.ledger.OpenBatch(ctx, created.ID, "")
	if err != nil {
		return created.ID, err
	}
	if err := e.store(ctx, t, items, ledger.NewSend{Caller: caller, Bot: bot, Queue: created.ID.Queue, Uploader: uploader}); err != nil {
		return created.ID, err
	}
	_, err = e.ledger.Seal(ctx, created.ID, int64(items), uploader)
	return created.ID, err
}

// store adds so many sends like one, in groups; those of a batch are numbered from 1.
func (e *engine) store(ctx context.Context, t *tenant, sends int, like ledger.NewSend) error {
	like.Company, like.Lane, like.Kind, like.ExpireIn = e.companies[t].ID, ledger.Bulk, "text", time.Hour
	for from := 1; from <= sends; from += storeGroup {
		var rows []ledger.NewSend
		for pos := from; pos < from+storeGroup && pos <= sends; pos++ {
			n := like
			n.Recipient = t.user()
			if n.Queue != 0 {
				n.Pos = int64(pos)
			}
			body, err := proto.Marshal(&facadev1.BatchItem{UserId: n.Recipient, Content: &facadev1.BatchItem_Message{Message: text("Novedad para " + n.Recipient)}})
			if err != nil {
				return err
			}
			n.Body, n.Hash = body, body[:8]
			rows = append(rows, n)
		}
		added, err := e.ledger.Add(ctx, rows)
		if err != nil {
			return fmt.Errorf("add sends of %s: %w", like.Caller, err)
		}
		for _, a := range added {
			if a.Err != nil {
				return a.Err
			}
		}
	}
	return nil
}

const storeGroup = 500
