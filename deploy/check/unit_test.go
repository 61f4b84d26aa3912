package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnit: systemd takes the unit without a word, finds little that it could still take away from the service, and takes the user.
func TestUnit(t *testing.T) {
	folder := t.TempDir()
	unit := filepath.Join(folder, "jelou-facade.service")
	// systemd looks whether the program is there.
	write(t, unit, strings.ReplaceAll(read(t, "../systemd/jelou-facade.service"), "/usr/bin/jelou-facade", facade))
	for _, command := range [][]string{
		{"systemd-analyze", "verify", "--man=no", unit},
		{"systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", unit}, // of 100; a unit without hardening has 96
		{"systemd-sysusers", "--dry-run", mustAbs(t, "../systemd/jelou-facade.conf")},
	} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil || command[1] == "verify" && len(out) > 0 {
			t.Errorf("%s: %v (without systemd: install Debian's package systemd)\n%s", strings.Join(command[:2], " "), err, out)
		}
	}
}

// TestUnitConfig: the example of a configuration runs under the unit once its ledger is where the unit lets it write.
func TestUnitConfig(t *testing.T) {
	example, err := exec.Command(facade, "config", "example").Output()
	if err != nil {
		t.Fatal(err)
	}
	const state = "/var/lib/jelou-facade"
	unit := read(t, "../systemd/jelou-facade.service")
	config := strings.Replace(string(example), "path: jelou-facade.db", "path: "+state+"/jelou-facade.db", 1)
	if !strings.Contains(config, state) || !strings.Contains(unit, "\nWorkingDirectory="+state+"\n") {
		t.Error("the unit and the example do not fit together")
	}
	config = strings.ReplaceAll(config, "secrets/", "/etc/jelou-facade/secrets/")
	checkConfig(t, config, "/etc/jelou-facade")
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	absolute, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(absolute); err != nil {
		t.Fatal(err)
	}
	return absolute
}
