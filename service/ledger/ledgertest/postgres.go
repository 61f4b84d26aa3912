// Package ledgertest gives tests a real PostgreSQL.
package ledgertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Postgres gives the URL of a new, empty database, which is dropped after the test. The server is the one that
// JELOU_TEST_POSTGRES_URL names, else a throw-away cluster that lives as long as the test binary.
func Postgres(t testing.TB) string {
	t.Helper()
	cluster, err := server()
	if err != nil {
		t.Fatalf("no PostgreSQL for the test: %v\ninstall Debian's package postgresql, or set JELOU_TEST_POSTGRES_URL", err)
	}
	base := cluster.URL
	name := "test_" + strings.ToLower(rand.Text())
	mustExec(t, base, "CREATE DATABASE "+name)
	t.Cleanup(func() { mustExec(t, base, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)") })
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

func mustExec(t testing.TB, base, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, base)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		t.Fatal(err)
	}
}

// server starts the cluster once per test binary, and holds on to it.
var server = sync.OnceValues(func() (*Cluster, error) {
	if u := os.Getenv("JELOU_TEST_POSTGRES_URL"); u != "" {
		return &Cluster{URL: u}, nil
	}
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	c := &Cluster{bin: bin}
	if err := c.create(); err != nil {
		return nil, err
	}
	return c, c.Start()
})

// Cluster is a PostgreSQL of a test's own, for tests that stop it.
type Cluster struct {
	URL    string
	bin    string
	dir    string
	port   int
	cred   *syscall.Credential
	server *exec.Cmd
	input  io.WriteCloser // of the keeper; its end is this process's
}

// NewCluster creates and starts a cluster that ends with the test.
func NewCluster(t testing.TB) *Cluster {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatalf("no PostgreSQL for the test: %v\ninstall Debian's package postgresql", err)
	}
	c := &Cluster{bin: bin}
	t.Cleanup(func() { c.remove() })
	if err := errors.Join(c.create(), c.Start()); err != nil {
		t.Fatal(err)
	}
	return c
}

// programs finds the folder of initdb and postgres.
func programs() (string, error) {
	folders, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(folders, func(a, b string) int { return version(b) - version(a) })
	if found, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(found); err == nil {
			folders = append([]string{filepath.Dir(real)}, folders...)
		}
	}
	for _, folder := range folders {
		_, noInit := os.Stat(filepath.Join(folder, "initdb"))
		_, noServer := os.Stat(filepath.Join(folder, "postgres"))
		if noInit == nil && noServer == nil {
			return folder, nil
		}
	}
	return "", errors.New("initdb and postgres are neither in PATH nor in /usr/lib/postgresql/*/bin")
}

func version(folder string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(folder)))
	return n
}

// unprivileged is whom the server runs as: PostgreSQL refuses root.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, _ := strconv.ParseUint(u.Uid, 10, 32)
			gid, _ := strconv.ParseUint(u.Gid, 10, 32)
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("running as root, and there is neither a user postgres nor nobody")
}

// makeFolder makes the cluster's folder and finds it a port. The folder is gone with this process, and the server too.
func (c *Cluster) makeFolder() error {
	cred, err := unprivileged()
	if err != nil {
		return err
	}
	c.cred = cred
	if c.dir, err = os.MkdirTemp("", "jelou-postgres-"); err != nil {
		return err
	}
	if cred != nil {
		if err := os.Chown(c.dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return err
		}
	}
	if err := c.keep(); err != nil {
		return err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.port = free.Addr().(*net.TCPAddr).Port
	c.URL = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", c.port)
	return free.Close()
}

func (c *Cluster) create() error {
	if err := c.makeFolder(); err != nil {
		return err
	}
	init := c.command("initdb", "-D", c.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

func (c *Cluster) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, program), args...)
	cmd.Dir = c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred}
	return cmd
}

// keeper waits until its standard input ends, which it does with this process, however that ends; then it stops the
// server and removes the cluster.
const keeper = `read -r _
pid=$(head -n 1 data/postmaster.pid 2>/dev/null) && kill -QUIT "$pid"
for i in 1 2 3 4 5 6 7 8 9; do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
rm -rf "$PWD"`

func (c *Cluster) keep() error {
	cmd := exec.Command("/bin/sh", "-c", keeper)
	cmd.Dir, cmd.SysProcAttr = c.dir, &syscall.SysProcAttr{Credential: c.cred}
	var err error
	if c.input, err = cmd.StdinPipe(); err != nil {
		return err
	}
	return cmd.Start()
}

// Start starts the server and waits until it answers.
func (c *Cluster) Start() error {
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c.server = c.command("postgres", "-D", c.data(), "-p", strconv.Itoa(c.port), "-k", "", "-h", "127.0.0.1", "-c", "fsync=on",
		"-c", "max_connections=200", "-c", "deadlock_timeout=100ms", "-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB")
	c.server.Stdout, c.server.Stderr = log, log
	if err := c.server.Start(); err != nil {
		return err
	}
	if err := awaitServer(c.URL); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("PostgreSQL does not answer: %w: %s", err, text)
	}
	return nil
}

// Signal signals the server: SIGINT ends it in order and SIGQUIT like a crash, and for both Signal waits for the end.
func (c *Cluster) Signal(signal syscall.Signal) error {
	err := c.server.Process.Signal(signal)
	if err == nil && (signal == syscall.SIGINT || signal == syscall.SIGQUIT) {
		_ = c.server.Wait() // whose error says which signal it was
	}
	return err
}

func (c *Cluster) remove() {
	if c.server != nil {
		_ = c.Signal(syscall.SIGQUIT)
	}
	if c.input == nil {
		return
	}
	_ = c.input.Close()
}
