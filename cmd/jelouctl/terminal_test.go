package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// terminal is a run of jelouctl on a terminal of 100 columns, and all that it wrote there.
type terminal struct {
	command *exec.Cmd
	file    *os.File
	written strings.Builder
}

func (w *world) onTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	return startTerminal(t, w.command(args...))
}

func startTerminal(t *testing.T, command *exec.Cmd) *terminal {
	t.Helper()
	term := &terminal{command: command}
	term.command.Env = append(term.command.Env, "TERM=xterm")
	file, err := pty.StartWithSize(term.command, &pty.Winsize{Rows: 30, Cols: 100})
	if err != nil {
		t.Fatal(err)
	}
	term.file = file
	t.Cleanup(func() {
		file.Close()
		if term.command.ProcessState == nil {
			_ = term.command.Process.Kill()
			_ = term.command.Wait()
		}
	})
	return term
}

// until reads until what was written has what is looked for, or the program ends.
func (t *terminal) until(found func(written string) bool) bool {
	buffer := make([]byte, 4096)
	for {
		n, err := t.file.Read(buffer)
		t.written.Write(buffer[:n])
		if found(t.written.String()) {
			return true
		}
		if err != nil { // EIO: the program has ended
			return false
		}
	}
}

// end reads the rest, and returns the exit code; -1 for a killed program.
func (t *terminal) end(test *testing.T) int {
	test.Helper()
	t.until(func(string) bool { return false })
	_ = t.command.Wait()
	return t.command.ProcessState.ExitCode()
}

var (
	barResults  = regexp.MustCompile(`\((\d+)/\d+\)`)
	barUploaded = regexp.MustCompile(`(\d+) uploaded`)
)

// shows tells whether a number of the bar has come so far.
func shows(number *regexp.Regexp, enough int) func(string) bool {
	return func(written string) bool {
		found := number.FindAllStringSubmatch(written[max(0, len(written)-400):], -1)
		if len(found) == 0 {
			return false
		}
		n, err := strconv.Atoi(found[len(found)-1][1])
		return err == nil && n >= enough
	}
}

var (
	controls   = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")
	percentage = regexp.MustCompile(`^\s*(\d+)%`)
)

// text is what was written as lines: a bar that is drawn over and over stands there every 10 percent.
func text(written string) string {
	var b strings.Builder
	for line := range strings.Lines(controls.ReplaceAllString(written, "")) {
		frames := strings.Split(strings.TrimRight(line, "\r\n"), "\r")
		last := -10
		for i, frame := range frames {
			frame = strings.TrimRight(frame, " ")
			found := percentage.FindStringSubmatch(frame)
			if found == nil {
				if frame != "" || len(frames) == 1 {
					fmt.Fprintln(&b, frame)
				}
				continue
			}
			if percent, err := strconv.Atoi(found[1]); err == nil && (percent >= last+10 || i == len(frames)-1) {
				last = percent
				fmt.Fprintln(&b, frame)
			}
		}
	}
	return b.String()
}

// screen is the last picture of a view that is drawn over and over.
func screen(written string) string {
	pictures := strings.Split(written, home)
	for _, picture := range pictures[1:] {
		if whole, _, ok := strings.Cut(picture, clearBelow); ok {
			written = whole
		}
	}
	return controls.ReplaceAllString(strings.ReplaceAll(written, "\r", ""), "")
}
