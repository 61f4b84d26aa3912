package main

import (
	"fmt"
	"os"
	"os/user"
	"time"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/audit"
	"github.com/jelou-facade/jelou-facade/service/reload"
)

// openAudit begins the audit log; nil where none is configured.
func openAudit(c *configv1.Audit) (*audit.Log, error) {
	if c == nil {
		return nil, nil
	}
	return audit.Open(audit.Config{File: c.LogFile, Writer: os.Stderr, Required: c.Required})
}

// auditStart records the configuration that a server starts with.
func auditStart(l *audit.Log, parts []reload.Status) {
	for _, p := range parts {
		l.Write(audit.Line{Time: time.Now(), Event: audit.Start, Part: p.Part, After: p.Version, Code: "OK"})
	}
}

// auditReload records that a part of the configuration was replaced, or was not.
func auditReload(l *audit.Log) func(reload.Change) {
	return func(c reload.Change) {
		line := audit.Line{Time: time.Now(), Event: audit.Reload, Part: c.Part, Before: c.Before, After: c.After, Code: "OK"}
		if c.Err != nil {
			line.Code = "INVALID_ARGUMENT"
		}
		l.Write(line)
	}
}

// audited runs a command of an operator and records how it went. A required log that cannot be written refuses it.
func audited(c *configv1.Audit, command string, run func() error) error {
	l, err := openAudit(c)
	if err != nil {
		return err
	}
	line := audit.Line{Time: time.Now(), Event: audit.Command, Caller: operator(), Authentication: "os", RPC: command}
	begun := line
	begun.Code = "BEGUN"
	l.Write(begun) // so that there is a line also where it is cut in the middle
	if err := l.Ready(); err != nil {
		return fmt.Errorf("nothing was done: audit log: %w", err)
	}
	err = run()
	line.Time, line.Code = time.Now(), "OK"
	if err != nil {
		line.Code = "INTERNAL"
	}
	l.Write(line)
	if closed := l.Close(); err == nil {
		err = closed
	}
	return err
}

// operator is who runs the command, as the system knows it.
func operator() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}
