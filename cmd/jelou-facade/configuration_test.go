package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew from the proto")

// fieldsBegin is the line of docs/configuration.md after which all is made from the proto.
const fieldsBegin = "<!-- From here on: go test ./cmd/jelou-facade -run TestConfigurationDocs -update -->\n"

// TestConfigurationDocs: docs/configuration.md has every field as the proto describes it, and says which take effect at once.
func TestConfigurationDocs(t *testing.T) {
	file := filepath.Join("..", "..", "docs", "configuration.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, _, found := strings.Cut(string(text), fieldsBegin)
	if !found {
		t.Fatalf("%s has no line %s", file, fieldsBegin)
	}
	d := &fieldDocs{T: t, known: map[string]bool{}}
	d.write("", d.compile())
	want := head + fieldsBegin + d.String()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(text) != want {
		t.Errorf("%s is not what the proto says: go test ./cmd/jelou-facade -run TestConfigurationDocs -update", file)
	}
	for name := range liveFields {
		if !d.known[name] {
			t.Errorf("%s is live, and is no field", name)
		}
	}
}

// fieldDocs writes a table for each message.
type fieldDocs struct {
	*testing.T
	strings.Builder
	known map[string]bool
}

// compile reads the proto itself: the linked one has no comments.
func (d *fieldDocs) compile() protoreflect.MessageDescriptor {
	d.Helper()
	compiler := protocompile.Compiler{
		SourceInfoMode: protocompile.SourceInfoStandard,
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: []string{filepath.Join("..", "..", "proto")}},
			protocompile.ResolverFunc(func(name string) (protocompile.SearchResult, error) {
				file, err := protoregistry.GlobalFiles.FindFileByPath(name)
				return protocompile.SearchResult{Desc: file}, err
			}),
		},
	}
	files, err := compiler.Compile(d.Context(), configv1.File_jelou_facade_config_v1_config_proto.Path())
	if err != nil {
		d.Fatal(err)
	}
	return files[0].Messages().ByName("Config")
}

// write writes the fields of a message that stands at a path, then those of the messages in it.
func (d *fieldDocs) write(path string, m protoreflect.MessageDescriptor) {
	title := path
	if title == "" {
		title = "The file"
	}
	fmt.Fprintf(d, "\n## %s\n\n%s\n\n| field | is | live | meaning |\n|---|---|---|---|\n", title, comment(m))
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		at := strings.TrimPrefix(path+"."+string(f.Name()), ".")
		d.known[at] = true
		fmt.Fprintf(d, "| `%s` | %s | %s | %s |\n", f.Name(), kindOf(f), isLive(at), strings.ReplaceAll(comment(f)+values(f), "|", "\\|"))
	}
	for i := range m.Fields().Len() {
		if f := m.Fields().Get(i); ownMessage(f) {
			d.write(strings.TrimPrefix(path+"."+string(f.Name()), "."), f.Message())
		}
	}
}

func ownMessage(f protoreflect.FieldDescriptor) bool {
	return f.Message() != nil && f.Message().ParentFile().Package() == f.ParentFile().Package()
}

// isLive says whether a field takes effect at once, by itself or by one around it.
func isLive(path string) string {
	for at := path; ; {
		if liveFields[at] {
			return "yes"
		}
		cut := strings.LastIndexByte(at, '.')
		if cut < 0 {
			break
		}
		at = at[:cut]
	}
	if hasLiveFields(path) {
		return "in part"
	}
	return "no"
}

// kindOf is a field's kind as a writer of YAML knows it.
func kindOf(f protoreflect.FieldDescriptor) string {
	kind := map[protoreflect.Kind]string{protoreflect.BoolKind: "true or false", protoreflect.StringKind: "text", protoreflect.EnumKind: "name"}[f.Kind()]
	switch {
	case f.Message() != nil && f.Message().FullName() == "google.protobuf.Duration":
		kind = "time, as `1.5s`"
	case f.Message() != nil && f.Message().FullName() == "google.protobuf.Timestamp":
		kind = "moment, as `2026-11-23T15:04:05Z`"
	case f.Message() != nil:
		kind = "fields"
	case kind == "":
		kind = "number"
	}
	if f.IsList() {
		return "list of " + kind
	}
	return kind
}

// values are an enum's, with what they mean.
func values(f protoreflect.FieldDescriptor) string {
	if f.Enum() == nil {
		return ""
	}
	text := ""
	for i := range f.Enum().Values().Len() {
		if v := f.Enum().Values().Get(i); v.Number() != 0 {
			text += fmt.Sprintf("<br>`%s`: %s", v.Name(), comment(v))
		}
	}
	return text
}

// comment is what stands above a declaration, as one line.
func comment(d protoreflect.Descriptor) string {
	text := d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "buf:lint:") {
			lines = append(lines, line)
		}
	}
	return strings.TrimSpace(strings.Join(lines, " "))
}
