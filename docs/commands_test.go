package docs

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// elsewhere are the commands that TestCommands does not run, and what runs them or why nothing can.
var elsewhere = []struct {
	command string // a regular expression for the whole of it
	where   string
	used    bool
}{
	{command: `go run \S*cmd/jelou-facade serve --sandbox`, where: "the server of this test, built"},
	{command: `jelou-facade serve --config facade.yaml`, where: "TestExamples of cmd/jelou-facade"},
	{command: `jelou-facade ledger (status|release) .*`, where: "TestConfigCommands and TestLedgerRefused of cmd/jelou-facade"},
	{command: `jelouctl.* \[flags\]|jelouctl .*(SEND_ID|BATCH_ID).*`, where: "usage, made from the commands: TestDocs of cmd/jelouctl"},
	{command: `jelouctl batch send clients.csv --map .* --results results.csv|jelouctl capacity|echo \$\?`, where: "TestCampaign of cmd/jelouctl, which recorded it"},
	{command: `jelouctl batch (replay|watch|results) b0.*|jelouctl sends \w+ s0.*`, where: "TestBatchCommands and TestSingle of cmd/jelouctl, which have such ids"},
	{command: `curl -s https://facade.internal/.*`, where: "make docs-page: Authorize"},
	{command: `make (test|check|clients|build.*|third_party/proto)`, where: ".ci/run, by itself or as a step of another"},
	{command: `go run ./clients/run .*`, where: "make clients, without the flags"},
	{command: `(clients/python|python3|cd clients/typescript|npm|node|cargo|go run ./clients/go|mvn|clients/java/mvnw|java).*`, where: "make clients: the steps of clients/run/languages.go"},
	{command: `go get .*|go install .*`, where: "by hand: they write into the reader's module and folder of programs"},
	{command: `go run ./cmd/jelou-bench.*`, where: "by hand: a measurement must have the machine for itself; what is no measurement is in the tests of cmd/jelou-bench"},
	{command: `(docker|helm|kubectl|sh deploy/compose/\S+) ?.*`, where: "by hand: they need a daemon or a cluster; make deploy-check holds the files"},
}

// block is a run of lines that a page shows as code.
type block struct {
	page  string
	line  int
	lines []string
}

// command is what a page tells its reader to type, and what it says that comes of it.
type command struct {
	place, text, shown string
}

func pages(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"../*.md", "*.md", "../clients/*/README.md"} {
		some, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, some...)
	}
	return found
}

func read(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks are the indented ones of a page, and the fenced ones that name no other language than a shell's.
func blocks(t *testing.T, page string) []block {
	t.Helper()
	var found []block
	fence, open := "", false
	for i, line := range strings.Split(read(t, page), "\n") {
		language, marks := strings.CutPrefix(strings.TrimSpace(line), "```")
		if marks && fence == "" {
			fence, open = "```"+language, false
			continue
		} else if marks {
			fence, open = "", false
			continue
		}
		code, indented := strings.CutPrefix(line, "    ")
		if fence != "" {
			code, indented = line, slices.Contains([]string{"```", "```sh", "```console"}, fence)
		}
		if !indented {
			open = false
			continue
		}
		if !open {
			found, open = append(found, block{page: page, line: i + 1}), true
		}
		last := &found[len(found)-1]
		last.lines = append(last.lines, strings.TrimPrefix(code, "  "))
	}
	return found
}

var comment = regexp.MustCompile(`\s+# .*$`)

// commands are the lines that begin with a program, in a block that begins with one; where a block has prompts, those with
// one, and what follows is shown.
func (b block) commands() []command {
	prompts := slices.ContainsFunc(b.lines, func(line string) bool { return strings.HasPrefix(line, "$ ") })
	if !prompts && !isProgram(b.lines[0]) {
		return nil
	}
	var found []command
	for i := 0; i < len(b.lines); i++ {
		line, prompt := strings.CutPrefix(b.lines[i], "$ ")
		if prompts && !prompt {
			if n := len(found); n > 0 {
				found[n-1].shown += line
			}
			continue
		}
		if !prompt && !isProgram(line) {
			continue
		}
		place := fmt.Sprintf("%s:%d", b.page, b.line+i)
		for (strings.HasSuffix(line, `\`) || strings.HasSuffix(line, "|")) && i+1 < len(b.lines) {
			i++
			line += "\n" + b.lines[i]
		}
		found = append(found, command{place: place, text: strings.TrimSpace(comment.ReplaceAllString(line, ""))})
	}
	return found
}

// runnable are the programs that this test runs; what begins with another, and is nowhere in the table, fails it.
var runnable = []string{"jelou-facade", "jelouctl", "curl", "grpcurl", "printf", "echo"}

// isProgram tells whether a line begins as a command does: with a program that this machine or this repository has.
func isProgram(line string) bool {
	word, _, _ := strings.Cut(line, " ")
	if slices.Contains(runnable, word) || slices.Contains([]string{"docker", "helm", "kubectl", "npm", "cargo", "mvn", "java"}, word) {
		return true
	}
	if strings.Contains(word, "/") {
		return regexp.MustCompile(`^(\./)?(bin|clients|deploy)/`).MatchString(word)
	}
	_, err := exec.LookPath(word)
	return err == nil
}

// changing are ids and times, which differ from run to run.
var changing = regexp.MustCompile(`sha256: \w+|"[sb]0[0-9a-z]{15,}"|"msg_[0-9a-f]+"|"\d+-[0-9a-z]+"|"20\d\d-[^"]*Z"`)

// between are what stands around the members of JSON, and what leaves some out.
var between = regexp.MustCompile(`[…{}\[\],]+`)

// checkShown: all that is shown comes in the answer, in its order; the answer may have more members.
func (c command) checkShown(t *testing.T, answer string) {
	t.Helper()
	blank := func(s string) string { return strings.Join(strings.Fields(s), "") }
	rest := blank(answer)
	for _, piece := range between.Split(changing.ReplaceAllString(c.shown, "…"), -1) {
		_, after, found := strings.Cut(rest, blank(piece))
		if !found {
			t.Errorf("%s: %s\nthe page shows\n%s\nand the answer has no %q there:\n%s", c.place, c.text, c.shown, piece, answer)
			return
		}
		rest = after
	}
}

// TestCommands runs what the pages say: against a sandbox, in a folder with the files that they speak of.
func TestCommands(t *testing.T) {
	folder := t.TempDir()
	build := exec.Command("go", "build", "-o", folder+"/bin/", "../cmd/jelou-facade", "../cmd/jelouctl")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Mkdir(folder+"/secrets", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"secrets/tienda-client-id": "tienda\n", "secrets/tienda-client-secret": "secret\n",
		"clients.csv":  "phone,name,order\n593991234567,Lucía,8841\n",
		"items.ndjson": `{"user_id": "593991234567", "message": {"text": {"text": "Hola"}}}` + "\n",
		"bin/grpcurl":  "#!/bin/sh\nHOME=" + os.Getenv("HOME") + " exec go run github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4 \"$@\"\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	rest, rpc := sandbox(t, folder)
	addresses := strings.NewReplacer("127.0.0.1:8080", rest, "127.0.0.1:50051", rpc)
	env := append(os.Environ(), "PATH="+folder+"/bin:"+os.Getenv("PATH"), "HOME="+folder, "XDG_CONFIG_HOME="+folder, "XDG_STATE_HOME="+folder, "JELOUCTL_ADDRESS="+rpc, "JELOUCTL_BOT=demo")

	ran, other := 0, 0
	for _, page := range pages(t) {
		for _, b := range blocks(t, page) {
		commands:
			for _, c := range b.commands() {
				for i, e := range elsewhere {
					if regexp.MustCompile(`(?s)^(?:` + e.command + `)$`).MatchString(c.text) {
						elsewhere[i].used = true
						other++
						continue commands
					}
				}
				if word, _, _ := strings.Cut(c.text, " "); !slices.Contains(runnable, word) {
					t.Errorf("%s: %s: neither run here nor in the table of what runs it elsewhere", c.place, c.text)
					continue
				}
				ran++
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				run := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", addresses.Replace(c.text))
				run.Dir, run.Env = folder, env
				var problems bytes.Buffer
				run.Stderr = &problems
				answer, err := run.Output()
				cancel()
				if err != nil {
					t.Errorf("%s: %s\n%v\n%s%s", c.place, c.text, err, answer, problems.String())
					continue
				}
				c.checkShown(t, string(answer)+problems.String())
			}
		}
	}
	for _, e := range elsewhere {
		if !e.used {
			t.Errorf("no page has %s (%s)", e.command, e.where)
		}
	}
	t.Logf("%d commands: %d run here, %d elsewhere", ran+other, ran, other)
}

// sandbox starts the server, and returns where it listens for REST and for gRPC.
func sandbox(t *testing.T, folder string) (rest, rpc string) {
	t.Helper()
	server := exec.Command(folder+"/bin/jelou-facade", "serve", "--sandbox", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0")
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		if err := server.Wait(); err != nil {
			t.Error(err)
		}
	})
	for lines := bufio.NewScanner(out); rest == "" && lines.Scan(); {
		fmt.Sscanf(lines.Text(), " gRPC %s", &rpc)
		fmt.Sscanf(lines.Text(), " REST http://%s", &rest)
	}
	if rest == "" {
		t.Fatal("the sandbox did not say where it listens")
	}
	return rest, rpc
}

var (
	link    = regexp.MustCompile(`\]\(([^)#\s]*)(?:#([^)\s]+))?\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// TestLinks: what a page links to in this repository is there, with the heading.
func TestLinks(t *testing.T) {
	links := 0
	for _, page := range pages(t) {
		for _, found := range link.FindAllStringSubmatch(read(t, page), -1) {
			if strings.Contains(found[1], "://") {
				continue
			}
			links++
			target, anchor := page, found[2]
			if found[1] != "" {
				target = filepath.Join(filepath.Dir(page), found[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s: %v", page, found[0], err)
			} else if anchor != "" && !slices.Contains(anchors(t, target), anchor) {
				t.Errorf("%s: %s: no such heading", page, found[0])
			}
		}
	}
	t.Logf("%d links", links)
}

// anchors are the names that GitHub gives the headings of a page.
func anchors(t *testing.T, page string) []string {
	t.Helper()
	var found []string
	for _, h := range heading.FindAllStringSubmatch(read(t, page), -1) {
		found = append(found, strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return found
}
