package main

import "syscall"

// tied makes a child end with this process even where this process is killed, and keeps Ctrl-C to this process, which
// ends its children itself.
func tied() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
