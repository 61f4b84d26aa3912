//go:build !linux

package main

import "syscall"

// tied keeps Ctrl-C to this process, which ends its children itself.
func tied() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
