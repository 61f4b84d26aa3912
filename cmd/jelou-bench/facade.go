package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// tenant is a company of a benchmark: known to one simulator, and to the facade by the same name.
type tenant struct {
	name string
	bots []string
	sim  *simulator

	requests  int                       // of its allowance in a window; zero is 5
	window    time.Duration             // zero is one second
	evidence  configv1.Company_Evidence // zero is REPLY
	recipient atomic.Int64              // the latest that a send went to
}

// tenants makes companies with one bot each, named prefix-0, prefix-1, …; their bots have their names.
func tenants(prefix string, count int) []*tenant {
	var all []*tenant
	for i := range count {
		name := fmt.Sprintf("%s-%d", prefix, i)
		all = append(all, &tenant{name: name, bots: []string{name}})
	}
	return all
}

// bot is the tenant's first.
func (t *tenant) bot() string { return t.bots[0] }

// user is a recipient that the tenant has not written to, so that no send waits for another one's recipient.
func (t *tenant) user() string { return fmt.Sprintf("5939%08d", t.recipient.Add(1)) }

func (t *tenant) allowed() int {
	if t.requests == 0 {
		return 5
	}
	return t.requests
}

func (t *tenant) every() time.Duration {
	if t.window == 0 {
		return time.Second
	}
	return t.window
}

// startSimulatorFor starts a simulator that knows the tenants, with the first one's allowance as the limit of each.
func (b *bench) startSimulatorFor(c jelousim.Config, all ...*tenant) (*simulator, error) {
	for _, t := range all {
		company := jelousim.Company{ClientID: t.name, ClientSecret: "secret-of-" + t.name}
		for _, bot := range t.bots {
			company.Bots = append(company.Bots, jelousim.Bot{ID: bot})
		}
		c.Companies = append(c.Companies, company)
	}
	if c.Rate.Requests == 0 {
		c.Rate.Requests, c.Rate.Window = all[0].allowed(), jelousim.Duration(all[0].every())
	}
	s, err := b.startSimulator(c)
	for _, t := range all {
		t.sim = s
	}
	return s, err
}

// facade is one jelou-facade process.
type facade struct {
	*child
	conn     *grpc.ClientConn
	messages facadev1.MessageServiceClient
	batches  facadev1.BatchServiceClient
	rest     string
}

// cluster is some facades with one ledger and the same configuration.
type cluster struct {
	b       *bench
	config  string // file
	members []*facade
	next    atomic.Int64
}

// startFacades starts so many replicas for the tenants, with a ledger in PostgreSQL, or in a new SQLite file where
// databaseURL is empty, and waits until all serve.
func (b *bench) startFacades(replicas int, databaseURL string, all ...*tenant) (*cluster, error) {
	return b.startFacadesWith(func(*configv1.Config) {}, replicas, databaseURL, all...)
}

// startFacadesWith does the same with a changed configuration.
func (b *bench) startFacadesWith(change func(*configv1.Config), replicas int, databaseURL string, all ...*tenant) (*cluster, error) {
	config := &configv1.Config{
		Ledger: &configv1.Ledger{Url: databaseURL, EncryptionKeyFile: b.keyFile},
		Admin:  &configv1.Admin{Address: "127.0.0.1:0"},
		Log:    &configv1.Log{Level: configv1.Log_WARN, Format: configv1.Log_TEXT},
	}
	if databaseURL == "" {
		config.Ledger.Path = b.path("ledger.db")
	}
	for _, t := range all {
		id, err := b.write("client-id", []byte(t.name+"\n"))
		if err != nil {
			return nil, err
		}
		secret, err := b.write("client-secret", []byte("secret-of-"+t.name+"\n"))
		if err != nil {
			return nil, err
		}
		config.Companies = append(config.Companies, &configv1.Company{
			Id: t.name, BaseUrl: t.sim.api, Bots: t.bots, ClientIdFile: id, ClientSecretFile: secret,
			Allowance: &configv1.Allowance{Requests: int32(t.allowed()), Window: durationpb.New(t.every())},
			Evidence:  t.evidence,
		})
	}
	change(config)
	text, err := protojson.Marshal(config) // which is YAML, too
	if err != nil {
		return nil, err
	}
	c := &cluster{b: b}
	if c.config, err = b.write("facade.yaml", text); err != nil {
		return nil, err
	}
	for range replicas {
		f, err := b.startFacade(c.config)
		if err != nil {
			return nil, err
		}
		c.members = append(c.members, f)
	}
	return c, nil
}

func (b *bench) startFacade(config string) (*facade, error) {
	p, err := b.spawn("jelou-facade", "serve", "--config", config, "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &facade{child: p}
	first, err := p.line(b.ctx)
	if err != nil {
		return nil, err
	}
	second, err := p.line(b.ctx)
	if err != nil {
		return nil, err
	}
	address, isGRPC := strings.CutPrefix(first, "gRPC ")
	rest, isREST := strings.CutPrefix(second, "REST ")
	if !isGRPC || !isREST {
		return nil, fmt.Errorf("jelou-facade printed %q and %q", first, second)
	}
	f.rest = rest
	if f.conn, err = grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return nil, err
	}
	b.atEnd(f.conn.Close)
	f.messages, f.batches = facadev1.NewMessageServiceClient(f.conn), facadev1.NewBatchServiceClient(f.conn)
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	answer, err := healthv1.NewHealthClient(f.conn).Check(ctx, &healthv1.HealthCheckRequest{Service: "liveness"}, grpc.WaitForReady(true)) // with a held ledger too
	if err != nil {
		return nil, fmt.Errorf("jelou-facade does not serve: %w: %s", err, p.logTail())
	}
	if answer.Status != healthv1.HealthCheckResponse_SERVING {
		return nil, fmt.Errorf("jelou-facade is %s: %s", answer.Status, p.logTail())
	}
	return f, nil
}

// any is one facade after the other.
func (c *cluster) any() *facade { return c.members[int(c.next.Add(1))%len(c.members)] }

// stop ends all facades in order.
func (c *cluster) stop() {
	for _, f := range c.members {
		f.stop()
	}
}

// troubles are the warnings and errors that the facades logged, a few.
func (c *cluster) troubles() []string {
	var lines []string
	for _, f := range c.members {
		data, err := os.ReadFile(f.log)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if len(lines) < 20 {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	return lines
}
