package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// binaries are what was built.
type binaries struct {
	facade, simulator string
	prepared          map[string]bool // commands of languages that were run
}

// buildServers builds the servers into bin/, which git ignores.
func buildServers(ctx context.Context) (*binaries, error) {
	build := exec.CommandContext(ctx, "go", "build", "-o", "bin/", "./cmd/jelou-facade", "./cmd/jelousim")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build the servers, from the root of the repository: %w", err)
	}
	return &binaries{facade: "bin/jelou-facade", simulator: "bin/jelousim", prepared: map[string]bool{}}, nil
}

// child is a process that says on standard output where it serves.
type child struct {
	command *exec.Cmd
	log     string // file of its standard error
	lines   chan string
	done    chan struct{}
}

const startTimeout = 60 * time.Second // a busy machine

func startChild(log string, words ...string) (*child, error) {
	c := &child{command: exec.Command(words[0], words[1:]...), log: log, lines: make(chan string, 64), done: make(chan struct{})}
	stderr, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	c.command.Stderr = stderr
	stdout, err := c.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.command.Start(); err != nil {
		return nil, err
	}
	go c.read(stdout)
	return c, nil
}

// read hands the first lines over and drops the rest, so that the process never waits for a reader.
func (c *child) read(stdout io.Reader) {
	defer close(c.done)
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		select {
		case c.lines <- lines.Text():
		default:
		}
	}
	_ = c.command.Wait() // how it ended is in its log
}

// line waits for a line that begins so and returns the rest of it.
func (c *child) line(prefix string) (string, error) {
	timeout := time.After(startTimeout)
	for {
		select {
		case line := <-c.lines:
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return rest, nil
			}
		case <-c.done:
			return "", c.failure("ended before it said " + prefix)
		case <-timeout:
			return "", c.failure("did not say " + prefix)
		}
	}
}

func (c *child) failure(what string) error {
	log, _ := os.ReadFile(c.log)
	return fmt.Errorf("%s %s: %s", filepath.Base(c.command.Path), what, log)
}

// stop ends the process as a supervisor would, and waits.
func (c *child) stop() {
	_ = c.command.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-c.done:
	case <-time.After(startTimeout):
		_ = c.command.Process.Kill()
		<-c.done
	}
}
