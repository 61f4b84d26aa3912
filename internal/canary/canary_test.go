package canary

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// requests are an empty request of every method, and every example.
func requests(t *testing.T) map[string]proto.Message {
	t.Helper()
	all := map[string]proto.Message{}
	protoregistry.GlobalFiles.RangeFilesByPackage("jelou.facade.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			for j := range file.Services().Get(i).Methods().Len() {
				kind, err := protoregistry.GlobalTypes.FindMessageByName(file.Services().Get(i).Methods().Get(j).Input().FullName())
				if err != nil {
					t.Fatal(err)
				}
				all[string(kind.Descriptor().Name())] = kind.New().Interface()
			}
		}
		return true
	})
	for folder, request := range map[string]proto.Message{"messages": &facadev1.SendMessageRequest{}, "notifications": &facadev1.SendNotificationRequest{}} {
		names, err := filepath.Glob(filepath.Join("../../examples", folder, "*.json"))
		if err != nil || len(names) == 0 {
			t.Fatal(names, err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			m := request.ProtoReflect().New().Interface()
			if err := protojson.Unmarshal(text, m); err != nil {
				t.Fatal(err)
			}
			all[folder+"/"+filepath.Base(name)] = m
		}
	}
	return all
}

// TestFill: every text of every request is a canary, and every example stays valid.
func TestFill(t *testing.T) {
	validator, err := protovalidate.New()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range requests(t) {
		for how, plant := range map[string]func(proto.Message) []string{"filled": Fill, "planted": Plant} {
			t.Run(name+"/"+how, func(t *testing.T) {
				m := proto.Clone(m)
				paths := plant(m)
				example := strings.Contains(name, "/")
				if example && len(paths) == 0 {
					t.Error("no canary")
				}
				if err := validator.Validate(m); err != nil && example {
					t.Error(err)
				}
				checkTexts(t, m.ProtoReflect(), how == "filled")
			})
		}
	}
}

// checkTexts: every text is a canary or Allowed and, in a filled message, none is absent.
func checkTexts(t *testing.T, m protoreflect.Message, filled bool) {
	t.Helper()
	allowed := func(f protoreflect.FieldDescriptor) bool {
		rules, _ := proto.GetExtension(f.Options(), validate.E_Field).(*validate.FieldRules)
		return slices.ContainsFunc(slices.Concat(rules.GetCel(), rules.GetRepeated().GetItems().GetCel()), func(r *validate.Rule) bool { return Allowed[r.GetId()] != "" })
	}
	is := func(text string) bool {
		return strings.Contains(text, Word) || strings.Contains(text, Number) || strings.Contains(text, Label)
	}
	err := protorange.Range(m, func(at protopath.Values) error {
		var field protoreflect.FieldDescriptor
		for _, step := range at.Path {
			if step.Kind() == protopath.FieldAccessStep {
				field = step.FieldDescriptor()
			}
		}
		switch v := at.Index(-1).Value.Interface().(type) {
		case string:
			if !is(v) && !allowed(field) && !strings.HasSuffix(at.Path.String(), `.fields["type"].string_value`) {
				t.Errorf("%s: %q", at.Path, v)
			}
		case protoreflect.Message:
			if strings.HasPrefix(string(v.Descriptor().FullName()), "google.protobuf.") {
				break
			}
			for i := range v.Descriptor().Fields().Len() {
				f := v.Descriptor().Fields().Get(i)
				if filled && f.Kind() == protoreflect.StringKind && f.ContainingOneof() == nil && !v.Has(f) && !allowed(f) {
					t.Errorf("%s.%s is empty", at.Path, f.Name())
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSearch: a canary is found in every form, wherever it stands.
func TestSearch(t *testing.T) {
	secret := "s3cret/+ñ"
	s := NewSearch(secret)
	for _, c := range []string{NewWord(), NewNumber(), NewLabel(), Bot, secret} {
		for before := range 5 {
			text := strings.Repeat("z", before) + c + "tail"
			for form, encoded := range map[string]string{
				"plain": text, "upper": strings.ToUpper(text), "hex": hex.EncodeToString([]byte(text)), "HEX": fmt.Sprintf("%X", text),
				"base64": base64.StdEncoding.EncodeToString([]byte(text)), "base64url": base64.RawURLEncoding.EncodeToString([]byte(text)),
				"query": url.QueryEscape(text), "path": url.PathEscape(text),
			} {
				if found := s.In("log", []byte("before "+encoded+" after")); len(found) == 0 {
					t.Errorf("%s as %s after %d bytes is not found: %s", c, form, before, encoded)
				}
			}
		}
	}
	if found := s.InLabelled("database", []byte(NewLabel()+Bot)); len(found) != 0 {
		t.Errorf("labels may be there: %v", found)
	}
	if found := s.In("log", []byte("nothing of interest: 999437, kanary, 2026-11-02T03:04:05.999437652Z")); len(found) != 0 {
		t.Errorf("found %v", found)
	}
	file := filepath.Join(t.TempDir(), "ledger.db")
	if err := os.WriteFile(file, []byte("\x00"+NewWord()+"\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := s.InFiles("database", file+"*"); len(found) != 1 || err != nil {
		t.Error(found, err)
	}
	if _, err := s.InFiles("database", file+".none"); err == nil {
		t.Error("no files, and no error")
	}
	if s.Bytes()["log"] == 0 {
		t.Error("no bytes were counted")
	}
}
