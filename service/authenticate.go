package service

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fullstorydev/grpchan/inprocgrpc"
	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/audit"
	"github.com/jelou-facade/jelou-facade/service/caller"
)

// Names of the headers that carry credentials, in the lower case of gRPC metadata.
const (
	headerAuthorization = "authorization"
	headerAPIKey        = "x-api-key"
)

// openMethods need no credential: whoever can reach the port may ask whether the server lives.
const openMethods = "/grpc.health.v1.Health/"

// doors let callers in: those of the newest set, as long as their credentials are good.
type doors struct {
	roster     atomic.Pointer[roster]
	refused    map[caller.Reason]*atomic.Int64
	audit      *audit.Refusals
	log        *slog.Logger
	tls        *tls.Config // of the listeners; nil without
	handshakes rate.Sometimes
	streams    openStreams
}

// roster is a set of callers until another one replaces it. What failed before is forgotten with it: the other one may be
// what mends it.
type roster struct {
	set      *caller.Set
	attempts caller.Attempts
	replaced chan struct{} // closed then
}

func newRoster(set *caller.Set) *roster { return &roster{set: set, replaced: make(chan struct{})} }

func newDoors(c Config) *doors {
	d := &doors{
		refused: map[caller.Reason]*atomic.Int64{}, audit: audit.NewRefusals(c.Audit), log: c.Logger, tls: c.TLS,
		handshakes: rate.Sometimes{Interval: time.Second},
		streams:    openStreams{most: c.Connections.Streams, ofCaller: c.Connections.CallerStreams, of: map[string]int{}},
	}
	for _, reason := range caller.Reasons {
		d.refused[reason] = &atomic.Int64{}
	}
	d.roster.Store(newRoster(c.Callers))
	return d
}

// replace changes who may call. Streams of callers who may not any more end; other calls that run are finished.
func (d *doors) replace(set *caller.Set) {
	close(d.roster.Swap(newRoster(set)).replaced)
}

// refusals is how many credentials were refused since the start, by reason.
func (d *doors) refusals() map[caller.Reason]int64 {
	counts := map[caller.Reason]int64{}
	for reason, n := range d.refused {
		counts[reason] = n.Load()
	}
	return counts
}

// visit is who calls and how that is known, for as long as the call lasts.
type visit struct {
	from        netip.Addr
	chain       []*x509.Certificate // with the client's own first; none without
	credentials caller.Credentials
	expires     time.Time // zero is never
	roster      *roster
	caller      atomic.Pointer[caller.Caller] // changes when the configuration does
}

type visitKey struct{}

// callerOf is who calls.
func callerOf(ctx context.Context) *caller.Caller {
	return ctx.Value(visitKey{}).(*visit).caller.Load()
}

// nobody is who calls without a credential that is good.
const nobody = "none"

// callerName is who calls, for the log and for metrics: a name of the configuration or nobody.
func callerName(ctx context.Context) string {
	if v, ok := ctx.Value(visitKey{}).(*visit); ok {
		if c := v.caller.Load(); c != nil {
			return c.Name()
		}
	}
	return nobody
}

// known tells whether there is a caller of this name now.
func (d *doors) known(name string) bool { return d.roster.Load().set.Has(name) }

// entry is what the doors say of a visit: nothing, how long to wait, or why it is refused.
type entry struct {
	*visit
	wait time.Duration // of a caller whose rate is used up
	err  error
}

func (e *entry) refused() bool { return e.err != nil || e.wait > 0 }

type entryKey struct{}

// enter finds out who calls, and counts who is not let in. The context that it returns is the call's.
func (d *doors) enter(ctx context.Context, method string) (context.Context, *visit, error) {
	at := ctx
	if gateway := inprocgrpc.ClientContext(ctx); gateway != nil {
		at = gateway
	}
	e, ok := at.Value(entryKey{}).(*entry)
	if !ok {
		e = d.lookGRPC(ctx, method)
	}
	ctx = context.WithValue(ctx, visitKey{}, e.visit)
	switch {
	case e.err != nil:
		return ctx, nil, d.refuse(ctx, e.visit, e.err)
	case e.wait > 0:
		c := e.caller.Load()
		d.count(ctx, facadev1.ErrorReason_CALLER_QUOTA, "")
		return ctx, nil, callerQuota(c.Name(), fmt.Sprintf("%d calls a second", c.CallsPerSecond()), e.wait)
	}
	return ctx, e.visit, nil
}

// lookGRPC looks at who calls a method.
func (d *doors) lookGRPC(ctx context.Context, method string) *entry {
	v := &visit{roster: d.roster.Load(), credentials: caller.Credentials{
		Authorization: metadata.ValueFromIncomingContext(ctx, headerAuthorization),
		APIKey:        metadata.ValueFromIncomingContext(ctx, headerAPIKey),
	}}
	if strings.HasPrefix(method, openMethods) {
		v.roster = &roster{}
	}
	var state *tls.ConnectionState
	address := ""
	if p, ok := peer.FromContext(ctx); ok {
		address = p.Addr.String()
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			state = &info.State
		}
	}
	return d.look(ctx, v, address, state)
}

// lookHTTP looks at who makes a request, before anything of it but its headers is read.
func (d *doors) lookHTTP(r *http.Request) *entry {
	v := &visit{roster: d.roster.Load(), credentials: caller.Credentials{
		Authorization: r.Header.Values(headerAuthorization), APIKey: r.Header.Values(headerAPIKey),
	}}
	return d.look(r.Context(), v, r.RemoteAddr, r.TLS)
}

// look authenticates a visit, and takes it from its caller's rate. Headers that proxies write about where a call comes from are not
// believed: anyone can write them.
func (d *doors) look(ctx context.Context, v *visit, address string, state *tls.ConnectionState) *entry {
	now, e := time.Now(), &entry{visit: v}
	at, _ := netip.ParseAddrPort(address) // without one all such calls count together
	v.from = at.Addr()
	if state != nil && len(state.PeerCertificates) > 0 {
		v.chain = state.PeerCertificates
		v.credentials.Certificate = v.chain[0]
	}
	if v.roster.set.Required() && v.roster.attempts.Blocked(now, v.from, v.credentials) {
		e.err = &caller.Error{Reason: caller.Limited}
		return e
	}
	if e.err = d.identify(ctx, now, v); e.err != nil {
		return e
	}
	if v.roster.set.Required() {
		v.roster.attempts.Passed(v.credentials)
	}
	e.wait = v.caller.Load().Call(now)
	return e
}

// identify authenticates a visit against its roster.
func (d *doors) identify(ctx context.Context, now time.Time, v *visit) error {
	if len(v.chain) > 0 && v.roster.set.Required() && v.credentials.Kind() == "certificate" {
		if err := d.trusts(ctx, v.chain); err != nil {
			return err
		}
	}
	c, expires, err := v.roster.set.Authenticate(ctx, now, v.credentials)
	if err == nil {
		v.caller.Store(c)
		v.expires = expires
	}
	return err
}

// credentialTexts are what a caller is told: enough to mend it, and nothing about what there is.
var credentialTexts = map[caller.Reason]string{
	caller.Missing:   "this server needs a credential: an API key or a JWT as `authorization: Bearer …`, an API key as x-api-key, or a client certificate",
	caller.Malformed: "the credential is not of the form of one: send one API key or JWT as `authorization: Bearer …`, or one API key as x-api-key",
	caller.Unknown:   "the credential is no caller's; it may have been revoked",
	caller.Expired:   "the credential has expired; get a new one",
	caller.Invalid:   "the token is not good here: its signature, issuer, audience or times; or the authority of the client certificate is trusted no more",
	caller.Limited:   "too many failed attempts came from this address; wait a few seconds",
}

// refuse counts and answers a refused credential.
func (d *doors) refuse(ctx context.Context, v *visit, err error) error {
	refused, ok := errors.AsType[*caller.Error](err)
	if !ok {
		return err
	}
	d.refused[refused.Reason].Add(1)
	v.roster.attempts.Failed(time.Now(), v.from, refused.Reason)
	note(ctx, slog.String("credential", string(refused.Reason)))
	d.count(ctx, facadev1.ErrorReason_CALLER_UNAUTHENTICATED, refused.Reason)
	if refused.Err != nil {
		note(ctx, slog.String("flaw", refused.Err.Error()))
	}
	return newFault(facadev1.ErrorReason_CALLER_UNAUTHENTICATED, "%s", credentialTexts[refused.Reason])
}

// count has the audit log say that a call was not let in, in bounds.
func (d *doors) count(ctx context.Context, reason facadev1.ErrorReason, credential caller.Reason) {
	c, _ := ctx.Value(callKey{}).(*call) // none where a page is asked for
	line := lineOf(ctx, audit.Refused, c)
	line.Code, line.Reason, line.Credential = codeNames[meanings[reason].code], reason.String(), string(credential)
	d.audit.Note(line)
}

// A shut is why a stream ends before its method does.
type shut struct{ error }

func (s shut) Unwrap() error { return s.error }

// shutOut is why a stream's caller may not go on; nil while it may.
func shutOut(ctx context.Context) error {
	if s, ok := errors.AsType[shut](context.Cause(ctx)); ok {
		return s.error
	}
	return nil
}

// watch ends a stream when its caller's credential expires, or is none any more after the callers were replaced.
func (d *doors) watch(ctx context.Context, v *visit, leave context.CancelCauseFunc) {
	for {
		expiry := time.NewTimer(v.left())
		select {
		case <-ctx.Done():
		case <-expiry.C:
			leave(shut{newFault(facadev1.ErrorReason_CALLER_UNAUTHENTICATED, "the credential has expired in the middle of the stream; go on with a new one")})
		case <-v.roster.replaced:
			v.roster = d.roster.Load()
			if d.identify(ctx, time.Now(), v) != nil {
				leave(shut{newFault(facadev1.ErrorReason_CALLER_UNAUTHENTICATED, "the credential was revoked in the middle of the stream")})
			}
		}
		expiry.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// left is how long the credential is still good.
func (v *visit) left() time.Duration {
	if v.expires.IsZero() {
		return forever
	}
	return time.Until(v.expires)
}

// callerQuota is the fault of a caller that has used up one of its quotas.
func callerQuota(name, quota string, wait time.Duration) *fault {
	f := newFault(facadev1.ErrorReason_CALLER_QUOTA, "the quota of this caller is used up: %s; nothing was stored", quota)
	f.retryAfter = max(wait, minRetryAfter)
	f.quota = &errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: "caller:" + name, Description: quota}}}
	return f
}

// enterHTTP finds out who asks for a page beside the API. Without callers it is everybody on this machine, as an admin.
func (d *doors) enterHTTP(r *http.Request) (*caller.Caller, error) {
	from, _ := netip.ParseAddrPort(r.RemoteAddr) // net/http wrote it
	if !d.roster.Load().set.Required() && !from.Addr().Unmap().IsLoopback() {
		return nil, newFault(facadev1.ErrorReason_CALLER_FORBIDDEN, "without callers in the configuration this page is for loopback addresses only")
	}
	e := d.lookHTTP(r)
	if a := answerOf(r.Context()); a != nil {
		a.visit = e.visit
	}
	if _, _, err := d.enter(context.WithValue(r.Context(), entryKey{}, e), r.URL.Path); err != nil {
		return nil, err
	}
	return e.caller.Load(), nil
}
