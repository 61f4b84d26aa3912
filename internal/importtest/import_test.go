// Package importtest holds the direction of imports inside this module, and the names of its packages.
package importtest

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/jelou-facade/jelou-facade/"
)

// allowed says what of this module a package may import, itself and the packages below it aside. Folders stand for all
// that is below them; the longest one counts. Tests may import more: they put real parts together.
var allowed = map[string][]string{
	"gen":               {"gen"},
	"service/pace":      {"gen"}, // pure: state, time and event in, decision out
	"service/ledger":    {"gen"}, // opaque bytes in and out
	"service/jelou":     {"gen"},
	"service/jelousim":  {"gen"}, // shares nothing with service/jelou: a shared misreading would pass every test
	"service/keyring":   {},
	"service/audit":     {}, // lines of names and codes, whoever makes them
	"service/telemetry": {}, // only where metrics and traces go
	"service/dispatch":  {"gen", "service/jelou", "service/ledger", "service/pace"},
	"service":           {"gen"},
	"cmd":               {"gen", "service"},
	"cmd/jelouctl":      {"gen", "docs", "service/version"}, // a client like any other: what it knows of the server is the API
	"docs":              {},
	"internal":          {"gen", "internal", "service"},
	"clients":           {"gen"},
}

// servers may import gRPC: the server itself, the commands, and what is generated. Everything else speaks in errors and
// values of its own, which service turns into statuses in one place.
var servers = []string{"service", "cmd", "gen", "clients"}

var grpcModules = []string{
	"google.golang.org/grpc",
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime",
	"github.com/fullstorydev/grpchan",
}

// forbiddenNames say nothing about what a package does.
var forbiddenNames = []string{"util", "utils", "common", "helper", "helpers", "types", "model", "models", "errors", "middleware", "mock", "mocks"}

func TestImports(t *testing.T) {
	packages := mustScan(t)
	for _, folder := range slices.Sorted(maps.Keys(packages)) {
		for _, problem := range problems(folder, packages[folder]) {
			t.Error(problem)
		}
	}
	for _, folder := range []string{"service/pace", "service/ledger", "service/jelou", "service/jelousim", "service/keyring"} {
		if packages[folder] == nil {
			t.Errorf("%s is not there: correct the rules", folder)
		}
	}
}

// problems lists what a package imports against the rules, and what is wrong with its name.
func problems(folder string, imports []string) []string {
	var found []string
	if slices.Contains(forbiddenNames, path.Base(folder)) {
		found = append(found, fmt.Sprintf("%s: the name says nothing: call it by what it does", folder))
	}
	for _, imported := range imports {
		if ours, ok := strings.CutPrefix(imported, module); ok && !mayImport(folder, ours) {
			found = append(found, fmt.Sprintf("%s may not import %s", folder, ours))
		}
		isGRPC := slices.ContainsFunc(grpcModules, func(name string) bool { return within(imported, name) })
		if isGRPC && !mayServe(folder) {
			found = append(found, fmt.Sprintf("%s may not import %s: only service and commands know gRPC", folder, imported))
		}
	}
	return found
}

func mayImport(folder, imported string) bool {
	rule, longest := []string(nil), ""
	for prefix, folders := range allowed {
		if within(folder, prefix) && len(prefix) > len(longest) {
			rule, longest = folders, prefix
		}
	}
	if longest == "service" && folder != "service" {
		rule, longest = []string{"gen"}, folder // no rule of its own yet
	}
	return within(imported, longest) || slices.ContainsFunc(rule, func(prefix string) bool { return within(imported, prefix) })
}

func mayServe(folder string) bool {
	top, _, _ := strings.Cut(folder, "/")
	return folder == "service" || top != "service" && slices.Contains(servers, top)
}

func within(name, prefix string) bool {
	return name == prefix || prefix != "" && strings.HasPrefix(name, prefix+"/")
}

// mustScan reads the imports of every package of the module, without those of tests.
func mustScan(t *testing.T) map[string][]string {
	t.Helper()
	packages := map[string][]string{}
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return skip(name)
		}
		if filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		folder = filepath.ToSlash(folder)
		packages[folder] = append(packages[folder], "")
		for _, imported := range file.Imports {
			text, err := strconv.Unquote(imported.Path.Value)
			if err != nil {
				return err
			}
			packages[folder] = append(packages[folder], text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

// skip leaves out hidden folders, testdata, and other modules.
func skip(folder string) error {
	base := filepath.Base(folder)
	if folder != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "node_modules") {
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(folder, "go.mod")); err == nil && folder != root {
		return filepath.SkipDir
	}
	return nil
}

// TestProblems shows that the rules refuse what they are there for.
func TestProblems(t *testing.T) {
	for _, test := range []struct {
		folder, imported string
		refused          bool
	}{
		{"service/pace", "time", false},
		{"service/pace", module + "service/ledger", true},
		{"service/pace/rehearsal", module + "service/pace", false},
		{"service/ledger", module + "service/pace", true},
		{"service/ledger", "google.golang.org/grpc/codes", true},
		{"service/jelou", module + "gen/jelou/facade/v1", false},
		{"service/jelou", module + "service/jelousim", true},
		{"service/jelousim", module + "service/jelou", true},
		{"service/jelousim", module + "service/jelousim/template", false},
		{"service/dispatch", module + "service/jelou", false},
		{"service/dispatch", module + "service", true},
		{"service/dispatch", "google.golang.org/grpc/status", true},
		{"service", module + "service/dispatch", false},
		{"service", "google.golang.org/grpc", false},
		{"service", module + "cmd/jelou-facade", true},
		{"service/key", module + "service", true},
		{"service/key", "github.com/grpc-ecosystem/grpc-gateway/v2/runtime", true},
		{"cmd/jelousim", module + "service/jelousim", false},
		{"cmd/jelouctl", module + "service", true},
		{"cmd/jelouctl", module + "docs", false},
		{"internal/openapi", module + "cmd/jelouctl", true},
		{"service/mocks", "time", true},
		{"service/errors", "time", true},
	} {
		if got := problems(test.folder, []string{test.imported}); (len(got) > 0) != test.refused {
			t.Errorf("%s importing %s: %q, refused should be %t", test.folder, test.imported, got, test.refused)
		}
	}
}
