package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// restoring is a ledger that goes back to a time at which its sends still waited.
type restoring struct {
	b     *bench
	shop  *tenant
	sim   *simulator
	fleet *fleet

	p      *postgres // nil for SQLite
	copied string    // the backup

	named   []*facadev1.SendMessageRequest // sends with ids that the backup has, each with little time
	expired time.Time                      // when that is over
	lost    string                         // the id of a send that the backup does not have
}

// namedSends is how many sends their callers ask for again after the release.
const namedSends = 50

// restores are the ways in which a backup takes the ledger's place.
var restores = []struct {
	name     string
	postgres bool
	lives    bool // the process runs through it; else a new one is started
	put      func(*restoring) error
}{
	{"a base backup recovered to a new timeline, a new process", true, false, func(r *restoring) error { return r.putCluster(true) }},
	{"a base backup as it was, under a process that runs through", true, true, func(r *restoring) error { return r.putCluster(false) }},
	{"a copied SQLite file in the place of the file", false, false, (*restoring).putFile},
	{"a SQLite file overwritten with its copy", false, false, (*restoring).overwriteFile},
}

func (b *bench) restoreTrials(*postgres) ([]*trial, error) {
	var trials []*trial
	for i := range restores {
		r := &restoring{b: b}
		all := busy(tenants("restoring", 1), 200, time.Second)
		r.shop = all[0]
		var err error
		if r.sim, err = b.startSimulatorFor(jelousim.Config{}, all...); err != nil {
			return nil, err
		}
		trials = append(trials, &trial{name: restores[i].name, run: func(ctx context.Context, t *trial) error { return r.run(ctx, t, i) }})
	}
	return trials, nil
}

func (r *restoring) start(onPostgres bool) (err error) {
	url := ""
	if onPostgres {
		if r.p, err = r.b.startPostgres(); err != nil {
			return err
		}
		if url, err = r.p.database(); err != nil {
			return err
		}
	}
	r.fleet, err = r.b.startFleet(1, url, shortAttempts, r.shop)
	return err
}

// run makes sends that wait for their time, a backup, and has the sends leave; then the backup takes the ledger's place, in which
// they wait, and their time is over. Those with ids would expire there, too, and their callers ask for them again.
func (r *restoring) run(ctx context.Context, t *trial, i int) error {
	kind := restores[i]
	if err := r.start(kind.postgres); err != nil {
		return err
	}
	sends := pick(r.b, 1000, 200)
	due := time.Now().Add(pick(r.b, 12*time.Second, 6*time.Second))
	r.expired = due.Add(pick(r.b, 25*time.Second, 4*time.Second))
	for i := range namedSends {
		m := r.shop.message(r.shop.bot(), facadev1.SendOptions_URGENT) // before the batch, which has time
		m.Mode, m.RequestId = facadev1.SendOptions_QUEUE, fmt.Sprint("named-", i)
		m.Options.ScheduleTime, m.Options.ExpireTime = timestamppb.New(due), timestamppb.New(r.expired)
		if _, err := r.fleet.any().messages.SendMessage(ctx, m); err != nil {
			return err
		}
		m.Options.ScheduleTime, m.Options.ExpireTime = nil, nil
		r.named = append(r.named, m)
	}
	request := &facadev1.CreateBatchRequest{Spec: &facadev1.BatchSpec{
		BotId: r.shop.bot(), Options: &facadev1.SendOptions{ScheduleTime: timestamppb.New(due)},
	}}
	for range sends {
		user := r.shop.user()
		request.Items = append(request.Items, &facadev1.BatchItem{UserId: user, Content: &facadev1.BatchItem_Message{Message: text("Novedad para " + user)}})
	}
	if _, err := r.fleet.any().batches.CreateBatch(ctx, request); err != nil {
		return err
	}
	if err := r.backUp(ctx); err != nil {
		return err
	}
	var err error
	if r.lost, err = r.sendOne(ctx); err != nil {
		return err
	}
	sends += namedSends + 1
	if err := r.fleet.any().quiet(ctx); err != nil {
		return err
	}
	if err := r.sent(ctx, t, "before", sends); err != nil {
		return err
	}
	if !kind.lives {
		r.fleet.stop()
	}
	if err := kind.put(r); err != nil {
		return err
	}
	if !kind.lives {
		if err := r.fleet.start(0); err != nil {
			return err
		}
	}
	if err := r.held(ctx, t, sends); err != nil {
		return err
	}
	return r.release(ctx, t, sends)
}

// sent compares what arrived at Jelou.
func (r *restoring) sent(ctx context.Context, t *trial, when string, want int) error {
	sent, err := r.sim.sends(ctx)
	t.must(len(sent) == want, "%s: %d sends at Jelou, want %d", when, len(sent), want)
	return err
}

// sendOne sends one message, and says its id.
func (r *restoring) sendOne(ctx context.Context) (id string, err error) {
	once, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	answer, err := r.fleet.any().messages.SendMessage(once, r.shop.message(r.shop.bot(), facadev1.SendOptions_NORMAL))
	return answer.GetSend().GetSendId(), err
}

// held looks on for some seconds, past the time of the sends that have little: nothing may leave, and a caller is told why.
func (r *restoring) held(ctx context.Context, t *trial, sends int) error {
	reasons := map[string]int{}
	for end := later(time.Now(), r.expired).Add(4 * time.Second); time.Now().Before(end); {
		m := r.shop.message(r.shop.bot(), facadev1.SendOptions_URGENT)
		once, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := r.fleet.any().messages.SendMessage(once, m)
		cancel()
		if err == nil {
			t.must(false, "a new send was sent")
			break
		}
		reasons[failureOf(err).reason]++
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	t.say("callers are told %v", reasons)
	return r.sent(ctx, t, "while held", sends)
}

// release has a person say that what may have been sent is unknown, and looks at Jelou again.
func (r *restoring) release(ctx context.Context, t *trial, sends int) error {
	r.fleet.stop()
	l, err := ledger.Open(ctx, ledger.Config{Path: r.fleet.config.Ledger.Path, URL: r.fleet.config.Ledger.Url, Replica: "jelou-bench"})
	if err != nil {
		return err
	}
	halt, err := l.Halt(ctx)
	if err == nil {
		t.must(halt.Held, "it is not held")
		err = l.Release(ctx, ledger.Unknown)
	}
	if err := errors.Join(err, l.Close()); err != nil {
		return err
	}
	if err := r.fleet.start(0); err != nil {
		return err
	}
	if err := r.fleet.any().quiet(ctx); err != nil {
		return err
	}
	states := map[resultState]int{}
	for _, m := range r.named {
		answer, err := r.fleet.any().messages.SendMessage(ctx, m)
		if err != nil {
			return err
		}
		states[answer.Send.State]++
	}
	t.say("asked for again by their ids they are %v", states)
	t.must(states[facadev1.Send_UNKNOWN] == namedSends, "asked for again by their ids they are %v", states)
	if err := r.fleet.any().quiet(ctx); err != nil {
		return err
	}
	if err := r.sent(ctx, t, "after the release", sends); err != nil {
		return err
	}
	// What is new goes on, under ids that are new, too.
	id, err := r.sendOne(ctx)
	t.must(err == nil, "after the release nothing is sent: %v", err)
	t.must(id != r.lost, "a new send has the id of a lost one")
	return t.once(ctx, r.sim)
}

// backUp copies the ledger as it is.
func (r *restoring) backUp(ctx context.Context) error {
	if r.p != nil {
		r.copied = filepath.Join(r.p.folder, "backup")
		out, err := r.p.command("pg_basebackup", "-D", r.copied, "-h", "127.0.0.1", "-p", fmt.Sprint(r.p.port), "-U", "postgres",
			"-X", "stream", "-c", "fast", "--no-sync").CombinedOutput()
		if err != nil {
			return fmt.Errorf("pg_basebackup: %w: %s", err, out)
		}
		return nil
	}
	// A stopped process leaves everything in the one file.
	r.fleet.stop()
	r.copied = r.b.path("copy.db")
	if err := copyFile(r.fleet.config.Ledger.Path, r.copied); err != nil {
		return err
	}
	return r.fleet.start(0)
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o600)
}

// putCluster runs the server on the backup: recovered to the end of its log, which begins a new timeline, or as after a crash.
func (r *restoring) putCluster(recover bool) error {
	r.p.signal(syscall.SIGINT)
	if err := errors.Join(os.RemoveAll(r.p.data()), os.Rename(r.copied, r.p.data())); err != nil {
		return err
	}
	if recover {
		settings := filepath.Join(r.p.data(), "postgresql.auto.conf")
		f, err := os.OpenFile(settings, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("restore_command = 'false'\n")
		if err := errors.Join(err, f.Close(), r.signalFile("recovery.signal")); err != nil {
			return err
		}
	}
	if err := r.p.start(); err != nil {
		return err
	}
	for recovering := recover; recovering; {
		if err := r.p.row(r.p.url("postgres"), "SELECT pg_is_in_recovery()", &recovering); err != nil {
			return err
		}
	}
	return nil
}

// signalFile makes an empty file that the server looks for.
func (r *restoring) signalFile(name string) error {
	path := filepath.Join(r.p.data(), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil || r.p.cred == nil {
		return err
	}
	return os.Chown(path, int(r.p.cred.Uid), int(r.p.cred.Gid))
}

func (r *restoring) putFile() error {
	path := r.fleet.config.Ledger.Path
	return errors.Join(os.Remove(path), copyFile(r.copied, path))
}

func (r *restoring) overwriteFile() error { return copyFile(r.copied, r.fleet.config.Ledger.Path) }
