package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service"
	"github.com/jelou-facade/jelou-facade/service/audit"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/reload"
	"github.com/jelou-facade/jelou-facade/service/telemetry"
)

// live is the configuration in force and what was made of it.
type live struct {
	flags    serveFlags
	ledger   *ledger.Ledger
	level    *slog.LevelVar
	log      *slog.Logger
	audit    *audit.Log       // nil without one
	keys     *keys            // nil without TLS
	content  *keyring.Keyring // nil stores content as it is
	source   *caller.Source
	server   *service.Server
	reloader *reload.Reloader
	started  time.Time

	mu        sync.Mutex
	config    *configv1.Config
	companies map[string]*tenant
	callers   *caller.Set
	old       map[*jelou.Client]bool // replaced, and perhaps in use
}

// tenant is a company in force. It is not changed, but for its credential: another configuration makes another one.
type tenant struct {
	config     *configv1.Company
	credential *atomic.Pointer[credential]
	company    *dispatch.Company
}

// credential is Jelou's for a company: both halves of one time.
type credential struct{ id, secret string }

// newLive makes everything of a configuration.
func newLive(ctx context.Context, flags serveFlags, config *configv1.Config, l *ledger.Ledger, level *slog.LevelVar, measured *telemetry.Telemetry, audited *audit.Log, log *slog.Logger) (_ *live, err error) {
	v := &live{flags: flags, ledger: l, level: level, log: log, audit: audited, config: config, source: caller.NewSource(ctx, log), old: map[*jelou.Client]bool{}, started: time.Now()}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	level.Set(logLevels[config.Log.GetLevel()])
	if v.keys, err = newKeys(config.Listen.Tls); err != nil {
		return nil, err
	}
	if v.companies, err = v.tenants(ctx, config); err != nil {
		return nil, err
	}
	if v.callers, err = v.source.Load(config.Callers, config.Authentication); err != nil {
		return nil, err
	}
	if file := config.Ledger.EncryptionKeyFile; file != "" {
		if v.content, err = keyring.Load(file); err != nil {
			return nil, fmt.Errorf("ledger.encryption_key_file: %w", err)
		}
	}
	v.server, err = service.New(service.Config{
		GRPCAddress: config.Listen.Grpc, HTTPAddress: config.Listen.Http, AdminAddress: config.Admin.Address, TLS: v.keys.config(),
		Connections: service.Connections{
			Most: int(config.Listen.MaxConnections), Age: config.Listen.MaxConnectionAge.AsDuration(),
			Grace: config.Listen.MaxConnectionAgeGrace.AsDuration(), Keepalive: config.Listen.Keepalive.AsDuration(),
		},
		Ledger: l, Keys: v.content, Settings: settingsOf(config, v.companies, v.callers), Logger: log, Telemetry: measured, Audit: audited, Configuration: v.configuration,
	})
	if err != nil {
		return nil, err
	}
	v.reloader = reload.New(reload.Config{Parts: v.parts, Changed: auditReload(audited), Logger: log})
	auditStart(audited, v.reloader.Status())
	return v, observeConfig(measured.Meter(), v.reloader.Status)
}

// restURL is where REST is served.
func (v *live) restURL() string {
	scheme := "http"
	if v.keys != nil {
		scheme = "https"
	}
	return scheme + "://" + v.server.HTTPAddr().String()
}

// hangups are SIGHUP, for each that does something about it.
type hangups struct{ reload, rotate chan os.Signal }

// catchHangups keeps SIGHUP from ending the process, until it is stopped; what comes before somebody follows is kept.
func catchHangups() (h hangups, stop func()) {
	h = hangups{make(chan os.Signal, 1), make(chan os.Signal, 1)}
	signal.Notify(h.reload, syscall.SIGHUP)
	signal.Notify(h.rotate, syscall.SIGHUP)
	return h, func() {
		signal.Stop(h.reload)
		signal.Stop(h.rotate)
	}
}

// follow has the files read again when they change and on SIGHUP, and the audit log opened again on SIGHUP, until it is stopped.
func (v *live) follow(ctx context.Context, h hangups) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { v.reloader.Run(ctx, h.reload) })
	running.Go(func() { v.rotate(ctx, h.rotate) })
	return func() {
		cancel()
		running.Wait()
	}
}

// rotate opens the audit log again whenever it is told to.
func (v *live) rotate(ctx context.Context, rotated <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-rotated:
			if err := v.audit.Reopen(); err != nil {
				v.log.Error("not opened again: lines go on into the old file", slog.Any("error", err))
			}
		}
	}
}

// close closes the connections to Jelou.
func (v *live) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, t := range v.companies {
		v.old[t.company.Client] = true
	}
	for client := range v.old {
		client.Close()
	}
}

// parts are the files that are in force: the configuration, then those that it names.
func (v *live) parts() []reload.Part {
	v.mu.Lock()
	defer v.mu.Unlock()
	parts := []reload.Part{{Name: "configuration", Files: []string{v.flags.config}, Apply: v.reload}}
	if t := v.config.Listen.Tls; t != nil {
		files := []string{t.CertFile, t.KeyFile}
		if t.ClientCaFile != "" {
			files = append(files, t.ClientCaFile)
		}
		parts = append(parts, reload.Part{Name: "TLS keys", Files: files, Secret: true, Apply: v.reloadKeys})
	}
	if v.content != nil {
		parts = append(parts, reload.Part{
			Name: "encryption keys", Files: []string{v.config.Ledger.EncryptionKeyFile}, Secret: true,
			Apply: func(context.Context) error { return v.content.Reload() },
		})
	}
	var keySets []string
	for _, issuer := range v.config.Authentication.GetIssuers() {
		if issuer.JwksFile != "" {
			keySets = append(keySets, issuer.JwksFile)
		}
	}
	if len(keySets) > 0 {
		parts = append(parts, reload.Part{Name: "public keys of issuers", Files: keySets, Apply: v.reloadCallers})
	}
	for _, id := range slices.Sorted(maps.Keys(v.companies)) {
		t := v.companies[id]
		parts = append(parts, reload.Part{
			Name: "credential of " + id, Files: []string{t.config.ClientIdFile, t.config.ClientSecretFile}, Secret: true,
			Apply: func(context.Context) error { return t.readCredential() },
		})
	}
	return parts
}

// reload reads the configuration file and puts it in force, or refuses it as a whole.
func (v *live) reload(ctx context.Context) error {
	config, err := loadConfig(v.flags.config)
	if err != nil {
		return err
	}
	v.flags.override(config)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := checkRestart(v.config, config); err != nil {
		return fmt.Errorf("%s: %w", v.flags.config, err)
	}
	if err := checkListen(config, nil); err != nil {
		return err
	}
	var listenerTLS *tls.Config
	if v.keys != nil {
		if listenerTLS, err = readTLS(config.Listen.Tls); err != nil {
			return err
		}
	}
	companies, err := v.tenants(ctx, config)
	if err != nil {
		return fmt.Errorf("%s: %w", v.flags.config, err)
	}
	callers, err := v.source.Load(config.Callers, config.Authentication)
	if err != nil {
		v.discard(companies)
		return fmt.Errorf("%s: %w", v.flags.config, err)
	}
	// Nothing fails from here on.
	v.keys.set(listenerTLS)
	v.level.Set(logLevels[config.Log.GetLevel()])
	v.server.Update(settingsOf(config, companies, callers))
	before := v.companies
	v.config, v.companies, v.callers = config, companies, callers
	v.retire(ctx, before)
	return nil
}

// reloadKeys reads the files of TLS again. Streams of clients whose authority is gone end.
func (v *live) reloadKeys(context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	err := v.keys.read(v.config.Listen.Tls)
	if err == nil {
		v.server.Update(settingsOf(v.config, v.companies, v.callers))
	}
	return err
}

// reloadCallers reads the issuers' public keys again.
func (v *live) reloadCallers(context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	callers, err := v.source.Load(v.config.Callers, v.config.Authentication)
	if err != nil {
		return err
	}
	v.callers = callers
	v.server.Update(settingsOf(v.config, v.companies, callers))
	return nil
}

// settingsOf is what may change while the server runs.
func settingsOf(config *configv1.Config, companies map[string]*tenant, callers *caller.Set) service.Settings {
	bots := map[string]*dispatch.Company{}
	for _, t := range companies {
		for _, bot := range t.config.Bots {
			bots[bot] = t.company
		}
	}
	return service.Settings{
		Bots: bots, Callers: callers, DrainTimeout: config.Shutdown.GetDrainTimeout().AsDuration(),
		Bounds: service.Bounds{
			Company: int64(config.Bounds.GetCompanyWaiting()), Lane: int64(config.Bounds.GetLaneWaiting()), Caller: int64(config.Bounds.GetCallerWaiting()),
		},
	}
}

// tenants makes the companies of a configuration; those that have not changed are those in force.
func (v *live) tenants(ctx context.Context, config *configv1.Config) (map[string]*tenant, error) {
	all := map[string]*tenant{}
	for _, c := range config.Companies {
		before := v.companies[c.Id]
		if before != nil && proto.Equal(before.config, c) {
			all[c.Id] = before
			continue
		}
		t, err := v.newTenant(ctx, c, before)
		if err != nil {
			v.discard(all)
			return nil, fmt.Errorf("company %s: %w", c.Id, err)
		}
		all[c.Id] = t
	}
	return all, nil
}

// discard closes what was made for a configuration that is refused.
func (v *live) discard(companies map[string]*tenant) {
	for id, t := range companies {
		if !v.uses(id, t.company.Client) {
			t.company.Client.Close()
		}
	}
}

// uses reports whether the company in force has this client.
func (v *live) uses(id string, client *jelou.Client) bool {
	t := v.companies[id]
	return t != nil && t.company.Client == client
}

// newTenant makes a company, with what it keeps of the one before; nil for a new one.
func (v *live) newTenant(ctx context.Context, c *configv1.Company, before *tenant) (*tenant, error) {
	rule, err := paceOf(c)
	if err != nil {
		return nil, err
	}
	t := &tenant{config: c, credential: &atomic.Pointer[credential]{}}
	if before != nil && before.config.ClientIdFile == c.ClientIdFile && before.config.ClientSecretFile == c.ClientSecretFile {
		t.credential = before.credential // good, whatever is in the files now
	} else if err := t.readCredential(); err != nil {
		return nil, err
	}
	read := func() (id, secret string, err error) {
		now := t.credential.Load()
		return now.id, now.secret, nil
	}
	id, err := v.ledger.Company(ctx, c.Id)
	if err != nil {
		return nil, err
	}
	var client *jelou.Client
	if before != nil && before.credential == t.credential && sameConnections(before.config, c) {
		client = before.company.Client // a new one's connections would cost the next slots a handshake
	} else if client, err = jelou.New(jelou.Config{
		BaseURL: c.BaseUrl, NotificationPath: c.NotificationPath, ProxyURL: c.ProxyUrl, AttemptTimeout: c.AttemptTimeout.AsDuration(),
		Credential: read,
	}); err != nil {
		return nil, err
	}
	t.company = &dispatch.Company{
		ID: id, Name: c.Id, Client: client, Pace: rule, Credential: read,
		AttemptTimeout: c.AttemptTimeout.AsDuration(), RecipientInterval: c.RecipientInterval.AsDuration(),
	}
	return t, nil
}

// sameConnections reports whether a company's requests go the same way as before.
func sameConnections(before, c *configv1.Company) bool {
	return before.BaseUrl == c.BaseUrl && before.NotificationPath == c.NotificationPath && before.ProxyUrl == c.ProxyUrl &&
		before.AttemptTimeout.AsDuration() == c.AttemptTimeout.AsDuration()
}

// readCredential puts what stands in the files in force, or leaves what is.
func (t *tenant) readCredential() error {
	id, secret, err := readCredential(t.config)
	if err == nil {
		t.credential.Store(&credential{id, secret})
	}
	return err
}

// closeAfter is how long a replaced client stays open beyond its attempts.
const closeAfter = 5 * time.Second

// retire closes the clients that are not in force any more, when nothing uses them, and says what waits for those
// that are gone. v.mu is held.
func (v *live) retire(ctx context.Context, before map[string]*tenant) {
	for id, t := range before {
		client := t.company.Client
		if v.uses(id, client) {
			continue
		}
		v.old[client] = true
		time.AfterFunc(max(t.company.AttemptTimeout, dispatch.DefaultAttemptTimeout)+closeAfter, func() {
			client.Close()
			v.mu.Lock()
			defer v.mu.Unlock()
			delete(v.old, client)
		})
		if v.companies[id] == nil {
			v.logRemoved(ctx, t)
		}
	}
}

// logRemoved says how much is left behind.
func (v *live) logRemoved(ctx context.Context, t *tenant) {
	counted, err := v.ledger.Count(ctx, t.company.ID)
	if err != nil {
		v.log.Warn("company removed; what waits for it stays in the ledger", slog.String("company", t.config.Id), slog.Any("error", err))
		return
	}
	waiting := int64(0)
	for _, share := range counted.Shares {
		for _, q := range share.Queues {
			waiting += q.Waiting + q.Paused + q.Scheduled
		}
	}
	v.log.Warn("company removed; what waits for it stays in the ledger and is sent when it is configured again", slog.String("company", t.config.Id), slog.Int64("waiting", waiting))
}
