package service_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const (
	alertsFile    = "../deploy/prometheus/alerts.yaml"
	dashboardFile = "../deploy/grafana/dashboard.json"
	runbookFile   = "../docs/operations.md"
)

type alertRule struct {
	Alert string
	Expr  string
}

func readAlerts(t *testing.T) []alertRule {
	t.Helper()
	text, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []alertRule } }
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var rules []alertRule
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules
}

// TestRunbook: every alert has a paragraph of its name, and no paragraph is about an alert that is not there.
func TestRunbook(t *testing.T) {
	text, err := os.ReadFile(runbookFile)
	if err != nil {
		t.Fatal(err)
	}
	var alerts, paragraphs []string
	for _, r := range readAlerts(t) {
		alerts = append(alerts, r.Alert)
	}
	for _, found := range regexp.MustCompile(`(?m)^### (.+)$`).FindAllSubmatch(text, -1) {
		paragraphs = append(paragraphs, string(found[1]))
	}
	slices.Sort(alerts)
	slices.Sort(paragraphs)
	if diff := cmp.Diff(alerts, paragraphs); diff != "" {
		t.Errorf("alerts (-) and paragraphs (+):\n%s", diff)
	}
}

func dashboardExpressions(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	return all
}

var metricName = regexp.MustCompile(`\b(jelou|rpc_server|http_server)_[a-z_]+`)

// TestMetricsOfRules: every metric that a rule or the dashboard reads is one that a running server tells.
func TestMetricsOfRules(t *testing.T) {
	f := newFacade(t, nil)
	if _, _, err := f.sendText(transports[1], textTo(openUser, "hola")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.sendText(transports[1], textTo("", "hola")); err == nil {
		t.Fatal("a send to nobody")
	}
	told := map[string]bool{
		"jelou_queue_sends": true, "jelou_queue_oldest_seconds": true, // with time: see TestMetricsOfQueues
		"jelou_config_refused": true, "jelou_config_info": true, // of the command
	}
	f.eventually(func() bool { // once the ledger was looked at
		for name := range f.series() {
			told[metricName.FindString(name)] = true
		}
		return told["jelou_unknown_sends"]
	})
	expressions := dashboardExpressions(t)
	for _, r := range readAlerts(t) {
		expressions = append(expressions, r.Expr)
	}
	for _, expression := range expressions {
		for _, name := range metricName.FindAllString(expression, -1) {
			if !told[name] {
				t.Errorf("no server tells %s, which is read by %s", name, expression)
			}
		}
	}
}

// TestRules: promtool finds the rules and the dashboard's expressions good, and the rules' own tests pass.
func TestRules(t *testing.T) {
	recorded := map[string]any{"name": "dashboard"}
	var rules []map[string]string
	for _, expression := range dashboardExpressions(t) {
		rules = append(rules, map[string]string{"record": "dashboard:expression", "expr": expression})
	}
	recorded["rules"] = rules
	text, err := yaml.Marshal(map[string]any{"groups": []any{recorded}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"check", "rules", "--lint=none", file}, {"check", "rules", alertsFile}, {"test", "rules", strings.Replace(alertsFile, ".yaml", "_test.yaml", 1)}} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v (Debian: apt-get install prometheus, or make prometheus)\n%s", strings.Join(args, " "), err, out)
		}
	}
}
