package reload_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jelou-facade/jelou-facade/service/reload"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reader is a part that takes every text but "bad".
type reader struct {
	file    string
	applied chan string
}

func newReader(folder, name string) *reader {
	return &reader{filepath.Join(folder, name), make(chan string, 100)}
}

func (r *reader) part() reload.Part {
	return reload.Part{Name: filepath.Base(r.file), Files: []string{r.file}, Apply: func(context.Context) error {
		text, err := os.ReadFile(r.file)
		if err != nil {
			return err
		}
		if string(text) == "bad" {
			return errors.New("line 1: it is bad")
		}
		r.applied <- string(text)
		return nil
	}}
}

func (r *reader) next(t *testing.T) string {
	t.Helper()
	select {
	case text := <-r.applied:
		return text
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was put in force")
		return ""
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	must(t, os.WriteFile(file, []byte(text), 0o600))
}

// TestRefused: what is refused leaves in force what was, both are shown, and it is tried again.
func TestRefused(t *testing.T) {
	a, b := newReader(t.TempDir(), "a"), newReader(t.TempDir(), "b")
	write(t, a.file, "one")
	write(t, b.file, "one")
	r := reload.New(reload.Config{Parts: func() []reload.Part { return []reload.Part{a.part(), b.part()} }})
	first := r.Status()
	r.Look(t.Context())
	write(t, a.file, "bad")
	write(t, b.file, "two")
	r.Look(t.Context())
	r.Look(t.Context())
	status := r.Status()
	if refused := status[0].Refused; refused == nil || refused.Error != "line 1: it is bad" || refused.Version == first[0].Version || status[0].Version != first[0].Version {
		t.Errorf("%+v", status[0])
	}
	if status[1].Refused != nil || status[1].Version == first[1].Version || b.next(t) != "two" {
		t.Errorf("%+v", status[1])
	}
	write(t, a.file, "one")
	r.Look(t.Context())
	if status := r.Status(); status[0] != first[0] || len(a.applied) != 0 {
		t.Errorf("set back: %+v", status[0])
	}
	must(t, os.Remove(a.file))
	r.Look(t.Context())
	if status := r.Status(); status[0].Refused == nil || !strings.Contains(status[0].Refused.Error, "no such file") {
		t.Errorf("gone: %+v", status[0])
	}
}

// TestPartsComeAndGo: a part that another one brings along is applied at once, and one that is gone is not shown.
func TestPartsComeAndGo(t *testing.T) {
	folder := t.TempDir()
	list, named := newReader(folder, "list"), newReader(folder, "named")
	write(t, list.file, "")
	write(t, named.file, "hello")
	brought := false
	r := reload.New(reload.Config{Parts: func() []reload.Part {
		first := list.part()
		apply := first.Apply
		first.Apply = func(ctx context.Context) error { brought = !brought; return apply(ctx) }
		if brought {
			return []reload.Part{first, named.part()}
		}
		return []reload.Part{first}
	}})
	write(t, list.file, "named")
	r.Look(t.Context())
	if named.next(t) != "hello" || len(r.Status()) != 2 {
		t.Errorf("%+v", r.Status())
	}
	write(t, list.file, "nothing")
	r.Look(t.Context())
	if len(r.Status()) != 1 {
		t.Errorf("%+v", r.Status())
	}
}

// swap replaces the files of a folder at once, as Kubernetes does it: ..data is a link to a folder of their own, and each
// file is a link into ..data.
func swap(t *testing.T, folder, version string, files map[string]string) {
	t.Helper()
	must(t, os.Mkdir(filepath.Join(folder, version), 0o700))
	for name, text := range files {
		write(t, filepath.Join(folder, version, name), text)
	}
	must(t, os.Symlink(version, filepath.Join(folder, "..next")))
	must(t, os.Rename(filepath.Join(folder, "..next"), filepath.Join(folder, "..data")))
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(folder, name)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
}

// TestRun: changes are seen without being told, those by links too, and a demand is heeded.
func TestRun(t *testing.T) {
	volume, plain := t.TempDir(), t.TempDir()
	swap(t, volume, "..one", map[string]string{"mounted": "one"})
	mounted, file := newReader(volume, "mounted"), newReader(plain, "file")
	write(t, file.file, "one")
	r := reload.New(reload.Config{Every: time.Hour, Parts: func() []reload.Part { return []reload.Part{mounted.part(), file.part()} }})
	ctx, cancel := context.WithCancel(t.Context())
	demand := make(chan os.Signal)
	ended := make(chan struct{})
	go func() { r.Run(ctx, demand); close(ended) }()
	demand <- os.Interrupt // the folders are watched when it is taken
	swap(t, volume, "..two", map[string]string{"mounted": "two"})
	if text := mounted.next(t); text != "two" {
		t.Errorf("by a link: %q", text)
	}
	write(t, file.file+".new", "two")
	must(t, os.Rename(file.file+".new", file.file))
	if text := file.next(t); text != "two" {
		t.Errorf("by a rename: %q", text)
	}
	write(t, file.file, "three")
	// It may be seen while it is still empty.
	if texts := []string{file.next(t)}; !slices.Contains(texts, "three") && file.next(t) != "three" {
		t.Errorf("by a write: %q", texts)
	}
	cancel()
	<-ended
}
