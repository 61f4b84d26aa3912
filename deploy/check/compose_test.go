package check

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"sigs.k8s.io/yaml"
)

const composeFolder = "../compose"

// loadCompose reads the file as `docker compose config` does, schema and references included.
func loadCompose(t *testing.T) *types.Project {
	t.Helper()
	folder, err := filepath.Abs(composeFolder)
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  folder,
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(folder, "compose.yaml")}},
		Environment: types.Mapping{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// prepare makes the secrets in a folder of the test's own.
func prepare(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "local")
	if out, err := exec.Command("sh", filepath.Join(composeFolder, "prepare.sh"), folder).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return folder
}

// TestCompose: every file that is mounted is there once prepare.sh has run, images have versions, and nothing is published
// beyond this machine.
func TestCompose(t *testing.T) {
	project := loadCompose(t)
	local := filepath.Join(project.WorkingDir, "local")
	prepared := prepare(t)
	mustExist := func(what, file string) {
		if _, err := os.Stat(strings.Replace(file, local, prepared, 1)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for name, secret := range project.Secrets {
		mustExist("secret "+name, secret.File)
	}
	for name, service := range project.Services {
		for _, volume := range service.Volumes {
			if volume.Type == types.VolumeTypeBind {
				mustExist(name, volume.Source)
			}
		}
		for _, port := range service.Ports {
			if ip, err := netip.ParseAddr(port.HostIP); err != nil || !ip.IsLoopback() {
				t.Errorf("%s: port %s is published on %q", name, port.Published, port.HostIP)
			}
		}
		switch {
		case service.Build != nil:
			mustExist(name, filepath.Join(service.Build.Context, service.Build.Dockerfile))
			if !service.ReadOnly || !slices.Equal(service.CapDrop, []string{"ALL"}) {
				t.Errorf("%s may more than it needs", name)
			}
		case !regexp.MustCompile(`:v?[0-9]+\.[0-9.]+$`).MatchString(service.Image):
			t.Errorf("%s: %s has no version", name, service.Image)
		}
	}
}

// TestComposeFacades: the server takes the configuration, and Prometheus reads each of three.
func TestComposeFacades(t *testing.T) {
	project := loadCompose(t)
	file := filepath.Join(prepare(t), "facade/facade.yaml")
	if out, err := exec.Command(facade, "config", "check", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	var config struct{ Admin struct{ Address string } }
	if err := yaml.Unmarshal([]byte(read(t, file)), &config); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(config.Admin.Address)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for name := range project.Services {
		if strings.HasPrefix(name, "facade-") {
			want = append(want, net.JoinHostPort(name, port))
		}
	}
	slices.Sort(want)
	var prometheus struct {
		Scrape []struct {
			Static []struct{ Targets []string } `json:"static_configs"`
		} `json:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(composeFolder, "prometheus.yml"))), &prometheus); err != nil {
		t.Fatal(err)
	}
	if got := prometheus.Scrape[0].Static[0].Targets; len(want) != 3 || !slices.Equal(got, want) {
		t.Errorf("Prometheus reads %v, the facades are %v", got, want)
	}
}

// TestComposeObserves: Prometheus finds the alert rules and Grafana the dashboard, where the files that name them say.
func TestComposeObserves(t *testing.T) {
	project := loadCompose(t)
	mounted := func(service, target string) string {
		for _, volume := range project.Services[service].Volumes {
			if volume.Target == target {
				return volume.Source
			}
		}
		t.Fatalf("%s has no %s", service, target)
		return ""
	}
	const config = "/etc/prometheus/prometheus.yml"
	if command := project.Services["prometheus"].Command; !slices.Contains(command, "--config.file="+config) {
		t.Errorf("Prometheus reads another file: %v", command)
	}
	var prometheus struct {
		Rules []string `json:"rule_files"`
	}
	if err := yaml.Unmarshal([]byte(read(t, mounted("prometheus", config))), &prometheus); err != nil {
		t.Fatal(err)
	}
	if len(prometheus.Rules) != 1 {
		t.Fatalf("rule files: %v", prometheus.Rules)
	}
	rules := mounted("prometheus", path.Join(path.Dir(config), prometheus.Rules[0]))
	if !strings.Contains(read(t, rules), "alert: ") {
		t.Errorf("no alert is in %s", rules)
	}

	var provisioned struct {
		Providers []struct {
			Type    string
			Options struct{ Path string }
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, mounted("grafana", "/etc/grafana/provisioning/dashboards/jelou-facade.yaml"))), &provisioned); err != nil {
		t.Fatal(err)
	}
	if p := provisioned.Providers; len(p) != 1 || p[0].Type != "file" {
		t.Fatalf("providers: %+v", p)
	}
	dashboard := mounted("grafana", path.Join(provisioned.Providers[0].Options.Path, "jelou-facade.json"))
	if !json.Valid([]byte(read(t, dashboard))) {
		t.Errorf("%s is not JSON", dashboard)
	}
	mounted("grafana", "/etc/grafana/provisioning/datasources/prometheus.yaml")
}

// TestPrepare: secrets are fresh each time, what is there stays, and the key itself is not in the configuration.
func TestPrepare(t *testing.T) {
	first, second := prepare(t), prepare(t)
	for _, name := range []string{"caller-key", "postgres-password", "grafana-password"} {
		one, two := read(t, filepath.Join(first, name)), read(t, filepath.Join(second, name))
		if len(one) != 48 || one == two {
			t.Errorf("%s is %d characters, the same twice: %t", name, len(one), one == two)
		}
		if strings.Contains(read(t, filepath.Join(first, "facade/facade.yaml")), one) {
			t.Errorf("%s stands in the configuration", name)
		}
	}
	before := read(t, filepath.Join(first, "caller-key"))
	if out, err := exec.Command("sh", filepath.Join(composeFolder, "prepare.sh"), first).CombinedOutput(); err != nil || read(t, filepath.Join(first, "caller-key")) != before {
		t.Errorf("a second run: %v, the key changed or not: %s", err, out)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
