package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/internal/canary"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/keyring"
)

// build builds a command of this module once per test run.
func build(t *testing.T, name string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), name)
	out, err := exec.Command("go", "build", "-o", binary, "../"+name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// start runs a program until the test ends, and returns its lines of standard output.
func start(t *testing.T, binary string, args ...string) *bufio.Scanner {
	t.Helper()
	command := exec.Command(binary, args...)
	var log bytes.Buffer
	command.Stderr = io.MultiWriter(os.Stderr, &log)
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		printed, _ := io.ReadAll(out)
		if err := command.Wait(); err != nil {
			t.Errorf("%s: %v", filepath.Base(binary), err)
		}
		for _, one := range canary.NewSearch().In("output of "+filepath.Base(binary), append(printed, log.Bytes()...)) {
			t.Errorf("found %s", one)
		}
	})
	return bufio.NewScanner(out)
}

// value finds key in a line of key=value.
func value(line, key string) string {
	for _, field := range strings.Fields(line) {
		if v, ok := strings.CutPrefix(field, key+"="); ok {
			return v
		}
	}
	return ""
}

// TestExamples sends every example over gRPC and REST to the real server, with the simulator as another process: the same
// request is the same send, and what is refused is refused in the same words.
func TestExamples(t *testing.T) {
	sim := jelousim.Sandbox()
	sim.Rate.Requests, sim.EveryoneOpen = 200, true
	config, err := json.Marshal(sim)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	write(t, folder, "sim.json", string(config))
	line := start(t, build(t, "jelousim"), "-addr", "127.0.0.1:0", "-control-addr", "127.0.0.1:0", "-config", filepath.Join(folder, "sim.json"))
	if !line.Scan() {
		t.Fatal("jelousim printed nothing")
	}
	api, control := value(line.Text(), "api"), value(line.Text(), "control")
	write(t, folder, "id", "sandbox\n")
	write(t, folder, "secret", "sandbox\n")
	write(t, folder, "ledger.key", keyring.New())
	t.Cleanup(func() { // after the facade has ended
		found, err := canary.NewSearch().InFiles("database", filepath.Join(folder, "ledger.db*"))
		if err != nil || len(found) > 0 {
			t.Error(found, err)
		}
	})
	write(t, folder, "facade.yaml", fmt.Sprintf(`
listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0"}
admin: {address: "127.0.0.1:0"}
ledger: {path: ledger.db, encryption_key_file: ledger.key}
companies:
  - {id: sandbox, base_url: %q, client_id_file: id, client_secret_file: secret, bots: [demo], allowance: {requests: 200}}
`, api))
	facade := start(t, build(t, "jelou-facade"), "serve", "--config", filepath.Join(folder, "facade.yaml"))
	var grpcAddr, rest string
	for rest == "" && facade.Scan() {
		fmt.Sscanf(facade.Text(), "gRPC %s", &grpcAddr)
		fmt.Sscanf(facade.Text(), "REST %s", &rest)
	}
	conn, err := grpc.NewClient(grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	sends := 0
	for pattern, kind := range map[string]example{
		"messages":      {"/jelou.facade.v1.MessageService/SendMessage", &facadev1.SendMessageRequest{}, &facadev1.SendMessageResponse{}},
		"notifications": {"/jelou.facade.v1.NotificationService/SendNotification", &facadev1.SendNotificationRequest{}, &facadev1.SendNotificationResponse{}},
	} {
		files, err := filepath.Glob(filepath.Join("../../examples", pattern, "*.json"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, file := range files {
			t.Run(pattern+"/"+filepath.Base(file), func(t *testing.T) {
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				data = withCanaries(t, kind, data)
				data = withRequestID(t, data, pattern+"-"+strings.TrimSuffix(filepath.Base(file), ".json"))
				overREST, restErr := kind.rest(t, rest+"/v1/bots/demo/"+pattern, data)
				overGRPC, grpcErr := kind.grpc(t, conn, data)
				if restErr != grpcErr {
					t.Fatalf("REST says %q, gRPC %q", restErr, grpcErr)
				}
				if restErr != "" {
					t.Fatal(restErr)
				}
				if diff := cmp.Diff(overREST, overGRPC, protocmp.Transform()); diff != "" {
					t.Error(diff)
				}
				sends++
			})
		}
	}
	var report jelousim.Report
	getJSON(t, control+"/report", &report)
	if report.Arrived != sends || report.Duplicates != 0 {
		t.Errorf("%d examples, %d requests arrived, %d twice", sends, report.Arrived, report.Duplicates)
	}
	t.Logf("%d examples, each over REST and gRPC: %d requests at Jelou, %d sends accepted, worst window %d of %d", sends, report.Arrived, report.Accepted, report.WorstWindow, report.Requests)
}

// example is how the requests of a folder are called.
type example struct {
	method            string
	request, response proto.Message
}

func (e example) grpc(t *testing.T, conn *grpc.ClientConn, data []byte) (proto.Message, string) {
	t.Helper()
	request, response := proto.Clone(e.request), proto.Clone(e.response)
	if err := protojson.Unmarshal(withField(t, data, "bot_id", "demo"), request); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := conn.Invoke(ctx, e.method, request, response); err != nil {
		st := status.Convert(err)
		for _, d := range st.Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				return nil, info.Reason + ": " + st.Message()
			}
		}
		return nil, st.Message()
	}
	return response, ""
}

func (e example) rest(t *testing.T, url string, data []byte) (proto.Message, string) {
	t.Helper()
	answer, err := http.Post(url, "application/json", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		var refused struct {
			Error struct {
				Message string
				Details []struct{ Reason string }
			}
		}
		if err := json.Unmarshal(body, &refused); err != nil {
			t.Fatal(err)
		}
		return nil, refused.Error.Details[0].Reason + ": " + refused.Error.Message
	}
	response := proto.Clone(e.response)
	if err := protojson.Unmarshal(body, response); err != nil {
		t.Fatal(err)
	}
	return response, ""
}

// withCanaries has canaries for an example's texts.
func withCanaries(t *testing.T, e example, data []byte) []byte {
	t.Helper()
	request := proto.Clone(e.request)
	if err := protojson.Unmarshal(data, request); err != nil {
		t.Fatal(err)
	}
	canary.Plant(request)
	changed, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// withRequestID gives an example an id of its own, so that both transports mean the same send.
func withRequestID(t *testing.T, data []byte, id string) []byte {
	t.Helper()
	return withField(t, data, "request_id", id)
}

func withField(t *testing.T, data []byte, name, text string) []byte {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	fields[name] = text
	changed, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func getJSON(t *testing.T, url string, v any) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(v); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, folder, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestConfig: what is wrong with a file is said with the field's name.
func TestConfig(t *testing.T) {
	good := func(change ...string) string {
		return strings.NewReplacer(change...).Replace(`
listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0"}
ledger: {path: ledger.db}
companies:
  - {id: shop, client_id_file: id, client_secret_file: secret, bots: [one, two]}
`)
	}
	for _, c := range []struct{ name, text, want string }{
		{"good", good(), ""},
		{"camel case", good("client_id_file", "clientIdFile"), ""},
		{"alias", good("client_id_file: id", "client_id_file: &file id", "client_secret_file: secret", "client_secret_file: *file"), ""},
		{"unknown field", good("bots:", "bot:"), `line 5: unknown field "bot"`},
		{"no YAML", good("id: shop", "id: 'shop"), "line"},
		{"two documents", good() + "---\n{}\n", "must be one YAML document"},
		{"text for a number", good() + "bounds:\n  lane_waiting: 3\n  company_waiting: many\n", "line 8: invalid value for int32 field company_waiting"},
		{"twice", good("ledger:", "listen:"), `line 3: "listen" stands here twice`},
		{"no company", "listen: {}", "line 1: companies: must contain at least 1 item"},
		{"no bots", good("[one, two]", "[]"), "line 5: companies[0].bots: must contain at least 1 item"},
		{"no credential", good("client_id_file: id, ", ""), "line 5: companies[0].client_id_file: must be at least 1 characters"},
		{"one bot twice", good("[one, two]", "[one, one]"), "companies[0].bots"},
		{"two ledgers", good("path: ledger.db", "path: ledger.db, url: postgres://h/d"), "line 3: ledger: path and url exclude each other"},
		{"open to the network", good(`grpc: "127.0.0.1:0"`, `grpc: "0.0.0.0:50051"`), "line 2: listen.grpc: 0.0.0.0:50051 is not a loopback address"},
		{"half a TLS key", good(`http: "127.0.0.1:0"`, `tls: {cert_file: x}`), "line 2: listen.tls.key_file"},
		{"TLS and plaintext", good(`http: "127.0.0.1:0"`, `plaintext_behind_proxy: true, tls: {cert_file: x, key_file: y}`), "line 2: listen.plaintext_behind_proxy: and tls exclude each other"},
		{"short grace", good(`http: "127.0.0.1:0"`, `max_connection_age: 3600s`), ""},
		{"too short a grace", good(`http: "127.0.0.1:0"`, `max_connection_age: 3601s, max_connection_age_grace: 899s`), "line 2: listen.max_connection_age_grace: must be at least"},
		{"admin open to the network", good() + "admin: {address: \":9464\"}\n", "set open_to_network"},
		{"admin open to the network on purpose", good() + "admin: {address: \"0.0.0.0:9464\", open_to_network: true}\n", ""},
		{"no address", good(`grpc: "127.0.0.1:0"`, `grpc: "here"`), "listen.grpc"},
		{"a bot of two companies", good() + "  - {id: other, client_id_file: id, client_secret_file: secret, bots: [two]}\n", `line 6: companies[1].bots[0]: the bot is in shop and in other`},
		{"window", good("bots: [one, two]", "bots: [one], allowance: {window: 0.001s}"), "line 5: companies[0].allowance.window"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseConfig([]byte(c.text))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestLedgerRefused: a program that may not have the ledger ends, and its last words say whose it is or what to start instead.
func TestLedgerRefused(t *testing.T) {
	folder, binary := t.TempDir(), build(t, "jelou-facade")
	write(t, folder, "id", "sandbox\n")
	write(t, folder, "secret", "sandbox\n")
	write(t, folder, "facade.yaml", `
listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0"}
admin: {address: "127.0.0.1:0"}
ledger: {path: ledger.db}
companies:
  - {id: sandbox, base_url: "http://127.0.0.1:1", client_id_file: id, client_secret_file: secret, bots: [demo]}
`)
	refused := func(want string) {
		t.Helper()
		for _, command := range []string{"serve", "ledger status"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			out, err := exec.CommandContext(ctx, binary, append(strings.Fields(command), "--config", filepath.Join(folder, "facade.yaml"))...).CombinedOutput()
			cancel()
			if exit := (&exec.ExitError{}); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("%s ended with %v", command, err)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			if last := lines[len(lines)-1]; !strings.Contains(last, want) || strings.Contains(string(out), "Usage:") {
				t.Errorf("%s: the last words are %q, want %q", command, last, want)
			}
		}
	}
	t.Run("in use", func(t *testing.T) {
		first := start(t, binary, "serve", "--config", filepath.Join(folder, "facade.yaml"))
		if !first.Scan() {
			t.Fatal("it printed nothing")
		}
		refused(filepath.Join(folder, "ledger.db") + " is held by jelou-facade (pid ")
	})
	t.Run("newer", func(t *testing.T) {
		db, err := sql.Open("sqlite", filepath.Join(folder, "ledger.db")) // the ledger's own driver
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)`); err != nil {
			t.Fatal(err)
		}
		refused("start the newer program")
	})
}

// TestConfigCommands: the example is good once its files are there, and a missing secret is named, never shown.
func TestConfigCommands(t *testing.T) {
	folder := t.TempDir()
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		command := newCommand()
		command.SetArgs(args)
		command.SetOut(&out)
		err := command.Execute()
		return out.String(), err
	}
	if out, err := run("config", "example"); err != nil || out != exampleConfig {
		t.Fatal(out, err)
	}
	write(t, folder, "facade.yaml", exampleConfig+"audit: {log_file: audit.jsonl, required: true}\n")
	if _, err := run("config", "check", filepath.Join(folder, "facade.yaml")); err == nil || !strings.Contains(err.Error(), "client_id_file") {
		t.Errorf("a missing credential: %v", err)
	}
	if err := os.Mkdir(filepath.Join(folder, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, folder, "secrets/tienda-client-id", "id\n")
	write(t, folder, "secrets/tienda-client-secret", "first\nsecond\n")
	if _, err := run("config", "check", filepath.Join(folder, "facade.yaml")); err == nil || strings.Contains(err.Error(), "second") {
		t.Errorf("a secret of two lines: %v", err)
	}
	write(t, folder, "secrets/tienda-client-secret", "secret\n")
	if _, err := run("config", "check", filepath.Join(folder, "facade.yaml")); err != nil {
		t.Error(err)
	}
	if out, err := run("ledger", "status", "--config", filepath.Join(folder, "facade.yaml")); err != nil || !strings.HasPrefix(out, "sends\naccepted 0 = ") {
		t.Error(out, err)
	}
	if _, err := run("ledger", "release", "--config", filepath.Join(folder, "facade.yaml")); err == nil || !strings.Contains(err.Error(), "--unsent") {
		t.Errorf("a release without a choice: %v", err)
	}
	if out, err := run("ledger", "release", "--config", filepath.Join(folder, "facade.yaml"), "--unsent", "unknown"); err != nil {
		t.Error(out, err)
	}
	lines, err := os.ReadFile(filepath.Join(folder, "audit.jsonl"))
	if err != nil || strings.Count(string(lines), `"rpc":"ledger release --unsent unknown"`) != 2 || !strings.Contains(string(lines), `"code":"OK"`) {
		t.Errorf("%s %v", lines, err)
	}
}
