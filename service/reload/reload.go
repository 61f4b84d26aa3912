// Package reload keeps what was made of files in step with the files.
//
// Files that belong together are a part: it is put in force as a whole when one of its files has changed, or refused as a whole,
// and then what was in force stays. The files are looked at when something changes in one of their folders (so that a symbolic
// link that is replaced counts, as Kubernetes does it with all files of a volume at once), on demand, and now and then, for
// file systems that tell nothing.
package reload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Part is files that belong together, and what is made of them.
type Part struct {
	Name  string
	Files []string
	// Apply puts in force what stands in the files. An error leaves everything as it was; it names the file and the field, and
	// never quotes a secret.
	Apply func(ctx context.Context) error
	// Secret hides the version, which is a fingerprint of the contents.
	Secret bool
}

// Config is what a Reloader works with.
type Config struct {
	// Parts are what there is to read, by what is in force: asked again after every change. A part that was put in force
	// already when the Reloader is made is not applied before its files change. Required.
	Parts func() []Part
	// Every is how often to look without being told; zero is 15s.
	Every time.Duration
	// Changed is told of the same; nil is not.
	Changed func(Change)
	// Logger is told what is put in force and what is refused; nil logs nothing.
	Logger *slog.Logger
}

const (
	defaultEvery = 15 * time.Second
	// settle is how long nothing may happen before the files are looked at: they are not written at once.
	settle = 100 * time.Millisecond
)

// Change is a part that was put in force, or that was refused.
type Change struct {
	Part          string
	Before, After string // versions: in force till then, and of the files now; empty for secrets
	Err           error  // why it was refused
}

// Status is how a part is.
type Status struct {
	Part string `json:"part"`
	// Version is the beginning of the SHA-256 of the files in force; empty for secrets.
	Version string `json:"version,omitempty"`
	// Loaded is when they were put in force.
	Loaded time.Time `json:"loaded"`
	// Refused are the files as they are now, where they could not be put in force.
	Refused *Refused `json:"refused,omitempty"`
}

// Refused is a version that could not be put in force.
type Refused struct {
	Version string    `json:"version,omitempty"`
	At      time.Time `json:"at"`
	Error   string    `json:"error"`
}

// Reloader looks at the files.
type Reloader struct {
	config Config
	log    *slog.Logger

	looking sync.Mutex // held by who looks

	mu    sync.Mutex
	parts map[string]*part
	order []string
}

// part is what is known of a part.
type part struct {
	Status
	inForce [sha256.Size]byte
	refused [sha256.Size]byte
}

// New takes note of the files as those that are in force.
func New(c Config) *Reloader {
	if c.Every == 0 {
		c.Every = defaultEvery
	}
	r := &Reloader{config: c, log: c.Logger, parts: map[string]*part{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.config.Changed == nil {
		r.config.Changed = func(Change) {}
	}
	now := time.Now()
	for _, p := range c.Parts() {
		print := fingerprint(p.Files)
		r.parts[p.Name] = &part{Status: Status{Part: p.Name, Version: version(p, print), Loaded: now}, inForce: print}
		r.order = append(r.order, p.Name)
	}
	return r
}

// Run looks until ctx ends, and whenever demand has something. Where the system cannot tell of changes it looks less often.
func (r *Reloader) Run(ctx context.Context, demand <-chan os.Signal) {
	tick := time.NewTicker(r.config.Every)
	defer tick.Stop()
	quiet := time.NewTimer(0)
	<-quiet.C
	defer quiet.Stop()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		r.log.Warn("changes of files are found by looking only", slog.Any("error", err), slog.Duration("every", r.config.Every))
		watcher = &fsnotify.Watcher{} // whose channels are nil
	} else {
		defer watcher.Close()
		r.watch(watcher)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-watcher.Errors: // events were lost, perhaps
			r.log.Warn("watch files", slog.Any("error", err))
			quiet.Reset(settle)
			continue
		case <-watcher.Events:
			quiet.Reset(settle)
			continue
		case <-quiet.C:
		case <-tick.C:
		case <-demand:
		}
		r.Look(ctx)
		if watcher.Events != nil {
			r.watch(watcher)
		}
	}
}

// watch has the folders of all files watched, and no others.
func (r *Reloader) watch(w *fsnotify.Watcher) {
	folders := map[string]bool{}
	for _, p := range r.config.Parts() {
		for _, file := range p.Files {
			folders[filepath.Dir(file)] = true
		}
	}
	for _, folder := range w.WatchList() {
		if !folders[folder] {
			_ = w.Remove(folder) // it may be gone
		}
		delete(folders, folder)
	}
	for folder := range folders {
		if err := w.Add(folder); err != nil {
			r.log.Warn("a folder cannot be watched: its files are looked at now and then", slog.String("folder", folder), slog.Any("error", err))
		}
	}
}

// Look puts in force what has changed, part by part.
func (r *Reloader) Look(ctx context.Context) {
	r.looking.Lock()
	defer r.looking.Unlock()
	looked := map[string]bool{}
	for {
		next, found := Part{}, false
		var order []string
		for _, p := range r.config.Parts() { // again each time: a part may bring others along
			order = append(order, p.Name)
			if !found && !looked[p.Name] {
				next, found = p, true
			}
		}
		if !found {
			r.keep(order)
			return
		}
		looked[next.Name] = true
		r.look(ctx, next)
	}
}

// look applies a part whose files have changed. One that was refused is tried again: the reason may be elsewhere.
func (r *Reloader) look(ctx context.Context, p Part) {
	print := fingerprint(p.Files)
	r.mu.Lock()
	known := r.parts[p.Name]
	if known == nil {
		known = &part{Status: Status{Part: p.Name}}
		r.parts[p.Name] = known
	}
	same, before := known.inForce == print, known.Refused
	if same {
		known.Refused = nil
	}
	r.mu.Unlock()
	if same {
		if before != nil {
			r.log.Info("what was refused is gone", slog.String("part", p.Name))
		}
		return
	}
	err := p.Apply(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	change := Change{Part: p.Name, Before: known.Version, After: version(p, print), Err: err}
	if err == nil {
		r.config.Changed(change)
		known.inForce, known.Version, known.Loaded, known.Refused = print, version(p, print), time.Now(), nil
		r.log.Info("reloaded", slog.String("part", p.Name), slog.String("version", known.Version))
		return
	}
	if before == nil || known.refused != print || before.Error != err.Error() {
		r.config.Changed(change)
		r.log.Error("not reloaded: what was in force stays", slog.String("part", p.Name), slog.Any("error", err))
		known.refused, known.Refused = print, &Refused{Version: version(p, print), At: time.Now(), Error: err.Error()}
	}
}

// keep forgets the parts that there are no more.
func (r *Reloader) keep(order []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	parts := map[string]*part{}
	for _, name := range order {
		parts[name] = r.parts[name]
	}
	r.parts, r.order = parts, order
}

// Status is how each part is.
func (r *Reloader) Status() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Status, 0, len(r.order))
	for _, name := range r.order {
		all = append(all, r.parts[name].Status)
	}
	return all
}

// fingerprint tells contents of files apart, and that of one file is its SHA-256. One that cannot be read has a fingerprint, too.
func fingerprint(files []string) [sha256.Size]byte {
	var all []byte
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			content = []byte("unreadable")
		}
		one := sha256.Sum256(content)
		if len(files) == 1 {
			return one
		}
		all = append(append(append(all, file...), 0), one[:]...)
	}
	return sha256.Sum256(all)
}

// version is a fingerprint as it is shown.
func version(p Part, print [sha256.Size]byte) string {
	if p.Secret {
		return ""
	}
	return hex.EncodeToString(print[:6])
}
