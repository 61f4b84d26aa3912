package service

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/codes"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/audit"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// changing are the methods that change something: each call of them has its line in the audit log.
var changing = map[string]bool{
	facadev1.MessageService_SendMessage_FullMethodName:           true,
	facadev1.NotificationService_SendNotification_FullMethodName: true,
	facadev1.SendService_CancelSend_FullMethodName:               true,
	facadev1.SendService_ResolveSend_FullMethodName:              true,
	facadev1.BatchService_CreateBatch_FullMethodName:             true,
	facadev1.BatchService_StreamBatch_FullMethodName:             true,
	facadev1.BatchService_CancelBatch_FullMethodName:             true,
	facadev1.BatchService_PauseBatch_FullMethodName:              true,
	facadev1.BatchService_ResumeBatch_FullMethodName:             true,
	facadev1.BatchService_ReplayBatch_FullMethodName:             true,
}

// touched is what a call had to do with. The halves of a stream may note it at once.
type touched struct {
	mu        sync.Mutex
	company   string
	resources []string
	others    bool // what is other callers' was read
}

// maxResources is how many of them a line names. One call has to do with two at most.
const maxResources = 4

// touch notes the company and the resource of a call, names that are known to be good; empty ones are none.
func touch(ctx context.Context, company, resource string) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return
	}
	c.touched.mu.Lock()
	defer c.touched.mu.Unlock()
	if company != "" {
		c.touched.company = company
	}
	if resource != "" && len(c.touched.resources) < maxResources && !slices.Contains(c.touched.resources, resource) {
		c.touched.resources = append(c.touched.resources, resource)
	}
}

// names are the resources as far as they are known.
func (t *touched) names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.resources)
}

// touchOthers notes that a call sees what is other callers'.
func touchOthers(ctx context.Context) {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		c.touched.mu.Lock()
		defer c.touched.mu.Unlock()
		c.touched.others = true
	}
}

// touchRow notes a send or a batch that is stored, and whose it is.
func (s *core) touchRow(ctx context.Context, company int64, owner, resource string) {
	touch(ctx, s.nameOfCompany(company), resource)
	if owner != callerOf(ctx).Name() {
		touchOthers(ctx)
	}
}

// sendName and batchName are the names of resources.
func sendName(id ledger.ID) string       { return "sends/" + id.String() }
func batchName(id ledger.QueueID) string { return "batches/" + id.String() }

// nameOfCompany is a company's name in the configuration; empty for one that it has no more.
func (s *core) nameOfCompany(id int64) string {
	for _, known := range s.settings.Load().Bots {
		if known.ID == id {
			return known.Name
		}
	}
	return ""
}

// mayChange refuses a call that changes something while the audit log, which is required, cannot be written. Nothing is done yet.
func (g *guard) mayChange(c *call) error {
	if changing[c.method] {
		if err := g.audit.Ready(); err != nil {
			return newFault(facadev1.ErrorReason_AUDIT_UNAVAILABLE, "the audit log cannot be written, and this server changes nothing without it; nothing was done").because(err)
		}
	}
	c.admitted = true
	return nil
}

// record writes the line of a call that was let in.
func (g *guard) record(ctx context.Context, c *call, code codes.Code, reason string) {
	if g.audit == nil {
		return
	}
	c.touched.mu.Lock()
	defer c.touched.mu.Unlock()
	event := audit.Change
	switch {
	case !c.admitted:
		return // doors have counted it
	case changing[c.method]:
	case c.touched.others:
		event = audit.Read
	default:
		return
	}
	line := lineOf(ctx, event, c)
	line.Company, line.Resources, line.Code, line.Reason = c.touched.company, c.touched.resources, codeNames[code], reason
	g.audit.Write(line)
}

// lineOf is who calls what.
func lineOf(ctx context.Context, event string, c *call) audit.Line {
	line := audit.Line{Time: time.Now(), Event: event}
	if v, ok := ctx.Value(visitKey{}).(*visit); ok {
		if v.from.IsValid() {
			line.Peer = v.from.Unmap().String()
		}
		if c := v.caller.Load(); c != nil {
			line.Caller, line.Authentication = c.Name(), v.authentication()
		}
	}
	if c != nil {
		line.RPC, line.Transport, line.RequestID = c.rpc(), string(c.transport), c.id
		if id := c.span.SpanContext().TraceID(); id.IsValid() {
			line.TraceID = id.String()
		}
	}
	return line
}

// authentication is how the visitor is known.
func (v *visit) authentication() string {
	if !v.roster.set.Required() {
		return "none"
	}
	return v.credentials.Kind()
}

// observeAudit tells whether the lines can be written.
func observeAudit(meter metric.Meter, l *audit.Log) {
	waiting := must(meter.Int64ObservableGauge("jelou.audit.waiting", metric.WithDescription("Lines of the audit log that could not be written yet; 0 while all is well.")))
	lost := must(meter.Int64ObservableCounter("jelou.audit.lost", metric.WithDescription("Lines of the audit log that are lost, because too many could not be written.")))
	must(meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		kept, gone := l.Waiting()
		o.ObserveInt64(waiting, kept)
		o.ObserveInt64(lost, gone)
		return nil
	}, waiting, lost))
}
