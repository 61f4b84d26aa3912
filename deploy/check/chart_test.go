package check

import (
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

const chartFolder = "../helm/jelou-facade"

// manifests are what a chart renders, each decoded into Kubernetes' own type: a name that the type has not is refused.
type manifests struct {
	deployment *appsv1.Deployment
	services   []*corev1.Service
	config     *corev1.ConfigMap
	account    *corev1.ServiceAccount
	budget     *policyv1.PodDisruptionBudget
	scaler     *autoscalingv2.HorizontalPodAutoscaler
	policy     *networkingv1.NetworkPolicy
	notes      string
}

// render renders the chart with values as `helm template` does, schema included.
func render(values map[string]any) (map[string]string, error) {
	chart, err := loader.LoadDir(chartFolder)
	if err != nil {
		return nil, err
	}
	release := common.ReleaseOptions{Name: "messages", Namespace: "shop", Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, values, release, nil)
	if err != nil {
		return nil, err
	}
	return engine.Render(chart, all)
}

func readValues(t *testing.T, file string) map[string]any {
	t.Helper()
	values, err := common.ReadValuesFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return values
}

func valueSets(t *testing.T) []string {
	t.Helper()
	sets, err := filepath.Glob(filepath.Join(chartFolder, "ci", "*-values.yaml"))
	if err != nil || len(sets) == 0 {
		t.Fatal("no value sets", err)
	}
	return sets
}

// decode reads what was rendered, strictly.
func decode(t *testing.T, rendered map[string]string) *manifests {
	t.Helper()
	m := &manifests{}
	for name, text := range rendered {
		if strings.HasSuffix(name, "NOTES.txt") {
			m.notes = text
			continue
		}
		for _, document := range strings.Split(text, "\n---\n") {
			m.add(t, name, document)
		}
	}
	return m
}

func (m *manifests) add(t *testing.T, name, document string) {
	t.Helper()
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, document)
	}
	var into any
	switch kind.APIVersion + " " + kind.Kind {
	case " ": // a template that is switched off
		return
	case "apps/v1 Deployment":
		m.deployment = &appsv1.Deployment{}
		into = m.deployment
	case "v1 Service":
		m.services = append(m.services, &corev1.Service{})
		into = m.services[len(m.services)-1]
	case "v1 ConfigMap":
		m.config = &corev1.ConfigMap{}
		into = m.config
	case "v1 ServiceAccount":
		m.account = &corev1.ServiceAccount{}
		into = m.account
	case "policy/v1 PodDisruptionBudget":
		m.budget = &policyv1.PodDisruptionBudget{}
		into = m.budget
	case "autoscaling/v2 HorizontalPodAutoscaler":
		m.scaler = &autoscalingv2.HorizontalPodAutoscaler{}
		into = m.scaler
	case "networking.k8s.io/v1 NetworkPolicy":
		m.policy = &networkingv1.NetworkPolicy{}
		into = m.policy
	default:
		t.Fatalf("%s: %+v is nothing that the chart should have", name, kind)
	}
	if err := yaml.UnmarshalStrict([]byte(document), into); err != nil {
		t.Errorf("%s: %v\n%s", name, err, document)
	}
}

// TestChartLints: `helm lint` finds nothing, with the default values and with every set.
func TestChartLints(t *testing.T) {
	for _, set := range append(valueSets(t), filepath.Join(chartFolder, "values.yaml")) {
		for _, message := range lint.RunAll(chartFolder, readValues(t, set), "shop").Messages {
			if message.Severity > support.InfoSev {
				t.Errorf("%s: %v", filepath.Base(set), message)
			}
		}
	}
}

// TestChartOfDocs: the values that docs/deploy.md shows are whole.
func TestChartOfDocs(t *testing.T) {
	_, rest, found := strings.Cut(read(t, root+"/docs/deploy.md"), "\n```yaml\n")
	shown, _, closed := strings.Cut(rest, "\n```\n")
	if !found || !closed {
		t.Fatal("docs/deploy.md shows no values")
	}
	values, err := common.ReadValues([]byte(shown))
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := render(values)
	if err != nil {
		t.Fatal(err)
	}
	m := decode(t, rendered)
	m.checkPod(t)
	m.checkFiles(t)
	m.checkAround(t)
}

// TestChart renders every set of values. What is rendered fits together, and the server takes its configuration.
func TestChart(t *testing.T) {
	for _, set := range valueSets(t) {
		t.Run(strings.TrimSuffix(filepath.Base(set), "-values.yaml"), func(t *testing.T) {
			rendered, err := render(readValues(t, set))
			if err != nil {
				t.Fatal(err)
			}
			for name, text := range rendered {
				if strings.Contains(text, "<no value>") || strings.Contains(text, "<nil>") {
					t.Errorf("%s has a value that is not there:\n%s", name, text)
				}
			}
			m := decode(t, rendered)
			m.checkPod(t)
			m.checkFiles(t)
			m.checkAround(t)
		})
	}
}

// checkPod: the pod runs as little as it can, its probes ask the admin port, and it has the time to stop.
func (m *manifests) checkPod(t *testing.T) {
	t.Helper()
	pod := m.deployment.Spec.Template.Spec
	container := pod.Containers[0]
	inside := container.SecurityContext
	if !*pod.SecurityContext.RunAsNonRoot || *pod.AutomountServiceAccountToken || *m.account.AutomountServiceAccountToken ||
		!*inside.ReadOnlyRootFilesystem || *inside.AllowPrivilegeEscalation || !slices.Equal(inside.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
		pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("the pod may more than it needs")
	}
	ports := map[string]int32{}
	for _, p := range container.Ports {
		ports[p.Name] = p.ContainerPort
	}
	for want, probes := range map[string][]*corev1.Probe{"liveness": {container.StartupProbe, container.LivenessProbe}, "readiness": {container.ReadinessProbe}} {
		for _, p := range probes {
			if p.GRPC.Port != ports["admin"] || *p.GRPC.Service != want {
				t.Errorf("a probe asks port %d for %q", p.GRPC.Port, *p.GRPC.Service)
			}
		}
	}
	var config struct {
		Shutdown struct {
			DrainTimeout metav1.Duration `json:"drain_timeout"`
		}
		Companies []struct {
			AttemptTimeout metav1.Duration `json:"attempt_timeout"`
		}
	}
	if err := yaml.Unmarshal([]byte(m.config.Data["facade.yaml"]), &config); err != nil {
		t.Fatal(err)
	}
	need := cmp.Or(config.Shutdown.DrainTimeout.Seconds(), 20) // the server's own when it is not set
	for _, c := range config.Companies {
		need = max(need, c.AttemptTimeout.Seconds())
	}
	if container.Lifecycle != nil {
		need += float64(container.Lifecycle.PreStop.Sleep.Seconds)
	}
	if got := float64(*pod.TerminationGracePeriodSeconds); got < need+10 || got > need+30 {
		t.Errorf("the pod is killed after %.0f s, and may need %.1f s to stop", got, need)
	}
	for _, c := range pod.TopologySpreadConstraints {
		if !selects(c.LabelSelector.MatchLabels, m.deployment.Spec.Template.Labels) {
			t.Error("the spread is over other pods")
		}
	}
}

// checkFiles: every file that the configuration names is in a secret that is mounted, the audit log is where something may be written, and
// the server takes the rest.
func (m *manifests) checkFiles(t *testing.T) {
	t.Helper()
	const secrets = "/etc/jelou-facade/secrets"
	pod := m.deployment.Spec.Template.Spec
	mounted := map[string]string{}
	for _, mount := range pod.Containers[0].VolumeMounts {
		mounted[mount.MountPath] = mount.Name
		own := strings.HasPrefix(mount.MountPath, "/etc/jelou-facade/")
		if mount.ReadOnly != own || !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name }) {
			t.Errorf("%s: read-only %t, or no volume", mount.MountPath, mount.ReadOnly)
		}
	}
	var config struct {
		Audit struct {
			LogFile string `json:"log_file"`
		}
	}
	if err := yaml.Unmarshal([]byte(m.config.Data["facade.yaml"]), &config); err != nil {
		t.Fatal(err)
	}
	if file := config.Audit.LogFile; file != "" && (mounted[filepath.Dir(file)] == "" || *pod.SecurityContext.FSGroup != *pod.SecurityContext.RunAsGroup) {
		t.Errorf("the server may not write %s", file)
	}
	if mounted["/etc/jelou-facade/config"] != "config" || pod.Containers[0].Args[2] != "/etc/jelou-facade/config/facade.yaml" {
		t.Error("the server is not given its configuration")
	}
	for _, name := range checkConfig(t, m.config.Data["facade.yaml"], secrets) {
		if folder := filepath.Join(secrets, filepath.Dir(name)); mounted[folder] == "" {
			t.Errorf("%s is in no secret that is mounted", name)
		}
	}
	for _, e := range pod.Containers[0].Env {
		if e.Name == "PGPASSFILE" && mounted[filepath.Dir(e.Value)] == "" {
			t.Errorf("%s is in no secret that is mounted", e.Value)
		}
	}
}

// checkAround: services, budget, policy and scaler mean the pods of the deployment, by ports that these have.
func (m *manifests) checkAround(t *testing.T) {
	t.Helper()
	labels := m.deployment.Spec.Template.Labels
	if !selects(m.deployment.Spec.Selector.MatchLabels, labels) {
		t.Error("the deployment selects other pods")
	}
	var names []string
	for _, p := range m.deployment.Spec.Template.Spec.Containers[0].Ports {
		names = append(names, p.Name)
	}
	if len(m.services) != 2 {
		t.Errorf("%d services", len(m.services))
	}
	for _, s := range m.services {
		if !selects(s.Spec.Selector, labels) {
			t.Errorf("service %s selects other pods", s.Name)
		}
		for _, p := range s.Spec.Ports {
			if !slices.Contains(names, p.TargetPort.StrVal) {
				t.Errorf("service %s: no port %q", s.Name, p.TargetPort.StrVal)
			}
		}
	}
	if m.budget != nil && !selects(m.budget.Spec.Selector.MatchLabels, labels) {
		t.Error("the budget is for other pods")
	}
	if m.policy != nil {
		if !selects(m.policy.Spec.PodSelector.MatchLabels, labels) {
			t.Error("the policy is for other pods")
		}
		for _, rule := range m.policy.Spec.Ingress {
			for _, p := range rule.Ports {
				if len(rule.From) == 0 || p.Port.Type != intstr.String || !slices.Contains(names, p.Port.StrVal) {
					t.Errorf("the policy lets %v in from %v", p.Port, rule.From)
				}
			}
		}
	}
	if m.scaler != nil && (m.scaler.Spec.ScaleTargetRef.Name != m.deployment.Name || m.deployment.Spec.Replicas != nil) {
		t.Error("the scaler and the deployment fight about the replicas")
	}
}

func selects(selector, labels map[string]string) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return len(selector) > 0
}

// TestChartOptions: what the value sets switch is there or not.
func TestChartOptions(t *testing.T) {
	for _, c := range []struct {
		set                    string
		budget, policy, scaler bool
	}{{"tls", true, true, false}, {"mesh", true, true, true}, {"bare", false, false, false}} {
		rendered, err := render(readValues(t, filepath.Join(chartFolder, "ci", c.set+"-values.yaml")))
		if err != nil {
			t.Fatal(err)
		}
		m := decode(t, rendered)
		if (m.budget != nil) != c.budget || (m.policy != nil) != c.policy || (m.scaler != nil) != c.scaler {
			t.Errorf("%s: budget %t, policy %t, scaler %t", c.set, m.budget != nil, m.policy != nil, m.scaler != nil)
		}
	}
}

// changed are the values of the first set with another one at a path.
func changed(t *testing.T, path string, value any) map[string]any {
	t.Helper()
	values := readValues(t, filepath.Join(chartFolder, "ci", "tls-values.yaml"))
	at, keys := values, strings.Split(path, ".")
	for _, key := range keys[:len(keys)-1] {
		next, ok := at[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			at[key] = next
		}
		at = next
	}
	at[keys[len(keys)-1]] = value
	return values
}

// TestChartRollsPods: what the server takes up while it runs rolls no pods, and all else does, or the change would stay out of
// force.
func TestChartRollsPods(t *testing.T) {
	template := func(values map[string]any) corev1.PodTemplateSpec {
		rendered, err := render(values)
		if err != nil {
			t.Fatal(err)
		}
		return decode(t, rendered).deployment.Spec.Template
	}
	before := template(changed(t, "replicas", 3))
	for path, c := range map[string]struct {
		value any
		rolls bool
	}{
		"config.bounds.lane_waiting":     {10, false},
		"config.log.level":               {"DEBUG", false},
		"config.listen.tls.cert_file":    {"/etc/jelou-facade/secrets/tls/other.crt", false},
		"config.authentication":          {map[string]any{"issuers": []any{}}, false},
		"config.shutdown":                {map[string]any{"drain_timeout": "19.5s"}, false},
		"config.log.format":              {"TEXT", true},
		"config.listen.max_connections":  {10, true},
		"config.ledger.retention":        {"86400s", true},
		"config.ledger.url":              {"postgres://other.internal/facade", true},
		"config.admin.address":           {"0.0.0.0:9465", true},
		"config.something_of_tomorrow.a": {1, true},
		"secrets.more":                   {"more", true},
	} {
		if rolls := !reflect.DeepEqual(before, template(changed(t, path, c.value))); rolls != c.rolls {
			t.Errorf("%s rolls pods: %t", path, rolls)
		}
	}
}

// TestChartRefuses: what cannot work is refused by its name, before anything is installed.
func TestChartRefuses(t *testing.T) {
	set := func(path string, value any) map[string]any { return changed(t, path, value) }
	for _, c := range []struct {
		name   string
		values map[string]any
		want   string
	}{
		{"the default values", nil, "config.companies: name at least one company"},
		{"no PostgreSQL", set("config.ledger", map[string]any{"path": "ledger.db"}), "config.ledger.url: replicas share a PostgreSQL"},
		{"no callers", set("config.callers", []any{}), "config.callers: name who may call"},
		{"no TLS", set("config.listen", map[string]any{}), "config.listen.tls: set cert_file"},
		{"an unknown value", set("replicaCount", 3), "'replicaCount'"},
		{"no replicas", set("replicas", 0), "replicas"},
		{"a tag as a digest", set("image.digest", "v1.2.3"), "digest"},
		{"a secret's name that is none", set("secrets.jelou", map[string]any{"name": "x"}), "secrets"},
		{"a folder that is none", set("secrets.a/b", "x"), "a/b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := render(c.values); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestSchemaIsWhole: every value has a place in the schema, so that a slip of the pen is refused.
func TestSchemaIsWhole(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartFolder, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema struct{ Properties map[string]any }
	if err := yaml.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	delete(schema.Properties, "global") // Helm's own
	values := slices.Sorted(maps.Keys(readValues(t, filepath.Join(chartFolder, "values.yaml"))))
	if known := slices.Sorted(maps.Keys(schema.Properties)); !slices.Equal(values, known) {
		t.Errorf("values: %v\nschema: %v", values, known)
	}
}
