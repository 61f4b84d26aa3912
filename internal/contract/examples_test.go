package contract

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

const examplesDir = "../../examples"

// exampleFolders are the folders of examples and the requests that they hold.
var exampleFolders = map[string]proto.Message{
	"messages":      &facadev1.SendMessageRequest{},
	"notifications": &facadev1.SendNotificationRequest{},
	"options":       &facadev1.SendMessageRequest{},
}

// TestExamples decodes every example as strictly as the server does, and checks the rules.
func TestExamples(t *testing.T) {
	entries, err := os.ReadDir(examplesDir)
	if err != nil {
		t.Fatal(err)
	}
	validator := newValidator(t)
	for _, entry := range entries {
		if entry.Name() == "traffic" {
			continue // no requests: the rehearsal's own test runs them
		}
		request := exampleFolders[entry.Name()]
		if request == nil {
			t.Errorf("examples/%s is in no folder of exampleFolders", entry.Name())
			continue
		}
		names, err := filepath.Glob(filepath.Join(examplesDir, entry.Name(), "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			t.Run(entry.Name()+"/"+filepath.Base(name), func(t *testing.T) {
				text, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				decoded := request.ProtoReflect().New().Interface()
				if err := protojson.Unmarshal(text, decoded); err != nil {
					t.Fatal(err)
				}
				if err := validator.Validate(decoded); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestExampleOfEveryKind holds that each kind of content has a file with its name, which shows that kind.
func TestExampleOfEveryKind(t *testing.T) {
	kinds := (&facadev1.Message{}).ProtoReflect().Descriptor().Oneofs().ByName("content").Fields()
	for i := range kinds.Len() {
		kind := string(kinds.Get(i).Name())
		text, err := os.ReadFile(filepath.Join(examplesDir, "messages", kind+".json"))
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.Contains(string(text), `"`+kind+`": {`) {
			t.Errorf("messages/%s.json does not show the kind %s", kind, kind)
		}
	}
}
