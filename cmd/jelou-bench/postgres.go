package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgres is a throw-away PostgreSQL server with fsync on, as a ledger needs it.
type postgres struct {
	b        *bench
	programs string
	folder   string
	port     int
	cred     *syscall.Credential
	server   *exec.Cmd
	ended    chan struct{}
	names    int
}

// startPostgres makes a cluster and starts it; it is gone when the run ends.
func (b *bench) startPostgres() (*postgres, error) {
	b.progress("starting PostgreSQL")
	programs, err := postgresPrograms()
	if err != nil {
		return nil, err
	}
	p := &postgres{b: b, programs: programs}
	if p.cred, err = unprivileged(); err != nil {
		return nil, err
	}
	// Not in the run's folder, which only its owner may enter.
	if p.folder, err = os.MkdirTemp("", "jelou-bench-postgres-"); err != nil {
		return nil, err
	}
	b.atEnd(func() error {
		p.kill()
		return os.RemoveAll(p.folder)
	})
	if p.cred != nil {
		if err := os.Chown(p.folder, int(p.cred.Uid), int(p.cred.Gid)); err != nil {
			return nil, err
		}
	}
	initdb := p.command("initdb", "-D", p.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	if p.port, err = freePort(); err != nil {
		return nil, err
	}
	return p, p.start()
}

// postgresPrograms finds the folder of initdb and postgres.
func postgresPrograms() (string, error) {
	folders, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.Reverse(folders)
	if found, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(found); err == nil {
			folders = append([]string{filepath.Dir(real)}, folders...)
		}
	}
	for _, folder := range folders {
		if _, err := os.Stat(filepath.Join(folder, "postgres")); err == nil {
			return folder, nil
		}
	}
	return "", errors.New("this benchmark needs PostgreSQL's server: install it (Debian: postgresql) so that initdb is in PATH or in /usr/lib/postgresql/*/bin")
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
	return nil, errors.New("running as root, and there is neither a user postgres nor nobody for PostgreSQL to run as")
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (p *postgres) data() string { return filepath.Join(p.folder, "data") }

func (p *postgres) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.programs, program), args...)
	cmd.Dir = p.folder
	cmd.SysProcAttr = tied()
	cmd.SysProcAttr.Credential = p.cred
	return cmd
}

// start starts the server and waits until it answers.
func (p *postgres) start() error {
	log, err := os.OpenFile(filepath.Join(p.folder, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the server has its own
	cmd := p.command("postgres", "-D", p.data(), "-p", strconv.Itoa(p.port), "-k", "", "-h", "127.0.0.1",
		"-c", "fsync=on", "-c", "max_connections=300", "-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB",
		"-c", "shared_preload_libraries=pg_stat_statements", "-c", "pg_stat_statements.track=all")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended, its log says
		close(ended)
	}()
	p.server, p.ended = cmd, ended
	for {
		conn, err := pgx.Connect(p.b.ctx, p.url("postgres"))
		if err == nil {
			return conn.Close(p.b.ctx)
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("PostgreSQL ended: %s", text)
		default:
		}
		if err := p.b.sleep(20 * time.Millisecond); err != nil {
			return err
		}
	}
}

// signal signals the server's first process and waits for its end: SIGINT ends it in order, SIGQUIT like a crash.
func (p *postgres) signal(s syscall.Signal) {
	_ = p.server.Process.Signal(s) // fails only when it has ended
	<-p.ended
}

func (p *postgres) kill() {
	if p.server != nil {
		p.signal(syscall.SIGQUIT)
	}
}

func (p *postgres) url(database string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)), Path: database, RawQuery: "sslmode=disable"}
	return u.String()
}

// database makes a new, empty database and gives its URL.
func (p *postgres) database() (string, error) {
	p.names++
	name := "bench_" + strconv.Itoa(p.names)
	return p.url(name), p.exec(p.url("postgres"), "CREATE DATABASE "+name)
}

// exec runs statements on a database, one by one.
func (p *postgres) exec(url string, statements ...string) error {
	return onDatabase(p.b.ctx, url, func(conn *pgx.Conn) error {
		for _, s := range statements {
			if _, err := conn.Exec(p.b.ctx, s); err != nil {
				return fmt.Errorf("%s: %w", strings.TrimSpace(s), err)
			}
		}
		return nil
	})
}

// row reads one row of a database.
func (p *postgres) row(url, query string, into ...any) error {
	return onDatabase(p.b.ctx, url, func(conn *pgx.Conn) error {
		return conn.QueryRow(p.b.ctx, query).Scan(into...)
	})
}

func onDatabase(ctx context.Context, url string, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(conn)
}
