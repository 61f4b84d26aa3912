package deploy

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"
	_ "modernc.org/sqlite" // the driver by which a scenario ages what a ledger has

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

const alertsFile = "prometheus/alerts.yaml"

// scenarios are played with real servers and the simulator. Each fires its alerts and no others.
var scenarios = []struct {
	name  string
	play  func(*scene)
	fires []string
}{
	{"the quiet run", quietRun, nil},
	{"a stop that does not end", slowStop, []string{"JelouNotReady"}},
	{"no replica", noReplica, []string{"JelouAbsent"}},
	{"the one PostgreSQL stops", databaseStops, []string{"JelouLedgerDown", "JelouNotReady", "JelouReplicationNotSynchronous"}},
	{"the ledger is a copy", copiedLedger, []string{"JelouLedgerHeld", "JelouNotReady"}},
	{"a database that is read-only", readOnly, []string{"JelouLedgerNotWritable"}},
	{"a replica without the key", missingKey, []string{"JelouKeyMissing"}},
	{"one PostgreSQL", singlePostgres, []string{"JelouReplicationNotSynchronous"}},
	{"a refused credential", refusedCredential, []string{"JelouCredentialRejected"}},
	{"a second user of the credential", secondUser, []string{"JelouAllowanceExceeded"}},
	{"Jelou hangs", jelouHangs, []string{"JelouUnknownGrowing"}},
	{"a send that nobody settles", unknownForADay, []string{"JelouUnknownOld"}},
	{"an urgent send waits", waits("URGENT", time.Minute), []string{"JelouUrgentQueueOld"}},
	{"a normal send waits", waits("NORMAL", 20*time.Minute), []string{"JelouNormalQueueOld"}},
	{"a bulk send waits", waits("BULK", 13*time.Hour), []string{"JelouBulkQueueOld"}},
	{"a bad configuration", badConfiguration, []string{"JelouReloadRefused"}},
	{"two configurations", twoConfigurations, []string{"JelouReplicasDiffer"}},
	{"somebody tries keys", triedKeys, []string{"JelouAuthenticationFailures"}},
	{"a row that cannot be read", unreadableRow, []string{"JelouInternalErrors"}},
	{"the audit log's disk is full", fullAuditDisk, []string{"JelouAuditFailing"}},
}

// invented are the alerts of self-checks: they tell of what the program is built never to do, so no scenario makes it do it, and only
// alerts_test.yaml has series for them.
var invented = []string{"JelouWindowExceeded", "JelouGhostSends"}

// TestAlerts plays every scenario and has promtool judge, by the rules, what the servers told at /metrics meanwhile. Time is stretched: what
// was told once stands for as many minutes as the scenario says, so that no test waits for an alert's `for`.
func TestAlerts(t *testing.T) {
	programs, postgres := t.TempDir(), newSynchronous(t)
	build(t, programs, "jelou-facade")
	rules := readRules(t)
	var fired []string
	for _, c := range scenarios {
		fired = append(fired, c.fires...)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, programs, postgres, rules)
			c.play(s)
			s.judge(c.fires)
		})
	}
	var all []string
	for _, r := range rules {
		all = append(all, r.Alert)
		if slices.Contains(invented, r.Alert) == slices.Contains(fired, r.Alert) {
			t.Errorf("%s: needs a scenario, or is of a self-check", r.Alert)
		}
	}
	for _, name := range slices.Concat(fired, invented) {
		if !slices.Contains(all, name) {
			t.Errorf("there is no alert %s", name)
		}
	}
}

type rule struct{ Alert, Expr string }

func readRules(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var all []rule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// scene is where a scenario is played, and what Prometheus would have read there.
type scene struct {
	*testing.T
	program  string
	postgres *ledgertest.Cluster // of all scenarios
	sim      *jelousim.Server
	api      string
	key      string              // of all ledgers
	reads    map[string]bool     // the metrics that the rules read
	series   map[string][]string // a value for each minute
	minutes  int
}

var metricName = regexp.MustCompile(`\bjelou_[a-z_]+`)

func newScene(t *testing.T, programs string, postgres *ledgertest.Cluster, rules []rule) *scene {
	t.Helper()
	world := jelousim.Sandbox()
	world.EveryoneOpen, world.Processing = true, jelousim.Processing{}
	world.Rate = jelousim.Rate{Requests: 5, Window: jelousim.Duration(100 * time.Millisecond)}
	s := &scene{
		T: t, program: filepath.Join(programs, "jelou-facade"), postgres: postgres, sim: jelousim.New(world), key: keyring.New(),
		reads: map[string]bool{}, series: map[string][]string{},
	}
	for _, r := range rules {
		for _, name := range metricName.FindAllString(r.Expr, -1) {
			s.reads[name] = true
		}
	}
	upstream := httptest.NewServer(s.sim)
	t.Cleanup(upstream.Close)
	s.api = upstream.URL
	return s
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// hold has what the facades tell now stand for some minutes. Of those that are not named nothing is told.
func (s *scene) hold(minutes int, up ...*facade) {
	s.Helper()
	told := map[string]string{}
	for _, f := range up {
		for name, value := range f.scrape() {
			metric, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
			if s.reads[metric] {
				told[fmt.Sprintf("%s{%s}", metric, strings.Trim(fmt.Sprintf("instance=%q,%s", f.name, labels), ","))] = value
			}
		}
	}
	for name := range told {
		if s.series[name] == nil {
			s.series[name] = slices.Repeat([]string{"_"}, s.minutes)
		}
	}
	s.minutes += minutes
	for name, values := range s.series {
		value, ok := told[name]
		if !ok { // as Prometheus marks what is gone
			values, value = append(values, "stale"), "_"
		}
		s.series[name] = append(values, slices.Repeat([]string{value}, s.minutes-len(values))...)
	}
}

// judge has promtool say which alerts fired at any time.
func (s *scene) judge(fires []string) {
	s.Helper()
	type labelled struct {
		Labels string
		Value  int
	}
	expected := []labelled{}
	for _, name := range fires {
		expected = append(expected, labelled{fmt.Sprintf("{alertname=%q}", name), 1})
	}
	type told struct{ Series, Values string }
	var input []told
	for name, values := range s.series {
		input = append(input, told{name, strings.Join(values, " ")})
	}
	rules, err := filepath.Abs(alertsFile)
	s.must(err)
	text, err := yaml.Marshal(map[string]any{
		"rule_files": []string{rules}, "evaluation_interval": "1m",
		"tests": []any{map[string]any{"interval": "1m", "input_series": input, "promql_expr_test": []any{map[string]any{
			"expr":      `group by (alertname) (last_over_time(ALERTS{alertstate="firing"}[1d]))`,
			"eval_time": fmt.Sprintf("%dm", s.minutes), "exp_samples": expected,
		}}}},
	})
	s.must(err)
	file := filepath.Join(s.TempDir(), "played.yaml")
	s.must(os.WriteFile(file, text, 0o600))
	if out, err := exec.Command("promtool", "test", "rules", file).CombinedOutput(); err != nil {
		s.Errorf("want %q: %v\n%s", fires, err, out)
	}
}

// facade is a replica: a process, and another one with the same files after every stop.
type facade struct {
	*scene
	name, folder, ledger string // ledger is the path of SQLite's file
	command              *exec.Cmd
	lines                *bufio.Scanner
	rest, admin          string
}

const callerKey = "a key of the scenarios"

// start starts a facade with a ledger: a URL, or none for SQLite.
func (s *scene) start(name, ledgerURL string) *facade {
	s.Helper()
	f := &facade{scene: s, name: name, folder: s.TempDir()}
	f.ledger = filepath.Join(f.folder, "ledger.db")
	where := "path: ledger.db"
	if ledgerURL != "" {
		where = fmt.Sprintf("url: %q", ledgerURL)
	}
	f.write("id", "sandbox\n")
	f.write("secret", "sandbox\n")
	f.write("key", s.key)
	f.write("facade.yaml", fmt.Sprintf(`
listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0"}
admin: {address: "127.0.0.1:0"}
ledger: {%s, encryption_key_file: key}
companies: [{id: shop, base_url: %q, client_id_file: id, client_secret_file: secret, bots: [demo], allowance: {requests: 5, window: 0.1s}, attempt_timeout: 1s}]
callers: [{name: orders, companies: [shop], keys: [{sha256: "%x"}]}]
audit: {log_file: audit.jsonl}
`, where, s.api, sha256.Sum256([]byte(callerKey))))
	f.run()
	return f
}

func (f *facade) write(file, text string) {
	f.Helper()
	f.must(os.WriteFile(filepath.Join(f.folder, file), []byte(text), 0o600))
}

// edit changes the configuration, which the facade reads by itself.
func (f *facade) edit(from, to string) {
	f.Helper()
	before, err := os.ReadFile(filepath.Join(f.folder, "facade.yaml"))
	f.must(err)
	f.write("facade.yaml", strings.Replace(string(before), from, to, 1))
}

// run starts the process and waits until it has looked at its ledger.
func (f *facade) run() {
	f.Helper()
	f.command = exec.Command(f.program, "serve", "--config", filepath.Join(f.folder, "facade.yaml"))
	f.lines = start(f.T, f.command)
	f.rest, f.admin = next(f.T, f.lines, "REST "), next(f.T, f.lines, "admin ")
	f.await(`jelou_unknown_sends{age="0s"}`, func(value string) bool { return value != "" })
}

func (f *facade) stop() {
	f.Helper()
	f.must(f.command.Process.Signal(syscall.SIGTERM))
	for f.lines.Scan() { // until it has ended
	}
}

// rewrite changes what the ledger has while the process is stopped; the new one reads it at once.
func (f *facade) rewrite(statement string) {
	f.Helper()
	f.stop()
	db, err := sql.Open("sqlite", f.ledger)
	f.must(err)
	defer db.Close()
	result, err := db.Exec(statement)
	f.must(err)
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		f.Fatalf("%s: %d rows, %v", statement, n, err)
	}
	f.must(db.Close())
	f.run()
}

// scrape reads the metrics as Prometheus does: names with their labels, and values.
func (f *facade) scrape() map[string]string {
	f.Helper()
	code, text := get(f.T, f.admin+"/metrics")
	if code != http.StatusOK {
		f.Fatalf("%s: %d %s", f.name, code, text)
	}
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && !strings.HasPrefix(line, "#") {
			all[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return all
}

// await waits until a series has a value; empty where it is not told.
func (f *facade) await(series string, is func(value string) bool) {
	f.Helper()
	await(f.T, fmt.Sprintf("%s of %s", series, f.name), func() bool { return is(f.scrape()[series]) })
}

// version is the configuration in force.
func (f *facade) version() string {
	f.Helper()
	for name := range f.scrape() {
		if strings.HasPrefix(name, `jelou_config_info{part="configuration",state="in_force"`) {
			return name
		}
	}
	return ""
}

func (f *facade) awaitValue(series, value string) {
	f.Helper()
	f.await(series, func(v string) bool { return v == value })
}

// ask calls over REST with a key.
func (f *facade) ask(key, method, path, body string) (code int, answer string) {
	f.Helper()
	request, err := http.NewRequestWithContext(f.Context(), method, f.rest+path, strings.NewReader(body))
	f.must(err)
	request.Header.Set("X-Api-Key", key)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	f.must(err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	f.must(err)
	return response.StatusCode, string(text)
}

// queue stores a send to a user of its own; the facade sends it when it can.
func (f *facade) queue(lane string, n int) {
	f.Helper()
	body := fmt.Sprintf(`{"user_id": "5939900%05d", "message": {"text": {"text": "Hola"}}, "mode": "QUEUE", "options": {"lane": %q}}`, n, lane)
	if code, answer := f.ask(callerKey, http.MethodPost, "/v1/bots/demo/messages", body); code != http.StatusOK {
		f.Fatalf("%d %s", code, answer)
	}
}

func attempts(outcome string) string {
	return fmt.Sprintf(`jelou_attempts_total{company="shop",outcome=%q}`, outcome)
}

// newSynchronous is a PostgreSQL whose standby has every commit before it is answered.
func newSynchronous(t *testing.T) *ledgertest.Cluster {
	t.Helper()
	primary := ledgertest.NewCluster(t)
	primary.NewStandby(t)
	execute(t, primary, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
	return primary
}

func execute(t *testing.T, database *ledgertest.Cluster, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, database.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
}

// database makes a database of the scenario's own, and gives its URL.
func (s *scene) database(name string) string {
	s.Helper()
	execute(s.T, s.postgres, "CREATE DATABASE "+name)
	u, err := url.Parse(s.postgres.URL)
	s.must(err)
	u.Path = "/" + name
	return u.String()
}

// quietRun is a day as it should be: sends in all lanes, single mistakes of callers and of Jelou, a new configuration that one replica has
// later than the other, and a rolling restart.
func quietRun(s *scene) {
	database := s.database("quiet")
	a, b := s.start("a", database), s.start("b", database)
	s.hold(20, a, b)
	s.must(s.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultThrottle}, jelousim.Fault{Kind: jelousim.FaultReset, Accepted: true}))
	for n, lane := range []string{"URGENT", "NORMAL", "BULK", "NORMAL"} {
		a.queue(lane, n)
	}
	for key, path := range map[string]string{"a wrong key": "/v1/sends", callerKey: "/v1/sends/none"} {
		if code, answer := b.ask(key, http.MethodGet, path, ""); code == http.StatusOK {
			s.Errorf("%s: %d %s", path, code, answer)
		}
	}
	await(s.T, "all to be sent, and one of them twice", func() bool { return s.sim.Report().Arrived == 5 })
	s.hold(30, a, b)
	for _, f := range []*facade{a, b} {
		before := f.version()
		f.edit("requests: 5", "requests: 4")
		await(s.T, "the new configuration", func() bool { return f.version() != before })
		s.hold(2, a, b)
	}
	for stops, stays := range map[*facade]*facade{a: b, b: a} {
		stops.stop()
		s.hold(1, stays)
		stops.run()
		s.hold(5, a, b)
	}
	s.hold(60, a, b)
	for name := range s.reads {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(s.series)), func(series string) bool { return strings.HasPrefix(series, name+"{") }) {
			s.Errorf("no server tells %s", name)
		}
	}
}

// slowStop: what runs does not end, here because Jelou hangs, so the process neither takes calls nor goes.
func slowStop(s *scene) {
	f := s.start("a", "")
	f.stop()
	f.edit("attempt_timeout: 1s", "attempt_timeout: 10s")
	f.run()
	s.hold(10, f)
	s.must(s.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultHang, Delay: jelousim.Duration(5 * time.Second)}))
	f.queue("NORMAL", 0)
	await(s.T, "the request", func() bool { return s.sim.Report().Arrived == 1 })
	s.must(f.command.Process.Signal(syscall.SIGTERM))
	f.awaitValue("jelou_ready", "0")
	s.hold(5, f)
}

func noReplica(s *scene) {
	f := s.start("a", "")
	s.hold(10, f)
	f.stop()
	s.hold(10)
}

func databaseStops(s *scene) {
	database := ledgertest.NewCluster(s.T)
	f := s.start("a", database.URL)
	s.hold(20, f)
	s.must(database.Signal(syscall.SIGQUIT))
	f.awaitValue("jelou_ledger_up", "0")
	s.hold(20, f)
	s.must(database.Start())
	f.awaitValue("jelou_ledger_up", "1")
	s.hold(5, f)
}

func copiedLedger(s *scene) {
	f := s.start("a", "")
	f.queue("NORMAL", 0)
	f.awaitValue(attempts("sent"), "1")
	s.hold(10, f)
	f.stop()
	text, err := os.ReadFile(f.ledger)
	s.must(err)
	s.must(os.Rename(f.ledger, f.ledger+".before"))
	s.must(os.WriteFile(f.ledger, text, 0o600))
	f.run()
	s.hold(10, f)
}

// readOnly: what a provider does when the disk is nearly full.
func readOnly(s *scene) {
	f := s.start("a", s.database("readonly"))
	s.hold(10, f)
	for _, to := range []struct{ readOnly, writable string }{{"on", "0"}, {"off", "1"}} {
		execute(s.T, s.postgres, "ALTER DATABASE readonly SET default_transaction_read_only = "+to.readOnly,
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'readonly'")
		f.awaitValue("jelou_ledger_writable", to.writable)
		s.hold(5, f)
	}
}

func missingKey(s *scene) {
	f := s.start("a", "")
	s.must(s.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultThrottle, RetryAfter: jelousim.Duration(2 * time.Second)}))
	f.queue("NORMAL", 0)
	f.awaitValue(attempts("throttled"), "1")
	s.hold(10, f)
	f.stop()
	f.write("key", keyring.New())
	f.run()
	f.await("jelou_ledger_key_missing_total", func(value string) bool { return value != "0" })
	s.hold(5, f)
}

func singlePostgres(s *scene) {
	s.hold(30, s.start("a", ledgertest.Postgres(s.T)))
}

func refusedCredential(s *scene) {
	f := s.start("a", "")
	s.hold(10, f)
	f.stop()
	f.write("secret", "another one\n")
	f.run()
	f.queue("NORMAL", 0)
	f.awaitValue(`jelou_credential_accepted{company="shop"}`, "0")
	s.hold(5, f)
}

// secondUser: another program, which knows nothing of this one, sends with the company's credential as fast as it is let.
func secondUser(s *scene) {
	f := s.start("a", "")
	s.hold(10, f)
	other, err := jelou.New(jelou.Config{BaseURL: s.api, Credential: func() (string, string, error) { return "sandbox", "sandbox", nil }})
	s.must(err)
	defer other.Close()
	ctx, stop := context.WithCancel(s.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		message := &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: "Hola"}}}
		for tick := time.NewTicker(5 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			_, _ = other.Send(ctx, "demo", &facadev1.BatchItem{UserId: "593990100000", Content: &facadev1.BatchItem_Message{Message: message}}) // it is throttled, too
		}
	}()
	for n := range 50 {
		f.queue("NORMAL", n)
	}
	f.await(attempts("throttled"), func(value string) bool { n, _ := strconv.Atoi(value); return n >= 5 })
	stop()
	<-ended
	s.hold(10, f)
}

func jelouHangs(s *scene) {
	f := s.start("a", "")
	s.hold(20, f)
	s.must(s.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultHang, Times: 12}))
	for n := range 12 {
		f.queue("NORMAL", n)
	}
	f.awaitValue(attempts("unknown"), "12")
	f.stop() // a process looks at the ledger when it starts, and every ten seconds
	f.run()
	s.hold(10, f)
}

// unknownForADay ages what is stored, for the scenario cannot wait.
func unknownForADay(s *scene) {
	f := s.start("a", "")
	s.must(s.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultReset, Accepted: true}))
	f.queue("NORMAL", 0)
	f.awaitValue(attempts("unknown"), "1")
	s.hold(20, f)
	f.rewrite(fmt.Sprintf(`UPDATE send SET settled_at = settled_at - %d WHERE state = 'unknown'`, (25 * time.Hour).Microseconds()))
	s.hold(90, f)
}

// waits has Jelou stop the company for ten minutes by one 429, and then ages what is stored.
func waits(lane string, age time.Duration) func(*scene) {
	return func(s *scene) {
		f := s.start("a", "")
		s.must(s.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultThrottle, RetryAfter: jelousim.Duration(10 * time.Minute)}))
		f.queue(lane, 0)
		f.awaitValue(attempts("throttled"), "1")
		s.hold(20, f)
		f.rewrite(fmt.Sprintf(`UPDATE send SET accepted_at = accepted_at - %d WHERE state = 'pending'`, age.Microseconds()))
		s.hold(30, f)
	}
}

func badConfiguration(s *scene) {
	f := s.start("a", "")
	s.hold(10, f)
	f.edit("requests: 5", "requests: 5, burst: 5")
	f.awaitValue(`jelou_config_refused{part="configuration"}`, "1")
	s.hold(5, f)
}

func twoConfigurations(s *scene) {
	database := s.database("differ")
	a, b := s.start("a", database), s.start("b", database)
	s.hold(20, a, b)
	before := b.version()
	b.edit("requests: 5", "requests: 4")
	await(s.T, "the new configuration", func() bool { return b.version() != before })
	s.hold(20, a, b)
}

func triedKeys(s *scene) {
	f := s.start("a", "")
	s.hold(10, f)
	for n := range 50 {
		if code, answer := f.ask(fmt.Sprint("key ", n), http.MethodGet, "/v1/sends", ""); code != http.StatusUnauthorized {
			s.Fatalf("%d %s", code, answer)
		}
	}
	s.hold(5, f)
}

// unreadableRow: a row that no release wrote, so reading it is an error that nobody has thought of.
func unreadableRow(s *scene) {
	f := s.start("a", "")
	f.queue("NORMAL", 0)
	f.awaitValue(attempts("sent"), "1")
	f.rewrite(`UPDATE send SET labels = '{'`)
	s.hold(10, f)
	if code, answer := f.ask(callerKey, http.MethodGet, "/v1/sends", ""); code != http.StatusInternalServerError {
		s.Fatalf("%d %s", code, answer)
	}
	s.hold(5, f)
}

// fullAuditDisk: /dev/full answers every write as a full disk does.
func fullAuditDisk(s *scene) {
	f := s.start("a", "")
	s.hold(10, f)
	file := filepath.Join(f.folder, "audit.jsonl")
	for _, to := range []string{"/dev/full", file + ".elsewhere"} {
		s.must(os.Remove(file))
		s.must(os.Symlink(to, file))
		s.must(f.command.Process.Signal(syscall.SIGHUP))
		await(s.T, "the log to be opened again", func() bool {
			f.queue("NORMAL", 0) // of which there is a line
			return (f.scrape()["jelou_audit_waiting"] == "0") == (to != "/dev/full")
		})
		s.hold(5, f)
	}
}
