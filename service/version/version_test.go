package version

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestRead(t *testing.T) {
	stamped := func(settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "v1.2.4-0.20261123-abc"}, Settings: settings}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "abc"}
	for _, c := range []struct {
		name           string
		info           *debug.BuildInfo
		number, commit string
		want           string
	}{
		{"nothing known", &debug.BuildInfo{}, "", "", "(devel) commit=unknown go=unknown"},
		{"stamped by Go", stamped(revision), "", "", "v1.2.4-0.20261123-abc commit=abc go=go1.26.8"},
		{"with changes", stamped(revision, debug.BuildSetting{Key: "vcs.modified", Value: "true"}), "", "", "v1.2.4-0.20261123-abc commit=abc+changes go=go1.26.8"},
		{"a release", stamped(revision), "v1.2.3", "def", "v1.2.3 commit=def go=go1.26.8"},
	} {
		if got := read(c.info, c.number, c.commit).String(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if got := Read(); got.Go != runtime.Version() {
		t.Errorf("this program is %q, and is built by %s", got, runtime.Version())
	}
}
