package check

import (
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const dockerfile = "../docker/Dockerfile"

// stages reads the Dockerfile as BuildKit does; what BuildKit warns of is an error.
func stages(t *testing.T) []instructions.Stage {
	t.Helper()
	file, err := os.Open(dockerfile)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	parsed, err := parser.Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range parsed.Warnings {
		t.Error(w.Short)
	}
	warn := func(rule, _, _, message string, _ []parser.Range) { t.Errorf("%s: %s", rule, message) }
	found, _, err := instructions.Parse(parsed.AST, linter.New(&linter.Config{Warn: warn}))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestDockerfile: images are made of nothing but a program, run as nobody in particular, and are built by the Go that
// go.mod and this machine mean.
func TestDockerfile(t *testing.T) {
	all := stages(t)
	out, err := exec.Command("go", "env", "GOVERSION").Output()
	if err != nil {
		t.Fatal(err)
	}
	minor := regexp.MustCompile(`^go1\.[0-9]+`).FindString(string(out))
	if got := all[0].BaseName; !strings.HasPrefix(got, strings.Replace(minor, "go", "golang:", 1)+".") {
		t.Errorf("it builds with %s, and this is %s", got, minor)
	}
	for _, stage := range all[1:] {
		if stage.BaseName != "scratch" {
			t.Errorf("%s is made from %s", stage.Name, stage.BaseName)
		}
		user, entry := "", []string(nil)
		for _, command := range stage.Commands {
			switch c := command.(type) {
			case *instructions.UserCommand:
				user = c.User
			case *instructions.EntrypointCommand:
				entry = c.CmdLine
				if c.PrependShell {
					t.Errorf("%s: its entrypoint needs a shell", stage.Name)
				}
			}
		}
		if user != "65532:65532" || !slices.Equal(entry, []string{"/usr/bin/" + stage.Name}) {
			t.Errorf("%s: user %q, entrypoint %v", stage.Name, user, entry)
		}
	}
}

// TestImageBuilds runs what the Dockerfile runs, with the files that .dockerignore lets through: the programs are static and
// tell the version and commit that were asked for.
func TestImageBuilds(t *testing.T) {
	folder, out := t.TempDir(), t.TempDir()
	copyContext(t, folder)
	line := ""
	for _, command := range stages(t)[0].Commands {
		if run, ok := command.(*instructions.RunCommand); ok {
			line = strings.Join(run.CmdLine, " ")
		}
	}
	build := exec.Command("bash", "-c", strings.ReplaceAll(line, "OUT=/out", "OUT="+out))
	build.Dir = folder
	build.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH="+runtime.GOARCH, "VERSION=v1.2.3", "COMMIT=0123abc")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, text)
	}
	for _, name := range []string{"jelou-facade", "jelousim"} {
		program := filepath.Join(out, name)
		file, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(file.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Errorf("%s needs a dynamic linker, which the image has not", name)
		}
		file.Close()
		text, err := exec.Command(program, "--version").Output()
		if want := name + " version v1.2.3 commit=0123abc go=go1."; err != nil || !strings.HasPrefix(string(text), want) {
			t.Errorf("%s --version: %q %v", name, text, err)
		}
	}
}

// copyContext copies what the builder is sent.
func copyContext(t *testing.T, to string) {
	t.Helper()
	file, err := os.Open(dockerfile + ".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	patterns, err := ignorefile.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		if out, err := ignored.MatchesOrParentMatches(name); err != nil || out {
			if out && entry.IsDir() {
				return fs.SkipDir // no pattern lets a folder's part through
			}
			return err
		}
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}
