package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// language is a client and how it is installed, built and run. Commands run in the root of the repository.
type language struct {
	name    string
	setup   [][]string // install and build, in order
	runner  []string   // speaks clients/exchange
	example []string   // takes the server's host:port; nil: none
	rest    bool       // speaks REST, not gRPC
}

var typescript = [][]string{
	{"npm", "ci", "--prefix", "clients/typescript", "--no-audit", "--no-fund"},
	{"npm", "run", "--prefix", "clients/typescript", "generate"},
	{"npm", "run", "--prefix", "clients/typescript", "build"},
}

const javaClasses = "clients/java/target/classes:clients/java/target/lib/*"

var languages = []language{
	{
		name:    "go",
		setup:   [][]string{{"go", "build", "-o", "bin/", "./clients/go/..."}},
		runner:  []string{"bin/runner"},
		example: []string{"bin/example"},
	},
	{
		name: "python",
		setup: [][]string{
			{"python3", "-m", "venv", "clients/python/.venv"},
			{"clients/python/.venv/bin/pip", "install", "--quiet", "--require-hashes", "-r", "clients/python/requirements.txt"},
			{"clients/python/generate.sh"},
		},
		runner:  []string{"clients/python/.venv/bin/python", "clients/python/runner.py"},
		example: []string{"clients/python/.venv/bin/python", "clients/python/example.py"},
	},
	{
		name:    "connect-node",
		setup:   typescript,
		runner:  []string{"node", "clients/typescript/dist/runner.js", "connect-node"},
		example: []string{"node", "clients/typescript/dist/example.js"},
	},
	{
		name:    "grpc-js",
		setup:   typescript,
		runner:  []string{"node", "clients/typescript/dist/runner.js", "grpc-js"},
		example: []string{"node", "clients/typescript/dist/example-grpcjs.js"},
	},
	{
		name:    "rust",
		setup:   [][]string{{"cargo", "build", "--quiet", "--locked", "--manifest-path", "clients/rust/Cargo.toml", "--examples"}},
		runner:  []string{"clients/rust/target/debug/examples/runner"},
		example: []string{"clients/rust/target/debug/examples/example"},
	},
	{
		name: "java",
		setup: [][]string{
			{"mvn", "--quiet", "--batch-mode", "--file", "clients/java", "wrapper:wrapper"},
			{"clients/java/mvnw", "--quiet", "--batch-mode", "--file", "clients/java", "package"},
		},
		runner:  []string{"java", "-cp", javaClasses, "jelou.facade.runner.Runner"},
		example: []string{"java", "-cp", javaClasses, "jelou.facade.example.Example"},
	},
	{
		name:   "rest",
		setup:  [][]string{{"go", "build", "-o", "bin/", "./clients/rest"}},
		runner: []string{"bin/rest", "service/openapi.json"},
		rest:   true,
	},
}

// choose picks languages by their names, all for none.
func choose(names string) ([]language, error) {
	if names == "" {
		return languages, nil
	}
	var chosen []language
	for _, name := range strings.Split(names, ",") {
		found := false
		for _, l := range languages {
			if l.name == name {
				chosen, found = append(chosen, l), true
			}
		}
		if !found {
			return nil, fmt.Errorf("no client is called %q", name)
		}
	}
	return chosen, nil
}

// prepare installs and builds, each command once for all languages. What it prints is shown only when it fails.
func (l language) prepare(ctx context.Context, done map[string]bool) error {
	for _, words := range l.setup {
		line := strings.Join(words, " ")
		if done[line] {
			continue
		}
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			_, _ = os.Stderr.Write(out)
			return fmt.Errorf("%s: %w", line, err)
		}
		done[line] = true
	}
	return nil
}
