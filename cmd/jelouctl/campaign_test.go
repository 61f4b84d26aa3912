package main

import (
	"encoding/csv"
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var record = flag.Bool("record", false, "write docs/jelouctl-session.md from this run")

const campaignItems = 10_000

// badLine spoils some lines of a file, each in its own way, and says what is expected to be said about it.
func badLine(i int, cells []string) (spoiled []string, said string) {
	switch i % 6 {
	case 0:
		return []string{"", cells[1], cells[2]}, "user_id (column phone): is required"
	case 1:
		return []string{"099 123 4567", cells[1], cells[2]}, "user_id (column phone): must be a phone number"
	case 2:
		return cells[:2], "has 2 columns instead of 3"
	case 3:
		return []string{"5.93991E+11", cells[1], cells[2]}, "user_id (column phone): must be a phone number"
	case 4:
		return append(cells, "extra"), "has 4 columns instead of 3"
	}
	return []string{cells[0], strings.Repeat("x", 4100), cells[2]}, "message.text.text: must be at most 4096 characters"
}

// campaign writes the file, with so many lines spoiled, and returns what is said about each line.
func (w *world) campaign(t *testing.T, name string, items, bad int) map[int]string {
	t.Helper()
	file, err := os.Create(w.path(name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	out := csv.NewWriter(file)
	_ = out.Write([]string{"phone", "name", "order"})
	said := map[int]string{}
	for i := range items {
		cells := []string{fmt.Sprint(593990000000 + i), fmt.Sprintf("Lucía %d", i), fmt.Sprint(8000 + i)}
		if bad > 0 && i%(items/bad) == 3 && len(said) < bad {
			cells, said[i+2] = badLine(len(said), cells)
		}
		_ = out.Write(cells)
	}
	if out.Flush(); out.Error() != nil {
		t.Fatal(out.Error())
	}
	return said
}

// TestCampaign is a file of 10,000 lines: refused with its 37 wrong lines before anything is sent; corrected, sent, cut by
// Ctrl-C and by a crash, gone on with by the same command; 10,000 results, and nobody got a message twice.
func TestCampaign(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1000, 100*time.Millisecond, func(c *jelousim.Config) { c.EveryoneOpen = true })
	session := &session{}
	send := []string{"batch", "send", "clients.csv", "--map", "user_id=phone", "--text", "Hola {{.name}}, su pedido {{.order}} salió.", "--results", "results.csv"}

	said := w.campaign(t, "clients.csv", campaignItems, 37)
	refused := w.onTerminal(t, send...)
	code := refused.end(t)
	session.add(send, refused, code)
	shown := text(refused.written.String())
	if code != exitInvalid || len(said) != 37 {
		t.Fatalf("exit code %d, %d lines spoiled\n%s", code, len(said), shown)
	}
	for line, what := range said {
		contains(t, shown, fmt.Sprintf("line %5d: %s", line, what))
	}
	contains(t, shown, "37 of 10000 lines are wrong; nothing was sent")
	if n := strings.Count(shown, "line "); n != 37 {
		t.Errorf("%d lines are named", n)
	}
	if r := w.report(t); r.Arrived != 0 {
		t.Fatalf("%d requests arrived of a file that was refused", r.Arrived)
	}

	w.campaign(t, "clients.csv", campaignItems, 0)
	interrupted := w.onTerminal(t, send...)
	uploaded, sent := shows(barUploaded, campaignItems/4), shows(barResults, campaignItems/4)
	if !interrupted.until(func(written string) bool { return uploaded(written) || sent(written) }) {
		t.Fatal(interrupted.written.String())
	}
	capacity := w.onTerminal(t, "capacity")
	_ = interrupted.command.Process.Signal(syscall.SIGINT)
	code = interrupted.end(t)
	session.add(send, interrupted, code)
	if code != exitInterrupted {
		t.Fatalf("exit code %d\n%s", code, interrupted.written.String())
	}
	if !capacity.until(func(written string) bool { return strings.Count(written, clearBelow) > 1 }) {
		t.Fatal(capacity.written.String())
	}
	_ = capacity.command.Process.Signal(syscall.SIGINT)
	if code := capacity.end(t); code != 0 {
		t.Errorf("the live view ended with %d", code)
	}
	session.addScreen([]string{"capacity"}, capacity)

	killed := w.onTerminal(t, send...)
	if !killed.until(shows(barResults, campaignItems/2)) {
		t.Fatal(killed.written.String())
	}
	_ = killed.command.Process.Kill()
	session.add(send, killed, killed.end(t))

	finished := w.onTerminal(t, send...)
	code = finished.end(t)
	session.add(send, finished, code)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, text(finished.written.String()))
	}
	contains(t, text(finished.written.String()), "going on with batch", "COMPLETED", "10000 results written")

	w.checkResults(t, campaignItems)
	r := w.report(t)
	if r.Arrived != campaignItems || r.Duplicates != 0 || len(r.Doubled) != 0 {
		t.Errorf("%d arrived, %d twice", r.Arrived, r.Duplicates)
	}
	again := w.ctl(t, 0, send...)
	contains(t, again.err, "sent before", "Nothing is sent again")
	if r := w.report(t); r.Arrived != campaignItems {
		t.Errorf("%d arrived after another run", r.Arrived)
	}
	t.Logf("%d results, %d requests at the simulated Jelou, %d twice", campaignItems, r.Arrived, r.Duplicates)
	if *record {
		if err := os.WriteFile("../../docs/jelouctl-session.md", []byte(session.markdown()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// checkResults looks at the results file: one SENT for every line, in the order of the file.
func (w *world) checkResults(t *testing.T, items int) {
	t.Helper()
	file, err := os.Open(w.path("results.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != items+1 {
		t.Fatalf("%d results", len(rows)-1)
	}
	ids := map[string]bool{}
	for i, row := range rows[1:] {
		line, to, id, state := row[0], row[1], row[2], row[3]
		if line != fmt.Sprint(i+2) || to != fmt.Sprint(593990000000+i) || state != "SENT" || ids[id] {
			t.Fatalf("result %d: %q", i+1, row)
		}
		ids[id] = true
	}
}

// session is what a person saw, to be shown in the documentation.
type session struct{ b strings.Builder }

func quoted(args []string) string {
	var words []string
	for _, a := range args {
		if strings.ContainsAny(a, " {") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

func (s *session) add(args []string, shown *terminal, code int) {
	fmt.Fprintf(&s.b, "    $ jelouctl %s\n", quoted(args))
	s.indented(text(shown.written.String()))
	if code < 0 {
		fmt.Fprintln(&s.b, "    Killed")
		code = 128 + int(syscall.SIGKILL)
	}
	fmt.Fprintf(&s.b, "    $ echo $?\n    %d\n", code)
}

func (s *session) addScreen(args []string, shown *terminal) {
	fmt.Fprintf(&s.b, "\nMeanwhile, in another terminal:\n\n    $ jelouctl %s\n", quoted(args))
	s.indented(screen(shown.written.String()))
	fmt.Fprint(&s.b, "\nThe same command again, until it is killed by `kill -9`, and once more:\n\n")
}

func (s *session) indented(text string) {
	for line := range strings.Lines(text) {
		s.b.WriteString(strings.TrimRight("    "+line, " \n") + "\n")
	}
}

func (s *session) markdown() string {
	return `# A session with jelouctl

What a terminal of 100 columns showed: a file of 10,000 lines of which 37 are wrong, then the corrected file, cut by Ctrl-C and by ` + "`kill -9`" + `,
against a simulated Jelou that allows 1,000 requests in 100 ms. Written by ` + "`make session`" + ` from a real run; of the bar, which is drawn ten times
a second, every tenth percent is shown.

` + s.b.String()
}
