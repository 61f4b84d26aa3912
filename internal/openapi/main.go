// Command openapi turns what protoc-gen-openapiv2 generated into the document that the server shows at /openapi.json:
// it adds what the generator leaves out (the rules of every field, the lines of streams, the real form of errors,
// headers, examples) and shortens the names. Whatever it cannot place is an error, so that a change of the protos
// cannot leave the document behind unseen.
package main

import (
	"fmt"
	"io/fs"
	"os"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: openapi GENERATED EXAMPLES OUT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.DirFS(os.Args[2]), os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}

func run(generated string, examples fs.FS, out string) error {
	text, err := os.ReadFile(generated)
	if err != nil {
		return err
	}
	document, err := build(text, examples)
	if err != nil {
		return err
	}
	return os.WriteFile(out, document, 0o644)
}
