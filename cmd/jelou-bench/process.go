package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bench is one run of a benchmark: its folder, its processes and what it found.
type bench struct {
	ctx    context.Context
	name   string
	quick  bool
	seed   uint64
	rng    *rand.Rand
	stderr io.Writer
	began  time.Time
	folder string
	found  findings
	// keyFile encrypts what the facades store; empty: nothing.
	keyFile string

	mu      sync.Mutex
	endings []func() error
	files   int
}

// progress says on standard error what is going on.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(b.stderr, "%s %5.1fs  %s\n", b.name, time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// pick is the value for a full run or for a quick one.
func pick[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

// sleep waits, or until the run is over.
func (b *bench) sleep(d time.Duration) error { return sleep(b.ctx, d) }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// atEnd has something done when the run ends, however it ends; the latest first.
func (b *bench) atEnd(f func() error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endings = append(b.endings, f)
}

func (b *bench) end() error {
	b.mu.Lock()
	endings := b.endings
	b.endings = nil
	b.mu.Unlock()
	var errs []error
	for i := len(endings) - 1; i >= 0; i-- {
		errs = append(errs, endings[i]())
	}
	return errors.Join(append(errs, os.RemoveAll(b.folder))...)
}

// path is a new name in the run's folder.
func (b *bench) path(name string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.files++
	return filepath.Join(b.folder, fmt.Sprintf("%03d-%s", b.files, name))
}

// write writes a new file in the run's folder.
func (b *bench) write(name string, data []byte) (string, error) {
	path := b.path(name)
	return path, os.WriteFile(path, data, 0o600)
}

const module = "github.com/jelou-facade/jelou-facade"

// build compiles commands.
func (b *bench) build(ctx context.Context, names ...string) error {
	b.progress("building %s", strings.Join(names, " and "))
	args := []string{"build", "-o", b.folder + string(filepath.Separator)}
	for _, name := range names {
		args = append(args, module+"/cmd/"+name)
	}
	build := exec.CommandContext(ctx, "go", args...)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build (jelou-bench has to run inside the repository): %w\n%s", err, out)
	}
	return nil
}

// child is a process that the run started and will end.
type child struct {
	name  string
	log   string // file with its standard error
	cmd   *exec.Cmd
	lines chan string // of its standard output, the first few
	ended chan struct{}
}

// spawn starts one of the commands that were built.
func (b *bench) spawn(program string, args ...string) (*child, error) {
	c := &child{name: program, log: b.path(program + ".log"), lines: make(chan string, 16), ended: make(chan struct{})}
	log, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	c.cmd = exec.Command(filepath.Join(b.folder, program), args...)
	c.cmd.Dir, c.cmd.Stderr, c.cmd.SysProcAttr = b.folder, log, tied()
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	b.atEnd(func() error { c.kill(); return nil })
	go func() {
		defer close(c.ended)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			select {
			case c.lines <- scanner.Text():
			default: // nobody is interested in so many
			}
		}
		_ = c.cmd.Wait() // how a process ended that was killed says nothing
	}()
	return c, nil
}

// line is the next line of the child's standard output.
func (c *child) line(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, fmt.Errorf("%s does not start: %s", c.name, c.logTail()))
	defer cancel()
	select {
	case line := <-c.lines:
		return line, nil
	case <-c.ended:
		return "", fmt.Errorf("%s ended: %s", c.name, c.logTail())
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// logTail is the end of what the child logged.
func (c *child) logTail() string {
	data, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(data[max(0, len(data)-2000):]))
}

// kill ends the child at once, by its process id, and waits for its end.
func (c *child) kill() {
	_ = c.cmd.Process.Signal(syscall.SIGKILL) // fails only when it has ended
	<-c.ended
}

// stop lets the child end in order, and ends it when it takes too long.
func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.ended:
	case <-time.After(15 * time.Second):
		c.kill()
	}
}
