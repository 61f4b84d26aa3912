// Command sbom completes a program's bill of materials (CycloneDX) with the licences that the tool does not find, and checks that it is
// whole: every module that is linked in is in it, in the version that is linked in and with its licence.
package main

import (
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// read are licences that people have read: of what no proxy has, and of a file that the tool does not recognise.
var read = map[string]string{
	"github.com/jelou-facade/jelou-facade": "Apache-2.0",
	"github.com/pressly/goose/v3":          "MIT", // three copyrights above it
	"std":                                  "BSD-3-Clause",
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: sbom PROGRAM FILE.cdx.json")
		os.Exit(2)
	}
	if err := complete(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintf(os.Stderr, "sbom: %s: %v\n", os.Args[2], err)
		os.Exit(1)
	}
}

// bill is a bill of materials, with all that its file has.
type bill map[string]any

// component is one of its modules.
type component map[string]any

func complete(program, file string) error {
	build, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var b bill
	if err := json.Unmarshal(text, &b); err != nil {
		return err
	}
	licensed := map[string]bool{}
	for _, c := range b.components() {
		name, _ := c["name"].(string)
		version, _ := c["version"].(string)
		if c["evidence"] == nil && read[name] != "" {
			c["evidence"] = map[string]any{"licenses": []any{map[string]any{"license": map[string]any{"id": read[name]}}}}
		}
		licensed[name+"@"+version] = c["evidence"] != nil
	}
	var missing []error
	for _, m := range build.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		if !licensed[m.Path+"@"+m.Version] {
			missing = append(missing, fmt.Errorf("%s@%s is not in it, or has no licence", m.Path, m.Version))
		}
	}
	if len(missing) > 0 {
		return errors.Join(missing...)
	}
	if text, err = json.MarshalIndent(b, "", "  "); err != nil {
		return err
	}
	fmt.Printf("%s: %d modules, each with its licence\n", file, len(licensed))
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// components are the program itself and what is in it.
func (b bill) components() (all []component) {
	if about, ok := b["metadata"].(map[string]any); ok {
		if c, ok := about["component"].(map[string]any); ok {
			all = append(all, c)
		}
	}
	list, _ := b["components"].([]any)
	for _, item := range list {
		if c, ok := item.(map[string]any); ok {
			all = append(all, c)
		}
	}
	return all
}
