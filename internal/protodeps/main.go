// Command protodeps prints the .proto files that proto/ imports into a folder, from the descriptors inside the Go
// modules that go.mod pins. So the imports need no registry, are no committed copies, and cannot differ from the
// code that is linked.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: protodeps FOLDER")
		os.Exit(2)
	}
	if err := print(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "protodeps:", err)
		os.Exit(1)
	}
}

func print(folder string) error {
	printer := &protoprint.Printer{Compact: true}
	seen := map[string]bool{}
	var write func(protoreflect.FileDescriptor) error
	write = func(file protoreflect.FileDescriptor) error {
		// buf and protoc bring google/protobuf themselves.
		if seen[file.Path()] || strings.HasPrefix(file.Path(), "google/protobuf/") {
			return nil
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			if err := write(file.Imports().Get(i).FileDescriptor); err != nil {
				return err
			}
		}
		text, err := printer.PrintProtoToString(file)
		if err != nil {
			return err
		}
		name := filepath.Join(folder, file.Path())
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		return os.WriteFile(name, []byte(text), 0o644)
	}
	for _, file := range []protoreflect.FileDescriptor{
		annotations.File_google_api_annotations_proto,
		status.File_google_rpc_status_proto,
		errdetails.File_google_rpc_error_details_proto,
		validate.File_buf_validate_validate_proto,
	} {
		if err := write(file); err != nil {
			return err
		}
	}
	return nil
}
