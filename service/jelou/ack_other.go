//go:build !linux

package jelou

import "net"

// readTCP is not built for this system.
func readTCP(*net.TCPConn) (tcpState, bool) { return tcpState{}, false }
