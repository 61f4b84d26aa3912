package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

var update = flag.Bool("update", false, "write docs/jelouctl.md and docs/man from the commands")

// TestDocs: the page and the manual pages are what the commands say. `make docs` writes them.
func TestDocs(t *testing.T) {
	root := (&app{out: io.Discard, err: io.Discard}).command()
	root.InitDefaultCompletionCmd()
	each(root, func(c *cobra.Command) { c.Long = indented.ReplaceAllString(c.Long, "    ") })
	page, pages := markdown(t, root), manual(t, root)
	if *update {
		for name, text := range pages {
			writeDoc(t, filepath.Join("../../docs/man", name), text)
		}
		writeDoc(t, "../../docs/jelouctl.md", page)
	}
	compare(t, "../../docs/jelouctl.md", page)
	for name, text := range pages {
		compare(t, filepath.Join("../../docs/man", name), text)
	}
	found, err := filepath.Glob("../../docs/man/jelouctl*.1")
	if err != nil || len(found) != len(pages) {
		t.Errorf("%d manual pages in docs/man instead of %d: `make docs` writes them, remove what is too much (%v)", len(found), len(pages), err)
	}
}

func writeDoc(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func compare(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s is not what the commands say; `make docs` writes it:\n%s", path, diff)
	}
}

// markdown is one page with all commands.
func markdown(t *testing.T, root *cobra.Command) string {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("# jelouctl\n\nMade from the commands by `make docs`, like the manual pages in `docs/man`. What it looks like: [a session](jelouctl-session.md).\n\n")
	anchor := func(name string) string { return "#" + strings.ReplaceAll(strings.TrimSuffix(name, ".md"), "_", "-") }
	each(root, func(c *cobra.Command) {
		if err := doc.GenMarkdownCustom(c, &b, anchor); err != nil {
			t.Fatal(err)
		}
	})
	return inherited.ReplaceAllString(b.String(), "And the [options of all commands](#jelouctl).\n\n### SEE ALSO")
}

// indented lines are examples: Markdown wants them deeper than a terminal.
var indented = regexp.MustCompile(`(?m)^  `)

// inherited are the options of all commands, which stand at the first one.
var inherited = regexp.MustCompile(`(?s)### Options inherited from parent commands.*?### SEE ALSO`)

// manual is a page of section 1 for each command, by its file's name.
func manual(t *testing.T, root *cobra.Command) map[string]string {
	t.Helper()
	pages := map[string]string{}
	never := time.Unix(0, 0) // a date would make every page new every day
	each(root, func(c *cobra.Command) {
		var b bytes.Buffer
		if err := doc.GenMan(c, &doc.GenManHeader{Section: "1", Source: "jelou-facade", Manual: "jelouctl", Date: &never}, &b); err != nil {
			t.Fatal(err)
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		pages[name] = strings.ReplaceAll(b.String(), fmt.Sprintf("%q", never.Format("Jan 2006")), `""`)
	})
	return pages
}

func each(c *cobra.Command, f func(*cobra.Command)) {
	if !c.IsAvailableCommand() && c.HasParent() {
		return
	}
	c.InitDefaultHelpFlag()
	f(c)
	for _, child := range c.Commands() {
		each(child, f)
	}
}
