// Package service is jelou-facade itself: the gRPC services, their REST gateway, and the life of the process. Every call,
// over gRPC or REST, passes one guard and one table of errors; every send becomes a row of the ledger and is sent by the
// dispatcher.
package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"buf.build/go/protovalidate"
	"github.com/fullstorydev/grpchan/inprocgrpc"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/audit"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/telemetry"
)

// Config is what a Server works with.
type Config struct {
	GRPCAddress string // host:port; port 0 takes a free one
	HTTPAddress string
	// TLS of both listeners; nil serves plaintext. Its protocols have to include h2 and http/1.1.
	TLS         *tls.Config
	Connections Connections
	// AdminAddress is for metrics, health and a look into the process; empty is none.
	AdminAddress string

	Ledger *ledger.Ledger // open; the server runs it, the caller closes it
	// Keys encrypt what is stored of a send's content; nil stores it as it is.
	Keys *keyring.Keyring
	Settings

	// Configuration is what /configz shows: JSON without secrets; nil shows nothing.
	Configuration func() ([]byte, error)

	Logger    *slog.Logger         // nil logs nothing
	Telemetry *telemetry.Telemetry // nil measures and traces nothing
	Audit     *audit.Log           // nil writes none; the caller closes it
}

// Settings are what may change while the server runs.
type Settings struct {
	// Companies by bot, each with an id of the Ledger.
	Bots map[string]*dispatch.Company

	DrainTimeout time.Duration // for running calls at the stop; zero is 20s
	Bounds       Bounds

	// Who may call; nil or without callers everybody may, as the caller anonymous. Where a new Set has not got a caller any
	// more, or not its credential, its streams end.
	Callers *caller.Set
}

func (s *Settings) setDefaults() {
	s.DrainTimeout = orDefault(s.DrainTimeout, defaultDrainTimeout)
	s.Bounds.Company = orDefault(s.Bounds.Company, defaultCompanyBound)
}

// Bounds are how many sends of a company may wait; zero is no bound of that kind, but for the company's.
type Bounds struct {
	Company, Lane, Caller int64
}

const (
	defaultDrainTimeout = 20 * time.Second
	defaultCompanyBound = 2_000_000
)

// Bounds of what clients may do to the process.
const (
	maxConcurrentStreams = 1000
	maxHeaderBytes       = 16 << 10
	connectionTimeout    = 10 * time.Second
	headerTimeout        = 5 * time.Second
	// What clients may send ahead of being read. Windows that grow by themselves grow to megabytes for each uploader.
	streamWindow     = 128 << 10
	connectionWindow = 1 << 20
	idleTimeout      = 2 * time.Minute
	keepaliveMin     = 10 * time.Second
	weighAgain       = time.Second
)

// core is what the services share.
type core struct {
	ledger   *ledger.Ledger
	dispatch *dispatch.Dispatcher
	settings atomic.Pointer[Settings] // in force
	keys     *keyring.Keyring
	// validator holds batch items to their rules one by one.
	validator protovalidate.Validator
	stopping  chan struct{} // closed when the server begins to stop
	streamAge time.Duration // of a connection when its streams are ended
	halt      lastHalt
	unopened  unopened
}

// Server listens from New on and serves in Run.
type Server struct {
	config    Config
	core      *core
	doors     *doors
	metrics   *callMetrics
	readiness *readiness
	grpc      *grpc.Server
	http      *http.Server
	admin     *http.Server // nil: none
	grpcL     net.Listener
	httpL     net.Listener
	adminL    net.Listener
}

// New opens the listeners, so that an address in use is an error before anything runs.
func New(c Config) (*Server, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Telemetry == nil {
		c.Telemetry = &telemetry.Telemetry{}
	}
	c.setDefaults()
	c.Connections.setDefaults()
	validator, err := protovalidate.New()
	if err != nil {
		return nil, err
	}
	s := &Server{config: c, doors: newDoors(c)}
	c.TLS = s.doors.guardTLS(c.TLS)
	s.core = &core{ledger: c.Ledger, keys: c.Keys, validator: validator, stopping: make(chan struct{}), streamAge: c.Connections.streams()}
	s.core.dispatch = dispatch.New(dispatch.Config{
		Ledger: c.Ledger, Companies: companiesOf(c.Bots),
		Result: s.core.storedResult, Error: s.core.storedError,
		Open: s.core.openBody, Configured: s.doors.known, Logger: c.Logger, Meter: c.Telemetry.Meter(), Tracer: c.Telemetry.Tracer(),
	})
	s.core.settings.Store(&c.Settings)
	s.readiness = newReadiness(s.core, c.Logger)
	observeServer(c.Telemetry, s.core, s.readiness, s.doors)
	observeAudit(c.Telemetry.Meter(), c.Audit)
	s.metrics = newCallMetrics(c.Telemetry.Meter())
	s.metrics.enlist(c.Callers)
	guards := map[transport]*guard{}
	for _, over := range []transport{overGRPC, overREST, overAdmin} {
		guards[over] = &guard{log: c.Logger, doors: s.doors, validator: validator, transport: over, metrics: s.metrics, tracer: c.Telemetry.Tracer(), audit: c.Audit}
	}
	s.grpc = newGRPC(c, guards[overGRPC])
	inProcess := new(inprocgrpc.Channel).WithServerUnaryInterceptor(guards[overREST].Unary).WithServerStreamInterceptor(guards[overREST].Stream)
	for _, registrar := range []grpc.ServiceRegistrar{s.grpc, inProcess} {
		facadev1.RegisterMessageServiceServer(registrar, &messageServer{core: s.core})
		facadev1.RegisterNotificationServiceServer(registrar, &notificationServer{core: s.core})
		facadev1.RegisterSendServiceServer(registrar, &sendServer{core: s.core})
		facadev1.RegisterBatchServiceServer(registrar, &batchServer{core: s.core})
		facadev1.RegisterCapacityServiceServer(registrar, &capacityServer{core: s.core})
	}
	healthv1.RegisterHealthServer(s.grpc, s.readiness.health)
	reflection.Register(s.grpc)
	gateway, err := newGateway(context.Background(), inProcess, s.doors, pages{"GET /healthz": s.healthz, "GET /configz": s.configz})
	if err != nil {
		return nil, err
	}
	s.http = &http.Server{
		Handler: guards[overREST].requests(patient(renewing(c.Connections.Age, gateway))), TLSConfig: c.TLS,
		ConnContext:       func(ctx context.Context, _ net.Conn) context.Context { return withConnection(ctx) },
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderFrame,
		ErrorLog: slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
	if s.grpcL, err = listen(c, c.GRPCAddress); err != nil {
		return nil, fmt.Errorf("listen for gRPC: %w", err)
	}
	if s.httpL, err = listen(c, c.HTTPAddress); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for REST: %w", err), s.grpcL.Close())
	}
	if c.AdminAddress != "" {
		s.admin = newAdmin(c.Telemetry.Handler(), s.readiness, guards[overAdmin])
		if s.adminL, err = listen(c, c.AdminAddress); err != nil {
			return nil, errors.Join(fmt.Errorf("listen for admin: %w", err), s.grpcL.Close(), s.httpL.Close())
		}
	}
	return s, nil
}

// newGRPC is the gRPC server without its services.
func newGRPC(c Config, g *guard) *grpc.Server {
	options := []grpc.ServerOption{
		grpc.UnaryInterceptor(g.Unary), grpc.StreamInterceptor(g.Stream), grpc.UnknownServiceHandler(unknownMethod),
		grpc.ForceServerCodecV2(newCodec()), grpc.MaxRecvMsgSize(maxFrameBytes),
		grpc.MaxConcurrentStreams(maxConcurrentStreams), grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connectionWindow),
		grpc.ConnectionTimeout(connectionTimeout), grpc.StatsHandler(connections{}),
		grpc.InTapHandle(firstMessages{}.tap), grpc.StatsHandler(firstMessages{}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMin, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: c.Connections.Age, MaxConnectionAgeGrace: c.Connections.Grace,
			Time: c.Connections.Keepalive, Timeout: keepaliveTimeout,
		}),
	}
	if c.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(c.TLS)))
	}
	return grpc.NewServer(options...)
}

// unknownMethod answers calls of methods that there are not, behind the guard.
func unknownMethod(any, grpc.ServerStream) error {
	return newFault(facadev1.ErrorReason_NOT_BUILT_YET, "this server has no such method; it may be older than its client")
}

func listen(c Config, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return &boundedListener{Listener: l, most: int64(c.Connections.Most), log: c.Logger}, nil
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func companiesOf(bots map[string]*dispatch.Company) []*dispatch.Company {
	seen := map[*dispatch.Company]bool{}
	var companies []*dispatch.Company
	for _, c := range bots {
		if !seen[c] {
			seen[c] = true
			companies = append(companies, c)
		}
	}
	return companies
}

// GRPCAddr is where gRPC is served.
func (s *Server) GRPCAddr() net.Addr { return s.grpcL.Addr() }

// HTTPAddr is where REST is served.
func (s *Server) HTTPAddr() net.Addr { return s.httpL.Addr() }

// AdminAddr is where metrics and health are served; nil where nowhere.
func (s *Server) AdminAddr() net.Addr {
	if s.adminL == nil {
		return nil
	}
	return s.adminL.Addr()
}

// Update puts settings in force while the server runs. Calls under way go on, those of a bot that is gone too: what they have
// stored stays in the ledger.
func (s *Server) Update(settings Settings) {
	settings.setDefaults()
	s.core.dispatch.Update(companiesOf(settings.Bots)) // before its bots are known
	s.core.settings.Store(&settings)
	s.metrics.enlist(settings.Callers)
	s.doors.replace(settings.Callers)
}

// Run serves until ctx ends, then stops in order: health says NOT_SERVING, nothing new is claimed or accepted, waiting calls
// are answered, running calls and attempts finish; each bounded. The ledger must stay open until Run has returned.
func (s *Server) Run(ctx context.Context) error {
	return s.serveAdmin(func() error { return s.run(ctx) })
}

func (s *Server) run(ctx context.Context) error {
	s.readiness.look(ctx)
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	running, ctx := errgroup.WithContext(ctx) // one part's failure stops the others as a signal does
	running.Go(func() error {
		if err := s.config.Ledger.Run(work); work.Err() == nil {
			return err
		}
		return nil
	})
	running.Go(func() error {
		// The ledger's loop is needed until the last attempt is settled.
		defer stopWork()
		return s.core.dispatch.Run(ctx)
	})
	running.Go(func() error {
		if err := s.grpc.Serve(s.grpcL); !errors.Is(err, grpc.ErrServerStopped) { // stopped before it served
			return err
		}
		return nil
	})
	running.Go(func() error {
		serve := s.http.Serve
		if s.config.TLS != nil {
			serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
		}
		if err := serve(s.httpL); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	running.Go(func() error {
		s.weigh(ctx)
		return nil
	})
	running.Go(func() error {
		s.readiness.run(ctx)
		return nil
	})
	running.Go(func() error {
		s.doors.audit.Run(work) // until no call runs
		return nil
	})
	running.Go(func() error {
		<-ctx.Done()
		s.readiness.stop()
		close(s.core.stopping)
		s.drain()
		return nil
	})
	return running.Wait()
}

// weigh gives the callers their weights, at the start and whenever they are replaced, as soon as the ledger can be reached.
func (s *Server) weigh(ctx context.Context) {
	for ctx.Err() == nil {
		r := s.doors.roster.Load()
		var again <-chan time.Time
		if err := s.core.ledger.Weigh(ctx, r.set.Weights()); err != nil && ctx.Err() == nil {
			s.config.Logger.Warn("the callers' weights cannot be stored yet; the old ones hold", slog.Any("error", err))
			again = time.After(weighAgain)
		}
		select {
		case <-ctx.Done():
		case <-r.replaced:
		case <-again:
		}
	}
}

// drain lets running calls finish, both sides at once, and cuts what does not.
func (s *Server) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), s.core.settings.Load().DrainTimeout)
	defer cancel()
	hard := context.AfterFunc(ctx, func() {
		s.grpc.Stop()
		_ = s.http.Close() // the listener is closed already
	})
	defer hard()
	var both errgroup.Group
	both.Go(func() error { return s.http.Shutdown(ctx) })
	both.Go(func() error { s.grpc.GracefulStop(); return nil })
	if err := both.Wait(); err != nil {
		s.config.Logger.Warn("calls were cut at the stop", slog.Any("error", err))
	}
}

// healthz answers 200 while the server is ready.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if condition := s.readiness.current(); !condition.ready() {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"status":"NOT_SERVING"}`)) // a client that left
		return
	}
	_, _ = w.Write([]byte(`{"status":"SERVING"}`)) // a client that left
}

// configz shows the configuration in force to admins, or without callers to whoever is on this machine.
func (s *Server) configz(w http.ResponseWriter, r *http.Request) {
	if s.config.Configuration == nil {
		writeError(w, routingFault(r, http.StatusNotFound).GRPCStatus())
		return
	}
	c, err := s.doors.enterHTTP(r)
	if err == nil && !c.Admin() {
		err = newFault(facadev1.ErrorReason_CALLER_FORBIDDEN, "only admins may see the configuration")
	}
	var shown []byte
	if err == nil {
		shown, err = s.config.Configuration()
	}
	if err != nil {
		writeError(w, toStatus(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(shown) // a client that left
}

// drains reports whether the server stops.
func (s *core) drains() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// accepts reports whether sends can be accepted now: a server that stops, or a ledger that a person must look at first,
// would only keep them.
func (s *core) accepts(ctx context.Context) error {
	if s.drains() {
		return newFault(facadev1.ErrorReason_DRAINING, "the server stops; nothing was stored")
	}
	halt, err := s.halt.read(ctx, s.ledger)
	if err != nil {
		return err
	}
	if halt.Held {
		return haltFault(halt)
	}
	return nil
}

// haltKept is how long a look at whether the ledger is held is good for. Claims look every time.
const haltKept = 500 * time.Millisecond

// lastHalt is the last look.
type lastHalt struct {
	mu   sync.Mutex
	halt ledger.Halt
	at   time.Time
}

func (l *lastHalt) read(ctx context.Context, from *ledger.Ledger) (ledger.Halt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) < haltKept {
		return l.halt, nil
	}
	halt, err := from.Halt(ctx)
	if err == nil {
		l.halt, l.at = halt, time.Now()
	}
	return halt, err
}

// haltFault is why a ledger gives nothing out.
func haltFault(h ledger.Halt) *fault {
	if h.Rewound {
		return newFault(facadev1.ErrorReason_LEDGER_REWOUND, "the ledger went back in time, and what it calls unsent may have been sent; an operator must release it: jelou-facade ledger release")
	}
	return newFault(facadev1.ErrorReason_LEDGER_HELD, "the ledger is another database than before, and what it calls unsent may have been sent; an operator must release it: jelou-facade ledger release")
}
