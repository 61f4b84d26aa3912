// Package version tells which build a program is: the same in --version, in the log and in metrics.
package version

import (
	"cmp"
	"fmt"
	"runtime/debug"
)

// Set at a release: go build -ldflags "-X …/service/version.number=v1.2.3 -X …/service/version.commit=0123…".
// A build without them tells what the Go toolchain stamped.
var number, commit string

// Build is which build a program is.
type Build struct {
	Version string // v1.2.3, or what Go calls a build that is no release, such as (devel)
	Commit  string // of git, in full; with "+changes" where the tree had changes; "unknown" when nobody stamped it
	Go      string // go1.26.8
}

// Read is the build of the running program.
func Read() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return read(info, number, commit)
}

func read(info *debug.BuildInfo, number, commit string) Build {
	stamped := map[string]string{}
	for _, s := range info.Settings {
		stamped[s.Key] = s.Value
	}
	revision := stamped["vcs.revision"]
	if revision != "" && stamped["vcs.modified"] == "true" {
		revision += "+changes"
	}
	return Build{
		Version: cmp.Or(number, info.Main.Version, "(devel)"),
		Commit:  cmp.Or(commit, revision, "unknown"),
		Go:      cmp.Or(info.GoVersion, "unknown"),
	}
}

// String is one line for people and scripts: "v1.2.3 commit=0123… go=go1.26.8".
func (b Build) String() string {
	return fmt.Sprintf("%s commit=%s go=%s", b.Version, b.Commit, b.Go)
}
