package contract

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	_ "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1" // linked for its descriptors
	_ "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"        // likewise
)

var update = flag.Bool("update", false, "write testdata/contract.txt")

const (
	protoDir   = "../../proto"
	openAPI    = "../../service/openapi.json"
	goldenFile = "testdata/contract.txt"
)

// TestContract compares the contract with the one that was agreed on.
func TestContract(t *testing.T) {
	files := apiFiles()
	if len(files) != len(protoFiles(t)) {
		t.Fatalf("%d linked files of %d in %s: import their package, or run make generate", len(files), len(protoFiles(t)), protoDir)
	}
	dump := dumper{sources: sources(t, files).AsResolver()}
	dump.operations(t)
	for _, file := range files {
		dump.file(file)
	}
	if *update {
		text := strings.Join(dump.lines, "\n") + "\n"
		if err := os.WriteFile(goldenFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	agreed := strings.Split(strings.TrimSpace(string(text)), "\n")
	changed := false
	for _, line := range agreed {
		if !slices.Contains(dump.lines, line) {
			t.Errorf("agreed: %s", line)
			changed = true
		}
	}
	for _, line := range dump.lines {
		if !slices.Contains(agreed, line) {
			t.Errorf("now:    %s", line)
			changed = true
		}
	}
	if changed {
		t.Error("The contract changed. This is a breaking change, unless it only adds, or loosens a rule. A changed route, operation id " +
			"or default, a tighter rule, and another code for a reason break callers: before 1.0.0 they need a line in CHANGELOG.md, " +
			"after it a new version of the API. If it is meant: go test ./internal/contract -update")
	}
}

// apiFiles are the linked descriptors of the protos, in the order of their paths.
func apiFiles() []protoreflect.FileDescriptor {
	var files []protoreflect.FileDescriptor
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(file.Path(), "jelou/") {
			files = append(files, file)
		}
		return true
	})
	slices.SortFunc(files, func(a, b protoreflect.FileDescriptor) int { return strings.Compare(a.Path(), b.Path()) })
	return files
}

// protoFiles are the files below proto/.
func protoFiles(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(protoDir, func(name string, entry os.DirEntry, err error) error {
		if filepath.Ext(name) == ".proto" {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// sources compiles the protos themselves, for their comments, which linked descriptors do not have. Imports are the
// linked descriptors, as in internal/protodeps.
func sources(t *testing.T, files []protoreflect.FileDescriptor) linker.Files {
	t.Helper()
	var names []string
	for _, file := range files {
		names = append(names, file.Path())
	}
	compiler := protocompile.Compiler{
		SourceInfoMode: protocompile.SourceInfoStandard,
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: []string{protoDir}},
			protocompile.ResolverFunc(func(name string) (protocompile.SearchResult, error) {
				file, err := protoregistry.GlobalFiles.FindFileByPath(name)
				return protocompile.SearchResult{Desc: file}, err
			}),
		},
	}
	compiled, err := compiler.Compile(t.Context(), names...)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// dumper writes the contract as text: one fact a line, each with the full name of what it is about.
type dumper struct {
	lines   []string
	sources linker.Resolver // finds descriptors that have comments
}

func (d *dumper) line(format string, arguments ...any) {
	d.lines = append(d.lines, fmt.Sprintf(format, arguments...))
}

// operations writes the operation ids of the OpenAPI document, which are method names in generated clients.
func (d *dumper) operations(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
		}
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(document.Paths)) {
		for _, verb := range slices.Sorted(maps.Keys(document.Paths[path])) {
			d.line("%s %s: operation id %s", strings.ToUpper(verb), path, document.Paths[path][verb].OperationID)
		}
	}
}

func (d *dumper) file(file protoreflect.FileDescriptor) {
	for i := range file.Services().Len() {
		methods := file.Services().Get(i).Methods()
		for i := range methods.Len() {
			rule := proto.GetExtension(methods.Get(i).Options(), annotations.E_Http).(*annotations.HttpRule)
			d.values(methods.Get(i).FullName(), "", rule.ProtoReflect())
		}
	}
	d.messages(file.Messages())
	d.enums(file.Enums())
}

func (d *dumper) messages(messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		message := messages.Get(i)
		if message.IsMapEntry() {
			continue
		}
		d.rules(message, validate.E_Message)
		for i := range message.Oneofs().Len() {
			d.rules(message.Oneofs().Get(i), validate.E_Oneof)
		}
		for i := range message.Fields().Len() {
			d.rules(message.Fields().Get(i), validate.E_Field)
			d.defaults(message.Fields().Get(i))
		}
		d.enums(message.Enums())
		d.messages(message.Messages())
	}
}

// enums writes the values with their comments, which say what an unset one means and which code a reason comes with.
func (d *dumper) enums(enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		enum := enums.Get(i)
		for i := range enum.Values().Len() {
			value := enum.Values().Get(i)
			d.line("%s.%s = %d: %s", enum.FullName(), value.Name(), value.Number(), d.comment(value))
		}
	}
}

func (d *dumper) rules(of protoreflect.Descriptor, extension protoreflect.ExtensionType) {
	d.values(of.FullName(), "", proto.GetExtension(of.Options(), extension).(proto.Message).ProtoReflect())
}

// values writes every scalar that is set in an option, with its path. What a CEL rule says to people is no contract.
func (d *dumper) values(of protoreflect.FullName, path string, option protoreflect.Message) {
	switch option := option.Interface().(type) {
	case *validate.Rule:
		d.line("%s: %s %s: %s", of, path, option.GetId(), option.GetExpression())
		return
	case *durationpb.Duration:
		d.line("%s: %s = %s", of, path, option.AsDuration())
		return
	}
	fields := option.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if !option.Has(field) {
			continue
		}
		name := strings.TrimPrefix(path+"."+string(field.Name()), ".")
		value := option.Get(field)
		switch {
		case field.IsList() && field.Message() != nil:
			for i := range value.List().Len() {
				d.values(of, name, value.List().Get(i).Message())
			}
		case field.Message() != nil:
			d.values(of, name, value.Message())
		case field.Enum() != nil:
			d.line("%s: %s = %s", of, name, field.Enum().Values().ByNumber(value.Enum()).Name())
		default:
			d.line("%s: %s = %v", of, name, value.Interface())
		}
	}
}

// stated finds the sentences of a comment that say what happens when a field is not set.
var stated = regexp.MustCompile(`\b(when|When) (0|absent|empty|unset)\b|\b(Without|without) it\b`)

func (d *dumper) defaults(field protoreflect.FieldDescriptor) {
	for sentence := range strings.SplitSeq(d.comment(field), ". ") {
		if stated.MatchString(sentence) {
			d.line("%s: default: %s", field.FullName(), strings.TrimSuffix(sentence, "."))
		}
	}
}

func (d *dumper) comment(of protoreflect.Descriptor) string {
	source, err := d.sources.FindDescriptorByName(of.FullName())
	if err != nil {
		return err.Error()
	}
	location := source.ParentFile().SourceLocations().ByDescriptor(source)
	return strings.Join(strings.Fields(location.LeadingComments), " ")
}
